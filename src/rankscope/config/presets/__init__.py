"""Ready-made study files: ``rankscope init`` writes them, ``rankscope quickstart`` runs one.

Each preset is one commented YAML file in this folder, or in that of an analysis, so that the text
that is written, run and tested is the same. Its first line says what it is for.
"""

from pathlib import Path

_EXTENSIONS = Path(__file__).parents[2] / "extensions"
_FILES = [*Path(__file__).parent.glob("*.yaml"), *_EXTENSIONS.glob("*/presets/*.yaml")]
_FILES.sort(key=lambda file: (file.stem not in ("default", "pocket"), file.stem))
_BY_NAME = {file.stem: file for file in _FILES}
PRESETS: dict[str, str] = {
    name: file.read_text("utf-8").partition("\n")[0].removeprefix("# Purpose: ")
    for name, file in _BY_NAME.items()
}
"""Purpose of each preset, by name."""


def preset_text(name: str, *, on_pocket: bool = False) -> str:
    """The study file of a preset, or its variant for the pocket model."""
    file = _BY_NAME[name]
    return (file.parent / "on_pocket" / file.name if on_pocket else file).read_text("utf-8")
