"""Every sentence of the advice, from ``catalogue.toml``, where the entries are explained."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

_TEXTS = tomllib.loads(Path(__file__).with_name("catalogue.toml").read_text("utf-8"))


def _one_line(texts: Mapping[str, str]) -> dict[str, str]:
    return {name: " ".join(text.split()) for name, text in texts.items()}


OUTCOMES = {name: _one_line(texts) for name, texts in _TEXTS["outcomes"].items()}
"""How one training task ends: ``because``, in a few words, and the ``explanation``."""
CLAUSES = _one_line(_TEXTS["clauses"])
"""Parts of explanations and of longer messages."""
CLAIMS = _one_line(_TEXTS["claims"])
"""The two claims of an answer."""
METHOD = " ".join(_TEXTS["method"].split())
"""How an arm is chosen, one paragraph."""
SCALES = _one_line(_TEXTS["scales"])
"""How forgetting is weighed against the gain, one sentence, by the name of the scale."""
CHECKS = {name: _one_line(texts) for name, texts in _TEXTS["checks"].items()}
"""What a trust check means, by its name, then by what was found."""
CATALOGUE = {
    name: (kind, text)
    for kind, texts in _TEXTS["messages"].items()
    for name, text in _one_line(texts).items()
}
"""Name of a message -> its kind and text."""
