"""The study file: its sections, how it is read, and its presets."""

__all__ = ["arm", "loader", "objective", "patterns", "presets", "section", "study", "task"]
__all__ += ["yaml_lines"]
"""The modules that other rooms import."""
