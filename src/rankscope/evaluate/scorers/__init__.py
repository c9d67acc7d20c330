"""The registry of scorers: the files of this folder, and those of extensions and other packages.

A scorer needs one file. Study files, tasks, error messages and the documentation ask here. Import
it freely: it loads neither torch nor transformers.
"""

import re
from functools import cache
from typing import Any

from rankscope.evaluate.scorers.python_function import PYTHON_PREFIX, PythonScorer
from rankscope.evaluate.scorers.scorer import Scorer
from rankscope.registry import parts

PYTHON_PATTERN = rf"{PYTHON_PREFIX}[^:]+\.py:[A-Za-z_]\w*"


@cache
def scorers() -> dict[str, Scorer[Any]]:
    """Return all scorers by name, including the users' functions that were asked for."""
    kinds: dict[str, type[Scorer[Any]]] = parts(Scorer, __name__)
    return {name: kind() for name, kind in kinds.items()}


def get_scorer(name: str) -> Scorer[Any]:
    """Return the scorer of a name; ``python:FILE:FUNCTION`` is a user's own function.

    Raises ValueError: no scorer has this name.
    """
    if name not in scorers() and re.fullmatch(PYTHON_PATTERN, name):
        scorers()[name] = PythonScorer(name)
    if name in scorers():
        return scorers()[name]
    raise ValueError(f"scorer {name!r}: expected one of {', '.join(scorers())}")


def scorer_names() -> tuple[str, ...]:
    return tuple(name for name in scorers() if ":" not in name)


def primary_metric_names() -> tuple[str, ...]:
    """List the metrics that tasks may name as their primary metric, whatever their scorer."""
    choices = (scorer.metric_choices for scorer in scorers().values())
    return tuple(dict.fromkeys(name for names in choices for name in names))
