"""The scorers by name: one file each, and the registry that lists them.

Study files, tasks, error messages and the documentation all use this registry. Importing it loads
neither torch nor transformers.
"""

import re
from typing import Any

from rankscope.errors import did_you_mean
from rankscope.evaluate.scorers.contains import ContainsScorer
from rankscope.evaluate.scorers.exact_match import ExactMatchScorer
from rankscope.evaluate.scorers.loss import LossScorer
from rankscope.evaluate.scorers.number import NumberScorer
from rankscope.evaluate.scorers.option_letter import OptionLetterScorer
from rankscope.evaluate.scorers.option_text import OptionTextScorer
from rankscope.evaluate.scorers.perplexity import PerplexityScorer
from rankscope.evaluate.scorers.python_function import PYTHON_PREFIX, PythonScorer
from rankscope.evaluate.scorers.regex import RegexScorer
from rankscope.evaluate.scorers.rouge import RougeScorer
from rankscope.evaluate.scorers.scorer import Scorer

PYTHON_PATTERN = rf"{PYTHON_PREFIX}[^:]+\.py:[A-Za-z_]\w*"
_SCORERS: dict[str, Scorer[Any]] = {
    scorer.name: scorer
    for scorer in (
        OptionTextScorer(),
        OptionLetterScorer(),
        NumberScorer(),
        ExactMatchScorer(),
        RegexScorer(),
        ContainsScorer(),
        RougeScorer(),
        LossScorer(),
        PerplexityScorer(),
    )
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
    hint = did_you_mean(name, _SCORERS)
    raise ValueError(f"scorer {name!r}: expected one of {', '.join(_SCORERS)}{hint}")


def scorer_names() -> tuple[str, ...]:
    return tuple(name for name in _SCORERS if ":" not in name)


def primary_metric_names() -> tuple[str, ...]:
    """Metrics that tasks may name as their primary metric, whatever their scorer."""
    choices = (scorer.metric_choices for scorer in _SCORERS.values())
    return tuple(dict.fromkeys(name for names in choices for name in names))
