"""The study file: its sections, how it is read, and its presets."""
