"""What the base gives to pairs of answers: computed once per study, before any training."""

from typing import TYPE_CHECKING

from rankscope.sources import Source, register_source

if TYPE_CHECKING:
    from rankscope.run.context import RunContext
    from rankscope.sources.reference.stage import ReferenceStage


class ReferenceMargins(Source):
    prefix = "reference"
    label = "log-probabilities of the base"

    def stage(self, context: "RunContext") -> "ReferenceStage":
        from rankscope.sources.reference.stage import ReferenceStage

        return ReferenceStage(context)


register_source(ReferenceMargins())
