"""The registry of training objectives: the core's, those of extensions and of other packages.

One file is all that an objective needs. Study files ask here. Import it freely: it loads neither
torch nor transformers.
"""

import json
from functools import cache
from typing import Any, ClassVar

from rankscope.config.section import ConfigSection, Unfit, short_repr
from rankscope.errors import did_you_mean
from rankscope.hashing import canonical_json
from rankscope.registry import parts

SFT = "sft"  # The default


class ObjectiveKind:
    """An objective as study files know it; ``objective.py`` adds its work."""

    name: ClassVar[str]
    settings_type: ClassVar[type[ConfigSection]] = ConfigSection


@cache
def objectives() -> dict[str, type[ObjectiveKind]]:
    """Return all objectives by name: ``sft``, the default, first."""
    kinds: dict[str, type[ObjectiveKind]] = parts(ObjectiveKind, __name__)
    return {SFT: kinds[SFT], **kinds}


def parse_objective(value: Any) -> str:
    """Parse a name, ``{NAME: {KEY: VALUE}}``, or the text that this returns.

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
        rule = f"one of {', '.join(objectives())}, or one with settings: {{NAME: {{KEY: VALUE}}}}"
        raise Unfit(short_repr(value), rule, hint)
    settings = objectives()[name].settings_type.model_validate(given or {})
    chosen = settings.model_dump(mode="json", exclude_defaults=True)
    return canonical_json({name: chosen}) if chosen else name
