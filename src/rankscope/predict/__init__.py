"""Which rank the rows, the base and little training suggest, and how often that was right.

Other rooms use the modules of ``__all__``.
"""

__all__ = ["backtest", "features", "predictors"]
