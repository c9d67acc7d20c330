"""From scores to an answer: statistics, the choice of an arm, the decision and its sentences.

``recommend.recommend`` is the way in. Other rooms use the modules of ``__all__``.
"""

__all__ = ["arms", "checks", "comparisons", "decide", "evidence", "recommend", "results"]
__all__ += ["retention", "search", "statistics"]
