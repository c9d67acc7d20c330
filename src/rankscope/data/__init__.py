"""From rows to tokens: files and data sets, items, splits, prompts and labels."""

__all__ = ["encode", "items", "numbers", "registry", "rows", "sampler"]
__all__ += ["sources", "study_data", "task_source", "tasks"]
"""The modules that other rooms import; the others are parts of these."""
