"""Rankscope's own side: all trials in one group; and what each part that makes it fast contributes.

A part is switched off by putting back what others do in its place; the losses stay the same.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from race import Rows, StepClock, Times, parity_of, tolerance
from rankscope.config.study import ModelConfig, TrainConfig
from rankscope.device import limit_kernel_cache
from rankscope.models.attention import varlen
from rankscope.models.attention.varlen import AttentionPlan
from rankscope.models.base import Base, RowBatch
from rankscope.models.compiled import use_kernels, why_not
from rankscope.models.load import load_base
from rankscope.models.multi_lora import AdapterSlice, AdapterSpan, MultiLoraProduct
from rankscope.records import TrialSpec
from rankscope.train import step
from rankscope.train.loop import train_group
from rankscope.train.trial_state import TrialState

STEPS_PER_PART = 1
"""Optimizer steps of every run with one part off."""


def packed(rows: Rows) -> Times:
    """Train the trials in one group."""
    times = Times()
    train(load(rows), rows.setting.specs(), rows, rows.setting.protocol(), times)
    return times


def load(rows: Rows) -> Base:
    """The base, as a study loads it."""
    limit_kernel_cache()
    setting = rows.setting
    config = ModelConfig(path=setting.model, prompt_format="plain")
    base = load_base(config, setting.torch_device(), setting.torch_dtype())
    if reason := why_not(setting.kernels, base.device):
        raise SystemExit(f"--kernels {setting.kernels}: {reason}")
    use_kernels(base.model, setting.kernels)
    return base


def train(
    base: Base, group: Sequence[TrialSpec], rows: Rows, protocol: TrainConfig, times: Times
) -> Sequence[TrialState]:
    """Train one group, add what it measured, and return its trials."""
    clock = StepClock(base.device)
    result = train_group(base, group, rows.encoded, protocol, progress=lambda *_: clock.step_done())
    for state in result.states:
        if state.failure is not None:
            raise RuntimeError(f"{state.spec.trial_id}: {state.failure}")
        times.losses[state.spec.trial_id] = [point.loss for point in state.losses]
        times.tokens += rows.timed_tokens(state.spec)
    times.seconds += clock.seconds_after(rows.setting.warmup_steps)
    base.multi_lora.clear()
    return result.states


# --- where the time goes

KINDS = {
    "products": "aten::(addmm_?|mm|bmm|baddbmm_?)",
    "softmax": "aten::_softmax.*",
    "copies": "aten::(copy_|cat|index_select|index_fill_|fill_|zero_|contiguous|clone)",
    "compiled": ".*(CompiledFxGraph|Liger|rms_norm_|swiglu_|geglu_).*|triton.*",
    "other operations": "aten::.*",
    "Python and dispatch": ".*",
}
"""Kinds of work by the first pattern that the profiler's name of an event matches whole."""


def shares(rows: Rows) -> Times:
    """The share of a second step's processor time that each kind of work takes, in ``notes``."""
    base, specs = load(rows), rows.setting.specs()
    short = replace(rows, setting=replace(rows.setting, steps=1, warmup_steps=0))
    protocol = rows.setting.protocol().model_copy(
        update={"max_steps": 1, "schedule": "constant", "warmup_fraction": 0.0}
    )
    train(base, specs, short, protocol, Times())
    with torch.profiler.profile() as profiler:
        train(base, specs, short, protocol, Times())
    taken = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages():
        kind = next(kind for kind, name in KINDS.items() if re.fullmatch(name, event.key))
        taken[kind] += event.self_device_time_total or event.self_cpu_time_total
    whole = sum(taken.values())
    return Times(notes={kind: time / whole for kind, time in taken.items()})


# --- what each part contributes -------------------------------------------------------------------


def contributions(rows: Rows) -> Times:
    """How many times as slow the group is with one part off, in ``notes``.

    All runs are in one process, so that every one is warm; the whole runs first, once more to be
    timed, and last, since a machine drifts: its time is the mean of those two.

    Raises:
        ValueError: a run with a part off computed other losses.
    """
    steps = STEPS_PER_PART
    # A run that is all warm-up would leave every weight as it was.
    short = replace(rows, setting=replace(rows.setting, steps=steps, warmup_steps=0))
    protocol = rows.setting.protocol().model_copy(
        update={
            "max_steps": steps,
            "schedule": "constant",
            "warmup_fraction": 0.0,
            "lora_implementation": "loop",  # ``by_autograd`` stands for its slices
        }
    )
    base, specs = load(rows), rows.setting.specs()

    def run(groups: Sequence[Sequence[TrialSpec]], protocol: TrainConfig) -> Times:
        times = Times()
        for group in groups:
            train(base, group, short, protocol, times)
        return times

    run([specs], protocol)
    whole = [run([specs], protocol)]
    without: dict[str, Times] = {}
    for name, switched_off in parts(rows).items():
        with switched_off:
            without[name] = run([specs], protocol)
    micro_batches = {"batch_tokens": micro_batch_tokens(rows)}
    without["joined micro-batches"] = run([specs], protocol.model_copy(update=micro_batches))
    without["grouping"] = run([[spec] for spec in specs], protocol)
    whole.append(run([specs], protocol))
    parity = parity_of(whole[0], without.values())
    if not parity <= tolerance(rows.setting.model, base.model.dtype):
        raise ValueError(f"a part changes losses by {parity:.2g}: its time says nothing")
    seconds = sum(times.seconds for times in whole) / 2
    notes: dict[str, object] = {name: times.seconds / seconds for name, times in without.items()}
    return Times(notes=notes)


