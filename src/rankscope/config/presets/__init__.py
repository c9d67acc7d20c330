"""Ready-made study files: what ``rankscope init`` writes and ``rankscope quickstart`` runs.

Each preset is one commented YAML file in ``config/presets``, so that what is written, what is run
and what is tested are the same text.
"""

import difflib
import os
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from rankscope.config.section import shown
from rankscope.config.study import ModelConfig
from rankscope.config.yaml_lines import dump_text
from rankscope.errors import UserError

PRESETS: dict[str, str] = {
    "default": "your own rows: five LoRA ranks and full fine-tuning, retention on MMLU",
    "pocket": "the built-in study: offline, minutes on a laptop",
    "paper": "the whole protocol of arXiv 2512.15634 on one base model",
    "rank-sanity": "ranks 8, 32 and 64: does any beat the untuned model?",
    "retention-probe": "LoRA and full fine-tuning on general benchmarks: what was forgotten?",
    "cross-domain": "train on A, test on B and the other way round",
    "alpha": "alpha apart from the rank, and what it does to the weights",
    "learning-rate": "learning rates from 1e-5 to 1e-3 at three ranks, and full fine-tuning's",
    "high-rank": "ranks to 512, scaled by alpha / r and by alpha / sqrt(r)",
    "methods": "LoRA's kin, one method of PEFT's and full fine-tuning",
    "base-vs-instruct": "the same study on a base model and on its instruction-tuned twin",
    "mitigation": "replay, KL to the base, decay and early stopping beside a milder update",
    "heads": "which attention heads change, and what each does when it is switched off",
}
"""What each preset is for, by name."""

ON_POCKET = "on_pocket"
"""Folder of the presets as they are on the pocket model."""

OWN_ROWS = "    train: "
"""Begins the line of a preset that names the user's own training rows."""


def study_template(
    preset: str, model: str | None = None, data: str | None = None, data_dir: str | None = None
) -> str:
    """The commented study file of a preset, ready to be written.

    model: put in place of the preset's own: a short form of the ``model`` key, such as ``./folder``
    or ``owner/name``; ``model_for_study_file`` makes one from a folder's path. With ``pocket`` the whole
    file is another: the same question in tasks and learning rates that suit that model; with own
    rows, which are then in its words, it is the preset's own file.
    data: file with the user's own training rows, as the study file will name it; only in presets
    that train on own rows.
    data_dir: folder of the named tasks, as the study file will name it.

    Raises UserError for an unknown preset, for text that is no model, for another model than
    ``pocket`` in the pocket preset, whose tasks are in that model's own words, and for ``data`` in
    a preset of named tasks.
    """
    if preset not in PRESETS:
        close = difflib.get_close_matches(preset, PRESETS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(PRESETS)}"
        raise UserError(f"preset {shown(preset)}: there is none; {hint}")
    on_pocket = model is not None and checked_model(model).pocket and data is None
    studies = resources.files("rankscope.config.presets")
    folder = studies / ON_POCKET if on_pocket and preset != "pocket" else studies
    text = (folder / f"{preset}.yaml").read_text(encoding="utf-8")
    if model is not None:
        if preset == "pocket" and not checked_model(model).pocket:
            raise UserError("the pocket preset only fits the pocket model: choose another preset")
        checked_model(model)
        text = with_line(text, "model: ", f"model: {dump_text(model)}")
    if data is not None:
        if OWN_ROWS not in text:
            raise UserError(
                f"preset {preset!r} trains on named tasks, not on own rows: leave --data out, or "
                "choose the preset 'default'"
            )
        text = with_line(text, OWN_ROWS, f"{OWN_ROWS}{dump_text(data)}")
    if data_dir is not None:
        text = with_line(text, "# data_dir: ", "")
        text = with_line(text, "data_dir: ", "")
        text = text.rstrip("\n") + f"\n\ndata_dir: {dump_text(data_dir)}\n"
    return text


def with_line(text: str, start: str, line: str) -> str:
    """The text with every line that begins with ``start`` replaced, or removed for an empty one."""
    lines = text.splitlines()
    kept = [line if found.startswith(start) else found for found in lines]
    return "\n".join(n for n, found in zip(kept, lines, strict=True) if n or not found) + "\n"


def model_for_study_file(model: str, study_file: Path) -> str:
    """What to write under ``model`` in ``study_file`` for a model named on the command line.

    A folder that is there becomes a path from the study file's own folder; anything else is left
    as it is.
    """
    folder = Path(os.path.expanduser(model))  # noqa: PTH111  leaves unknown users as they are
    return path_for_study_file(folder, study_file) if folder.is_dir() else model


def path_for_study_file(path: Path, study_file: Path) -> str:
    """A path as ``study_file`` must name it: from its own folder, where its paths start."""
    try:
        relative = os.path.relpath(path.absolute(), study_file.absolute().parent)
    except ValueError:  # another drive on Windows
        return str(path.absolute())
    return relative if relative.startswith(".") else f"./{relative}"


def checked_model(model: str) -> ModelConfig:
    """The model that a short form names. Raises UserError where it names none."""
    try:
        return ModelConfig.model_validate(model)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        reason = details["ctx"]["error"] if details["type"] == "value_error" else details["msg"]
        raise UserError(f"model: {reason}") from error
