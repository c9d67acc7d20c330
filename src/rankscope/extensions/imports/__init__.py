"""Scores that were made elsewhere become a finished study: ``rankscope import``."""
