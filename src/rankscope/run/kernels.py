"""``train.kernels``: chosen once for a study, by what a few steps show on its machine."""

from collections.abc import Callable
from dataclasses import replace

import torch

from rankscope.config.section import Kernels
from rankscope.device import release_freed_memory
from rankscope.errors import UserError, first_line
from rankscope.models.base import Base
from rankscope.models.compiled import compute_plainly, continue_plainly, use_kernels, why_not
from rankscope.records import TrialSpec
from rankscope.run.costs import COMPILE_SECONDS
from rankscope.run.machines import (
    PROBE_ROWS,
    Machine,
    fastest_step,
    probe_trial,
    probed_base,
    with_layers,
    with_rows,
)
from rankscope.run.prepared import PreparedStudy
from rankscope.train.pass_memory import FEWEST_LAYERS

SAVED_SECONDS = 1.7e-8
"""Of compiled functions, in training, per token, layer and feature: SmolLM2 in bfloat16 on two
cores with AMX, 8.2 s a step of 5,380 tokens to 6.6."""
WORTH_A_TRY = 10 * COMPILE_SECONDS  # Estimated saving
LOSS_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Relative, of losses."""


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


def planned_kernels(study: PreparedStudy, machine: Machine | None) -> str:
    """What a plan takes ``train.kernels`` to be, as a sentence; on this machine they are chosen."""
    kernels = study.config.train.kernels
    if kernels == "plain" or (kernels == "auto" and _is_elsewhere(study)):
        return "train.kernels: plain"
    if kernels == "auto":
        return "train.kernels: plain is assumed; auto chooses on the device itself"
    if machine is None and (reason := why_not(kernels, study.device)):
        return f"train.kernels: {kernels}, but {reason}: a run is refused"
    counted = f"train.kernels: {kernels}; each start counts {COMPILE_SECONDS:.0f} s to compile"
    return counted if machine is None else f"{counted}, and the published share stays"


def choose_kernels(study: PreparedStudy) -> tuple[Kernels, str]:
    """How a study that has no results yet computes norms, rotary embeddings and gates, and a note
    if it might gain by compiling them but cannot.

    The fastest, if adapters train on this machine, if the saving known from another machine is
    worth a try, and if steps of a few layers here show that the study saves more than compiling
    takes.
    """
    shape = study.base.config.get_text_config()
    lora = [t for t in study.trials if not t.trains_alone and t.trains]
    tokens = sum(map(study.training_tokens, lora))
    estimate = SAVED_SECONDS * tokens * shape.num_hidden_layers * shape.hidden_size
    if estimate < WORTH_A_TRY or _is_elsewhere(study) or study.device.type not in ("cpu", "cuda"):
        return "plain", ""
    continue_plainly(None)  # an earlier study of this process may have left its reporter
    saved: dict[Kernels, float] = {"plain": 0.0}
    ways: tuple[Kernels, ...] = ("liger", "compiled")
    for way in ways:  # The last one's reason is noted
        reason = why_not(way, study.device)
        try:
            saved[way] = 0.0 if reason else _saved_per_token(study, lora[0], way)
        except Exception as error:  # the run itself reports any other error
            reason = first_line(error)
    release_freed_memory()
    best = max(saved, key=saved.__getitem__)
    if saved[best] * tokens > COMPILE_SECONDS:
        return best, ""
    slower = "train.kernels: plain, as nothing can be compiled"
    return "plain", f"{slower}: {reason}" if reason else ""


def _is_elsewhere(study: PreparedStudy) -> bool:
    """Whether this machine cannot show how fast the study trains."""
    return study.config.runs_elsewhere or study.config.train.devices > 1


def _saved_per_token(study: PreparedStudy, trial: TrialSpec, kernels: Kernels) -> float:
    """Seconds that kernels save in training, all layers together; 0 if the losses are not equal but
    for rounding."""
    depth = int(study.base.config.get_text_config().num_hidden_layers)
    layers, trials = min(depth, FEWEST_LAYERS), [probe_trial(trial, trial.rank or 1, 0)]
    rows = study.data.rows[trial.task]
    num_rows = max(1, PROBE_ROWS * len(rows.rows) // rows.num_tokens)
    probed = with_layers(with_rows(study, trials, num_rows), layers)
    base = probed_base(probed)
    plain, expected = fastest_step(base, probed)
    use_kernels(base.model, kernels)
    fastest_step(base, probed)  # compiles
    fast, losses = fastest_step(base, probed)
    compute_plainly(base.model)
    plain = min(plain, fastest_step(base, probed)[0])
    largest = LOSS_TOLERANCE[study.dtype]
    is_equal = all(abs(a - b) <= largest * b for a, b in zip(losses, expected, strict=True))
    return (plain - fast) * depth / layers if is_equal else 0.0
