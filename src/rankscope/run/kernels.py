"""``train.kernels``: chosen once for a study, by the tokens that it trains on."""

from collections.abc import Callable
from dataclasses import replace

from rankscope.config.section import Kernels
from rankscope.errors import UserError
from rankscope.models.base import Base
from rankscope.models.compiled import continue_plainly, use_kernels, why_not
from rankscope.run.costs import COMPILE_SECONDS
from rankscope.run.prepared import PreparedStudy

SAVED_SECONDS = 1.7e-8
"""Saved by compiled functions in training, per token, layer and feature: SmolLM2 in bfloat16 on two
cores with AMX, 8.2 s a step of 5,380 tokens to 6.6."""
WORTH_COMPILING = 10 * COMPILE_SECONDS  # Estimated saving


def with_kernels(study: PreparedStudy, before: Kernels | None) -> PreparedStudy:
    """The study with ``train.kernels`` chosen, once for all its results. ``before``: the choice of
    earlier runs."""
    notes = study.notes
    kernels = study.config.train.kernels
    is_open = study.kernels_are_open or kernels == "auto"
    if kernels == "auto":
        kernels, note = choose_kernels(study) if before is None else (before, "")
        notes = (*notes, note) if note else notes
    elif before not in (None, kernels):
        mixed = f"train.kernels: {kernels} now, {before} before: results differ by rounding"
        notes = (*notes, mixed)
    train = study.config.train.model_copy(update={"kernels": kernels})
    config = study.config.model_copy(update={"train": train})
    return replace(study, config=config, notes=notes, kernels_are_open=is_open)


def load_for(study: PreparedStudy, load: Callable[[], Base], note: Callable[[str], None]) -> Base:
    """The base, computed as results are; plainly, with a note, if its kernels cannot be had here
    and the study file leaves them open. Raises UserError: it asks for them."""
    kernels = study.config.train.kernels
    assert kernels != "auto", "chosen by with_kernels"
    reason = why_not(kernels, study.device)
    if kernels != "plain" and study.config.train.devices > 1:
        reason = "a group trains on several devices"
    if reason and study.kernels_are_open:
        note(f"train.kernels: plain, not {kernels} as chosen, which differs by rounding: {reason}")
        return load()
    if reason:
        do = "make it work, or set 'plain': what is stored and what is new then differ by rounding"
        raise UserError("train.kernels", f"'{kernels}', but {reason}", do=do)
    base = load()
    continue_plainly(note if study.kernels_are_open else None)
    use_kernels(base.model, kernels)
    return base


def choose_kernels(study: PreparedStudy) -> tuple[Kernels, str]:
    """How a study that has no results yet computes norms, rotary embeddings and gates, and a note
    if it would gain by compiling them but cannot.

    They are compiled where adapters train on this machine's processor, each group on one device,
    and the counted work saves ten times what compiling takes. On a GPU nothing was measured.
    """
    shape = study.base.config.get_text_config()
    tokens = sum(study.training_tokens(t) for t in study.trials if t.trains and not t.trains_alone)
    saved = SAVED_SECONDS * tokens * shape.num_hidden_layers * shape.hidden_size
    is_elsewhere = study.config.runs_elsewhere or study.config.train.devices > 1
    if saved < WORTH_COMPILING or is_elsewhere or study.device.type != "cpu":
        return "plain", ""
    reason = why_not("compiled", study.device)
    slower = f"train.kernels: plain, as nothing can be compiled: {reason}"
    return ("plain", slower) if reason else ("compiled", "")
