"""What an arm may do against forgetting while it trains, as sections of the study file."""

from pydantic import Field

from rankscope.config.section import Name, Section

MITIGATIONS = ("replay", "kl_to_base", "early_stop")
"""Fields of an arm that are axes of its grid and no part of ``train``."""


class ReplayConfig(Section):
    """General rows mixed into every optimizer step, beside the task's own."""

    task: Name
    """Whose training rows: a task that the study describes, or a named one."""
    share: float = Field(ge=0, lt=1)
    """Their share of all rows seen, and of the loss; 0 is no replay."""


class EarlyStopConfig(Section):
    """Stop a trial that no longer learns, and keep the weights it scored best with."""

    patience: int = Field(ge=1)
    """Points of ``train.evaluate_every`` without a better in-domain score, validation split."""
