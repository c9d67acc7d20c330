"""Training of groups of trials: the loop, its checkpoints, and the memory that it takes."""

__all__ = ["checkpoint", "loop", "loss", "memory", "objectives", "pass_memory"]
__all__ += ["step", "step_schedule", "trial_state"]
"""The modules that other rooms import; the others are parts of these."""
