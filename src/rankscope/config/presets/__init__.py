"""Ready-made study files: ``rankscope init`` writes them, ``rankscope quickstart`` runs one.

Each preset is one commented YAML file in this folder, or in that of an analysis, so that the text
that is written, run and tested is the same. Its first line says what it is for.
"""

import tomllib
from pathlib import Path

_ANALYSES = Path(__file__).parents[2] / "analyses"
_FILES = [*Path(__file__).parent.glob("*.yaml"), *_ANALYSES.glob("*/presets/*.yaml")]
_FILES.sort(key=lambda file: (file.stem not in ("default", "pocket"), file.stem))
_BY_NAME = {file.stem: file for file in _FILES}
PRESETS: dict[str, str] = {
    name: file.read_text("utf-8").partition("\n")[0].removeprefix("# Purpose: ")
    for name, file in _BY_NAME.items()
}
"""Purpose of each preset, by name."""
ON_POCKET = tomllib.loads(Path(__file__).with_name("on_pocket.toml").read_text("utf-8"))
"""What a preset becomes on the pocket model."""


def preset_text(name: str) -> str:
    """The study file of a preset."""
    return _BY_NAME[name].read_text("utf-8")
