"""Capabilities that the core does without: a folder each, which its registry finds by name."""
