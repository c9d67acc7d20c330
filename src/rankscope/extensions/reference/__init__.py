"""What the base gives to pairs of answers: computed once per study, before any training."""

from typing import TYPE_CHECKING

from rankscope.sources import Source

if TYPE_CHECKING:
    from rankscope.extensions.reference.stage import ReferenceStage
    from rankscope.run.context import RunContext


class ReferenceMargins(Source):
    name = "reference"
    label = "log-probabilities of the base"

    def stage(self, context: "RunContext") -> "ReferenceStage":
        from rankscope.extensions.reference.stage import ReferenceStage

        return ReferenceStage(context)
