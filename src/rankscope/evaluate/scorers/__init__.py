"""The scorers by name: one file each, and the registry that lists them.

A file of this folder is all that a scorer needs, and it can be deleted. Study files, tasks, error
messages and the documentation use this registry. Importing it loads neither torch nor transformers.
"""

import re
from typing import Any

from rankscope.evaluate.scorers.python_function import PYTHON_PREFIX, PythonScorer
from rankscope.evaluate.scorers.scorer import Scorer
from rankscope.registry import subclasses_in

PYTHON_PATTERN = rf"{PYTHON_PREFIX}[^:]+\.py:[A-Za-z_]\w*"


_SCORERS: dict[str, Scorer[Any]] = {
    kind.name: kind() for kind in subclasses_in(__name__, Scorer) if "name" in vars(kind)
}


def register_scorer(scorer: Scorer[Any]) -> None:
    """Make a scorer available under its name; replaces one of the same name."""
    _SCORERS[scorer.name] = scorer


def get_scorer(name: str) -> Scorer[Any]:
    """The scorer of a name; ``python:FILE:FUNCTION`` is a function of the user's own. Raises
    ValueError: no scorer has this name."""
    if name not in _SCORERS and re.fullmatch(PYTHON_PATTERN, name):
        register_scorer(PythonScorer(name))
    if name in _SCORERS:
        return _SCORERS[name]
    raise ValueError(f"scorer {name!r}: expected one of {', '.join(_SCORERS)}")


def scorer_names() -> tuple[str, ...]:
    return tuple(name for name in _SCORERS if ":" not in name)


def primary_metric_names() -> tuple[str, ...]:
    """Metrics that tasks may name as their primary metric, whatever their scorer."""
    choices = (scorer.metric_choices for scorer in _SCORERS.values())
    return tuple(dict.fromkeys(name for names in choices for name in names))
