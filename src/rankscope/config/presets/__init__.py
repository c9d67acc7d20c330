"""Ready-made study files: ``rankscope init`` writes them, ``rankscope quickstart`` runs one.

Each preset is one commented YAML file in this folder, or in that of an extension, so that the text
that is written, run and tested is the same. Its first line, what it is for, is for lists of them.
"""

import tomllib
from pathlib import Path

_EXTENSIONS = Path(__file__).parents[2] / "extensions"
_FILES = [*Path(__file__).parent.glob("*.yaml"), *_EXTENSIONS.glob("*/presets/*.yaml")]
_FILES.sort(key=lambda file: (file.stem not in ("default", "pocket"), file.stem))
_READ = {file.stem: file.read_text("utf-8").partition("\n") for file in _FILES}
PRESETS = {name: first.removeprefix("# Purpose: ") for name, (first, _, _) in _READ.items()}
"""Purpose of each preset, by name."""
PRESET_TEXTS = {name: text for name, (_, _, text) in _READ.items()}
"""Study file of each preset, by name."""
ON_POCKET = tomllib.loads(Path(__file__).with_name("on_pocket.toml").read_text("utf-8"))
"""Values that a preset takes on the pocket model."""
