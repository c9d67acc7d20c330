"""``rankscope eval``: score a model and its adapters on tasks, without a study."""
