"""Preferred answers: training by pairs of answers (DPO), and how far a model prefers the first."""

from rankscope.extensions.preferences.dpo import Dpo
from rankscope.extensions.preferences.scorer import PreferenceScorer

__all__ = ["Dpo", "PreferenceScorer"]
