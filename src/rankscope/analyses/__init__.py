"""Analyses measure more of each model than its scores; the registry finds them.

The study file, the ledger, the conductor, the plan, the tables and the pages ask here. Import it
freely: it loads neither torch nor records.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

from rankscope.analyses.analysis import Analysis
from rankscope.registry import parts

if TYPE_CHECKING:
    from rankscope.config.study import StudyConfig


@cache
def all_analyses() -> tuple[Analysis[Any], ...]:
    """In the order in which they run."""
    kinds: dict[str, type[Analysis[Any]]] = parts(Analysis)
    return tuple(sorted((kind() for kind in kinds.values()), key=lambda analysis: analysis.place))


def enabled_analyses(config: "StudyConfig") -> tuple[Analysis[Any], ...]:
    return tuple(analysis for analysis in all_analyses() if analysis.is_enabled(config))
