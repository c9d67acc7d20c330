"""From rows to tokens: files and data sets, items, splits, prompts and labels."""
