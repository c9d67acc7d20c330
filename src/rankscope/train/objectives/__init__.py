"""The registry of training objectives: the files of this folder, and those of other packages.

An objective needs one file. Study files and plans ask here. Import it freely: it loads neither
torch nor transformers.
"""

import json
from functools import cache, lru_cache
from typing import Any

from rankscope.config.section import Unfit, short_repr
from rankscope.errors import did_you_mean
from rankscope.hashing import canonical_json
from rankscope.registry import parts
from rankscope.train.objectives.objective import Objective

SFT = Objective.name


@cache
def objectives() -> dict[str, type[Objective]]:
    """Return all objectives by name: ``sft``, the default, first."""
    return {SFT: Objective, **parts(Objective, __name__)}


def objective_names() -> tuple[str, ...]:
    return tuple(objectives())


def parse_objective(value: Any) -> str:
    """Parse ``dpo``, ``{dpo: {beta: 0.3}}``, or the text that this returns.

    Returns:
        The name alone, or JSON with the settings that differ from the default.

    Raises Unfit: the objective or a setting is unknown.
    """
    if isinstance(value, str) and value.startswith("{"):
        value = json.loads(value)
    named = value if isinstance(value, dict) else {str(value): {}}
    name, given = next(iter(named.items()), ("", {}))
    if len(named) != 1 or name not in objectives():
        hint = did_you_mean(str(name), objectives())
        rule = f"one of {', '.join(objectives())}, or one with settings: {{dpo: {{beta: 0.3}}}}"
        raise Unfit(short_repr(value), rule, hint)
    settings = objectives()[name].settings_type.model_validate(given or {})
    chosen = settings.model_dump(mode="json", exclude_defaults=True)
    return canonical_json({name: chosen}) if chosen else name


@lru_cache
def objective_of(text: str) -> Objective:
    """Return the objective that a text of :func:`parse_objective` stands for."""
    name, given = next(iter(json.loads(text).items())) if text.startswith("{") else (text, {})
    kind = objectives()[name]
    return kind(kind.settings_type.model_validate(given))
