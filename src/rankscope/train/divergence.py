"""When a trial counts as diverged although all its numbers are finite (docs/science.md)."""

from collections.abc import Sequence

LARGEST_UPDATE = 2.0**8
"""|W - W0| / |W0| above which the base is lost in the 8 significant bits of bfloat16."""
LOSS_INCREASE = 3.0
"""Nats above the first step's loss: the right token is then 20 times less likely than at the start.
"""
SHORTEST_STRETCH = 10


def is_update_checked(steps_done: int, num_steps: int) -> bool:
    """After 1, 2, 4, 8, ... steps and after the last: the norms then cost next to nothing, and a
    trial that runs away trains at most twice as long as it had to."""
    return steps_done & (steps_done - 1) == 0 or steps_done == num_steps


def excessive_update(relative: float) -> str | None:
    """Why an update of this norm, relative to the weights it changes, is no fine-tuning."""
    if relative <= LARGEST_UPDATE:  # not so for NaN
        return None
    return (
        f"the update of the weights is {relative:.3g} times as large as the weights of the base "
        f"(limit {LARGEST_UPDATE:g})"
    )


def judged_stretch(num_steps: int) -> int:
    """Steps in a row whose losses :func:`excessive_loss` looks at, besides the first."""
    return max(SHORTEST_STRETCH, -(-num_steps // 10))


def excessive_loss(losses: Sequence[float], num_steps: int) -> str | None:
    """Why a trial with these losses, nats per label token, by step, cannot recover.

    ``losses`` may leave out all but the first and the last :func:`judged_stretch` of them.
    The first step's loss is that of the start, before any update. For at least ten steps in a row,
    and a tenth of all steps, every loss is more than twice that and more than 3 nats above it:
    spikes, warm-up and the noise of small steps are shorter or lower.
    """
    stretch = judged_stretch(num_steps)
    if len(losses) <= stretch:
        return None
    first, lowest = losses[0], min(losses[-stretch:])
    if lowest <= first + max(first, LOSS_INCREASE):
        return None
    return (
        f"the loss was {lowest:.3g} or more for {stretch} steps, and {first:.3g} at the first step"
    )
