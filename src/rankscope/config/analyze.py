"""What is looked into besides scores, as sections of the study file."""

from pydantic import Field

from rankscope.config.section import Name, Section


class SpectraConfig(Section):
    """Weight spectra of every trial."""

    enabled: bool = True
    """Analyze every trial's weights; ``false`` saves the time."""
    top_k: int | None = Field(None, ge=1)
    """Singular vectors compared; by default min(500, smaller dimension / 4)."""
    intruder_k: int = Field(10, ge=1)
    """Leading vectors of the tuned matrix examined for intruders."""
    intruder_epsilon: float = Field(0.5, gt=0, lt=1)
    """Largest |cosine| to any base vector below which a vector is an intruder."""


class HeadsConfig(Section):
    """Attention heads of every trial, beside the base's."""

    enabled: bool = False
    """Look at every trial's heads: how far each moved, its importance, its attention's entropy."""
    task: Name | None = None
    """Task whose test items importance and entropy are of; by default the trial's own."""
    items: int = Field(64, ge=1)
    """At most so many items of a task, the first of its test split."""
    ablate: list[Name] = []
    """Tasks on which every head is removed by itself and the items are scored again."""


class AnalyzeConfig(Section):
    """What is looked into besides scores."""

    spectra: SpectraConfig = SpectraConfig()
    """The analysis of what the weights became."""
    heads: HeadsConfig = HeadsConfig()
    """The analysis of what the attention heads became."""
