"""Rankscope inside another trainer: a callback that watches a model's forgetting."""
