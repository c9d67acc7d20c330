"""Rankscope inside another trainer: a callback that watches what a model forgets."""
