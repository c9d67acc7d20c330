"""What is measured of each model besides its scores: one folder for each analysis.

A folder's ``__init__.py`` registers one :class:`Analysis`, unless it has only figures to draw from
scores. The study file, the ledger, the conductor, the plan, the tables and the pages ask this
registry, so a folder can be removed. Import it freely: it loads neither torch nor records.
"""

import pkgutil
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rankscope.analyses.analysis import Analysis

if TYPE_CHECKING:
    from rankscope.config.study import StudyConfig

_ANALYSES: dict[str, Analysis[Any]] = {}


def register_analysis(analysis: Analysis[Any]) -> None:
    """Make an analysis available under its name; replaces one of the same name."""
    _ANALYSES[analysis.name] = analysis
    loaded = vars(sys.modules.get("rankscope.config.study", sys))
    if "add_section" in loaded and analysis.section == "analyze":  # else it is about to ask
        loaded["add_section"](analysis)


def all_analyses() -> tuple[Analysis[Any], ...]:
    """In the order in which they run."""
    return tuple(sorted(_ANALYSES.values(), key=lambda analysis: analysis.place))


def enabled_analyses(config: "StudyConfig") -> tuple[Analysis[Any], ...]:
    return tuple(analysis for analysis in all_analyses() if analysis.is_enabled(config))


for _module in pkgutil.iter_modules(__path__):
    if _module.ispkg:
        import_module(f"{__name__}.{_module.name}")
