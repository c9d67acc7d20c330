"""Ready-made study files: what ``rankscope init`` writes and ``rankscope quickstart`` runs.

Each preset is one commented YAML file in ``config/studies``, so that what is written, what is run
and what is tested are the same text.
"""

import difflib
import os
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from rankscope.config.schema import ModelConfig
from rankscope.config.section import shown
from rankscope.config.yaml_nodes import dump_text
from rankscope.errors import BadInput

PRESETS: dict[str, str] = {
    "default": "your own rows: five LoRA ranks and full fine-tuning, retention on MMLU",
    "pocket": "the built-in study: offline, minutes on a laptop",
    "paper": "the whole protocol of arXiv 2512.15634 on one base model",
    "rank-sanity": "ranks 8, 32 and 64: does any beat the untuned model?",
    "retention-probe": "LoRA and full fine-tuning on general benchmarks: what was forgotten?",
    "cross-domain": "train on A, test on B and the other way round",
}
"""What each preset is for, by name."""

MODEL_KEY = "model: "


def study_template(preset: str, model: str | None = None) -> str:
    """The commented study file of a preset, ready to be written.

    model: put in place of the preset's own: a short form of the ``model`` key, such as ``pocket``,
    ``./folder`` or ``owner/name``; ``model_in_study`` makes one from a folder's path.

    Raises BadInput for an unknown preset, for text that is no model, and for another model than
    ``pocket`` in the pocket preset, whose tasks are in that model's own words.
    """
    if preset not in PRESETS:
        close = difflib.get_close_matches(preset, PRESETS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(PRESETS)}"
        raise BadInput(f"preset {shown(preset)}: there is none; {hint}")
    file = resources.files("rankscope.config") / "studies" / f"{preset}.yaml"
    text = file.read_text(encoding="utf-8")
    if model is None:
        return text
    checked = checked_model(model)
    if preset == "pocket" and not checked.pocket:
        raise BadInput("the pocket preset only fits the pocket model: choose another preset")
    return "".join(
        f"{MODEL_KEY}{dump_text(model)}\n" if line.startswith(MODEL_KEY) else line
        for line in text.splitlines(keepends=True)
    )


def model_in_study(model: str, study_file: Path) -> str:
    """What to write under ``model`` in ``study_file`` for a model named on the command line.

    A folder that is there becomes a path from the study file's own folder, since that is where a
    study file's paths start; anything else is left as it is.
    """
    folder = Path(os.path.expanduser(model))  # noqa: PTH111  leaves unknown users as they are
    if not folder.is_dir():
        return model
    try:
        relative = os.path.relpath(folder.absolute(), study_file.absolute().parent)
    except ValueError:  # another drive on Windows
        return str(folder.absolute())
    return relative if relative.startswith(".") else f"./{relative}"


def checked_model(model: str) -> ModelConfig:
    """The model that a short form names. Raises BadInput where it names none."""
    try:
        return ModelConfig.model_validate(model)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        reason = details["ctx"]["error"] if details["type"] == "value_error" else details["msg"]
        raise BadInput(f"model: {reason}") from error
