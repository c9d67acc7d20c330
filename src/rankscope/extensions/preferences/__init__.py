"""Preferred answers: training by pairs of answers (DPO), and a score of learned preference."""

from rankscope.extensions.preferences.dpo import Dpo
from rankscope.extensions.preferences.scorer import PreferenceScorer

__all__ = ["Dpo", "PreferenceScorer"]
