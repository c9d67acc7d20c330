"""The scorers by name: one file each, and the registry that lists them.

Study files, tasks, error messages and the documentation all use this registry. Importing it loads
neither torch nor transformers.
"""

from typing import Any

from rankscope.errors import did_you_mean
from rankscope.evaluate.scorers.exact_match import ExactMatchScorer
from rankscope.evaluate.scorers.loss import LossScorer
from rankscope.evaluate.scorers.number import NumberScorer
from rankscope.evaluate.scorers.option_letter import OptionLetterScorer
from rankscope.evaluate.scorers.option_text import OptionTextScorer
from rankscope.evaluate.scorers.perplexity import PerplexityScorer
from rankscope.evaluate.scorers.scorer import Scorer

_SCORERS: dict[str, Scorer[Any]] = {}


def register_scorer(scorer: Scorer[Any]) -> None:
    """Make a scorer available under its name; replaces one of the same name."""
    _SCORERS[scorer.name] = scorer


def get_scorer(name: str) -> Scorer[Any]:
    """The scorer of a name.

    Raises:
        ValueError: no scorer has this name.
    """
    if name in _SCORERS:
        return _SCORERS[name]
    hint = did_you_mean(name, _SCORERS)
    raise ValueError(f"scorer {name!r}: expected one of {', '.join(_SCORERS)}{hint}")


def scorer_names() -> tuple[str, ...]:
    return tuple(_SCORERS)


def primary_metric_names() -> tuple[str, ...]:
    """Metrics that tasks may name as their primary metric, whatever their scorer."""
    choices = (scorer.metric_choices for scorer in _SCORERS.values())
    return tuple(dict.fromkeys(name for names in choices for name in names))


for _scorer in (
    OptionTextScorer(),
    OptionLetterScorer(),
    NumberScorer(),
    ExactMatchScorer(),
    LossScorer(),
    PerplexityScorer(),
):
    register_scorer(_scorer)