def micro_batch_tokens(rows: Rows) -> int:
    """Tokens of one micro-batch of every trial, on average."""
    mean = sum(len(row.input_ids) for row in rows.encoded) / len(rows.encoded)
    return max(64, round(mean * rows.setting.batch_size * len(rows.setting.trials)))


def parts(rows: Rows) -> dict[str, AbstractContextManager[object]]:
    """Name of each part -> what, while entered, puts in its place what it spares."""
    padding = partial(padded, rows_per_micro_batch=rows.setting.batch_size)
    return {
        "padding-free": seen_as(padding),
        "logits at labels": logits_everywhere(),
        "varlen attention": with_stock_attention(),
        "written-out adapters": patch.object(MultiLoraProduct, "apply", by_autograd),
        "loss in blocks": patch.object(step, "mean_losses", stock_losses),
    }


def seen_as(change: Callable[[RowBatch], RowBatch]) -> AbstractContextManager[object]:
    """Let the base see every batch changed; logits come out for the kept positions as before."""
    logits = Base.logits

    def changed(base: Base, batch: RowBatch, *args: Any, **kwargs: Any) -> Tensor:
        return logits(base, change(batch), *args, **kwargs)

    return patch.object(Base, "logits", changed)


def padded(batch: RowBatch, rows_per_micro_batch: int) -> RowBatch:
    """Every adapter's rows in micro-batches padded to their longest row.

    Padding repeats the row's last token; it stands to its right, where causality hides it.
    """
    ends = torch.tensor(batch.lengths).cumsum(0).tolist()
    source: list[int] = []  # of each new token the old one
    place = torch.zeros(ends[-1], dtype=torch.int64)  # of each old token the new one
    lengths: list[int] = []
    segments: list[AdapterSpan] = []
    for adapter_name, start, stop in batch.segments:
        rows = [(end - n, end) for n, end in zip(batch.lengths, ends, strict=True)]
        rows = [row for row in rows if start <= row[0] < stop]
        begun = len(source)
        for i in range(0, len(rows), rows_per_micro_batch):
            micro = rows[i : i + rows_per_micro_batch]
            width = max(end - first for first, end in micro)
            for first, end in micro:
                place[first:end] = torch.arange(len(source), len(source) + end - first)
                source += [*range(first, end), *[end - 1] * (width - end + first)]
                lengths.append(width)
        segments.append(AdapterSpan(adapter_name, begun, len(source)))
    index = torch.tensor(source, device=batch.input_ids.device)
    return replace(
        batch,
        input_ids=batch.input_ids[:, index],
        position_ids=batch.position_ids[:, index],
        lengths=tuple(lengths),
        segments=tuple(segments),
        keep=place.to(batch.keep.device)[batch.keep],
    )


@contextmanager
def logits_everywhere() -> Iterator[None]:
    """The output layer at every position; the labeled ones are picked out of the logits."""
    logits = Base.logits

    def everywhere(base: Base, batch: RowBatch, *args: Any, **kwargs: Any) -> Tensor:
        every = torch.arange(batch.input_ids.shape[1], device=batch.keep.device)
        return logits(base, replace(batch, keep=every), *args, **kwargs)[batch.keep]

    # The loss would compute the logits itself, at labels alone.
    whole = patch.object(step, "output_layer_apart", lambda model: nullcontext())
    with patch.object(Base, "logits", everywhere), whole:
        yield


def stock_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    attention_plan: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The stock causal attention on each row by itself."""
    assert attention_plan is not None
    lengths = attention_plan.lengths.tolist()
    outs = [
        F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        for q, k, v in zip(*(x.split(lengths, 2) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(outs, 2).transpose(1, 2), None


@contextmanager
def with_stock_attention() -> Iterator[None]:
    """Stock attention under the name of Rankscope's own."""
    AttentionInterface.register(varlen.NAME, stock_attention)
    try:
        yield
    finally:
        varlen.register_attention()


def by_autograd(
    x: Tensor, linear: nn.Linear, slices: Sequence[AdapterSlice], *parameters: nn.Parameter
) -> Tensor:
    """(N, in) -> (N, out): W x + s B A x of every adapter's tokens, left to autograd."""
    y = F.linear(x, linear.weight, linear.bias)
    outs = []
    for part, a, b in zip(slices, parameters[::2], parameters[1::2], strict=True):
        hidden = part.rows(x) @ a.to(x.dtype).T
        outs.append(part.rows(y) + part.adapter.scaling * (hidden @ b.to(x.dtype).T))
    return torch.cat(outs)


def stock_losses(
    states: Tensor,
    targets: Tensor,
    counts: Sequence[int],
    divisors: Sequence[float],
    head: nn.Linear | None = None,
    temperatures: Sequence[float] = (),
) -> Tensor:
    """PyTorch's cross-entropy on float32 logits, all at once, by adapter; at a temperature of 1."""
    logits = states if head is None else F.linear(states, head.weight, head.bias)
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    sums = torch.stack([part.sum() for part in losses.split(list(counts))])
    return sums / torch.tensor(divisors, device=logits.device)
