"""Rewards of answers that models write while they train (GRPO)."""

from rankscope.extensions.rewards.grpo import Grpo

__all__ = ["Grpo"]
