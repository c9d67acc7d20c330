"""Capabilities beyond the core: one folder each, which the core's registry finds by name."""
