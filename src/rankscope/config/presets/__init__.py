"""Ready-made study files: ``rankscope init`` writes them, ``rankscope quickstart`` runs one.

Each preset is one commented YAML file in this folder, so that the text that is written, run and
tested is the same.
"""

import os
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from rankscope.config.section import short_repr
from rankscope.config.study import ModelConfig
from rankscope.config.yaml_lines import dump_text
from rankscope.errors import UserError, did_you_mean

PRESETS: dict[str, str] = {
    "default": "your own rows: five LoRA ranks and full fine-tuning, retention on MMLU",
    "pocket": "the built-in study: offline, minutes on a laptop",
    "paper": "the whole protocol of arXiv 2512.15634 on one base model",
    "rank-sanity": "ranks 8, 32 and 64: does any beat the untuned model?",
    "retention-probe": "LoRA and full fine-tuning: what do they forget on general benchmarks?",
    "cross-domain": "train on A, test on B, and vice versa",
    "alpha": "alpha varied independently of the rank, and its effect on the weights",
    "learning-rate": "learning rates from 1e-5 to 1e-3 at three ranks, and for full fine-tuning",
    "high-rank": "ranks to 512, scaled by alpha / r and by alpha / sqrt(r)",
    "methods": "LoRA variants, one PEFT method and full fine-tuning",
    "base-vs-instruct": "the same study on a base model and on its instruction-tuned twin",
    "mitigation": "replay, KL to the base, decay and early stopping, against a scaled-down update",
    "heads": "which attention heads change, and the effect of removing each",
}
"""Purpose of each preset, by name."""

ON_POCKET = "on_pocket"
"""Folder of the presets' variants for the pocket model."""

OWN_ROWS = "    train: "
"""Start of the line with the user's training rows, in presets that have one."""


def study_template(
    preset: str, model: str | None = None, data: str | None = None, data_dir: str | None = None
) -> str:
    """The commented study file of a preset, ready to be written.

    Args:
        preset: name of the preset.
        model: replaces the preset's model; a short form of the ``model`` key, such as ``./folder``
            or ``owner/name`` (``model_for_study_file`` makes one from a folder's path). ``pocket``
            gives another file: the same question in tasks and learning rates that suit that model
            (with ``data`` it gives the preset's own file).
        data: file with the user's training rows, as the study file will name it; only for presets
            that train on the user's rows.
        data_dir: folder of the named tasks, as the study file will name it.

    Raises:
        UserError: an unknown preset, a text that is not a model, another model than ``pocket`` in
            the pocket preset, or ``data`` for a preset of named tasks.
    """
    if preset not in PRESETS:
        hint = did_you_mean(preset, PRESETS) or f"; expected one of {', '.join(PRESETS)}"
        raise UserError(f"no preset is called {short_repr(preset)}{hint}")
    is_pocket = model is not None and parse_model(model).pocket
    if model is not None and preset == "pocket" and not is_pocket:
        raise UserError("the pocket preset only fits the pocket model: choose another preset")
    folder = resources.files("rankscope.config.presets")
    if is_pocket and data is None and preset != "pocket":
        folder = folder / ON_POCKET
    text = (folder / f"{preset}.yaml").read_text(encoding="utf-8")
    if model is not None:
        text = replace_line(text, "model: ", f"model: {dump_text(model)}")
    if data is not None:
        if OWN_ROWS not in text:
            raise UserError(
                f"preset {preset!r} trains on named tasks, not on your own rows: leave --data out, "
                "or choose the preset 'default'"
            )
        text = replace_line(text, OWN_ROWS, f"{OWN_ROWS}{dump_text(data)}")
    if data_dir is not None:
        text = replace_line(text, "# data_dir: ", None)
        text = replace_line(text, "data_dir: ", None)
        text = text.rstrip("\n") + f"\n\ndata_dir: {dump_text(data_dir)}\n"
    return text


def replace_line(text: str, start: str, line: str | None) -> str:
    """Replace every line that starts with ``start``; None removes it."""
    replaced = [line if old.startswith(start) else old for old in text.splitlines()]
    return "\n".join(new for new in replaced if new is not None) + "\n"


def model_for_study_file(model: str, study_file: Path) -> str:
    """The ``model`` of a study file for a model named on the command line.

    The path of an existing folder becomes relative to the study file; other text is unchanged.
    """
    folder = Path(os.path.expanduser(model))  # noqa: PTH111  Path.expanduser fails on unknown users
    return path_for_study_file(folder, study_file) if folder.is_dir() else model


def path_for_study_file(path: Path, study_file: Path) -> str:
    """A path relative to the folder of ``study_file``, where its relative paths start."""
    try:
        relative = os.path.relpath(path.absolute(), study_file.absolute().parent)
    except ValueError:  # another drive on Windows
        return str(path.absolute())
    return relative if relative.startswith(".") else f"./{relative}"


def parse_model(model: str) -> ModelConfig:
    """The model of a short form."""
    try:
        return ModelConfig.model_validate(model)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        reason = details["ctx"]["error"] if details["type"] == "value_error" else details["msg"]
        raise UserError(f"model: {reason}") from error
