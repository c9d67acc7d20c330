"""What the base gives to pairs of answers: computed once per study, before any training."""

from typing import TYPE_CHECKING

from rankscope.sources import Source, register_source

if TYPE_CHECKING:
    from rankscope.run.context import RunContext


class ReferenceMargins(Source):
    name = "reference"
    prefix = "reference"
    use = "compared"
    label = "log-probabilities of the base"

    def lacks_rows(self, context: "RunContext") -> bool:
        from rankscope.sources.reference.stage import ReferenceStage

        return bool(ReferenceStage(context).missing())

    def use_rows(self, context: "RunContext") -> None:
        from rankscope.sources.reference.stage import use_reference

        use_reference(context)


register_source(ReferenceMargins())
