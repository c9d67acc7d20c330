"""Rankscope inside other programs: one file for each of their interfaces."""

from rankscope.integrations.forgetting_callback import ForgettingCallback

__all__ = ["ForgettingCallback"]
