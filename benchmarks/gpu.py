"""Training adapters on a GPU, in one command of less than eight minutes.

    python benchmarks/gpu.py [--results benchmarks/results] [--tiny]

First the parity of both implementations of LoRA: on the same weights and rows the gradients of the
loop and of grouped products are compared with those in float32. Then, on random weights in the
shapes of a 1B and an 8B Llama, made on the device: tokens per second, utilization, launches of a
pass, and peak memory against what ``plan`` estimates; then parts switched one by one: compiled
functions and float16 in training, and what is left out while answers are written. ``--results``
also writes the dated page.
``--tiny`` does all of it on shapes that a processor trains in seconds; its figures say nothing.
"""

import argparse
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from race import announce
from random_models import SEED, random_base, random_rows
from rankscope.config.study import TrainConfig
from rankscope.data.encode import EncodedRow
from rankscope.device import (
    available_memory_bytes,
    choose_device,
    dtype_name,
    peak_memory_bytes,
    reset_peak_memory,
)
from rankscope.errors import UserError
from rankscope.evaluate.continuous_batching import Generation, GenerationLimits, RunningBatch
from rankscope.models import base as base_module
from rankscope.models.base import Base
from rankscope.models.grouped_lora import choose_lora_implementation
from rankscope.models.kernels import PLAIN, all_kernels, use_kernels
from rankscope.models.multi_lora import MultiLora
from rankscope.records import TrialSpec
from rankscope.run.begin import prepare_process
from rankscope.run.machines import MACHINES
from rankscope.run.versions import provenance
from rankscope.train.loop import train_group
from rankscope.train.memory import MemoryModel, RowCounts
from rankscope.train.step import compute_gradients
from rankscope.train.trial_state import TrialState, start_trials
from training import ATTENTION, StepClock

DTYPE = torch.bfloat16
RANKS = (8, 16, 32, 64, 128)
"""Several adapters have these in turn; a single one has 16, as in published figures."""
SQUARE = {"cpu": 2048, "cuda": 8192}
"""Side of the square product. On a processor 1024 to 4096 were equally fast, a GPU wants more."""
IMPLEMENTATIONS = ("loop", "grouped_mm")
WARMUP_STEPS, TIMED_STEPS = 2, 3
ANSWERS = 8  # Of each adapter
CASES_SHARE = 0.7  # Of the time, before the parts
LAUNCH_TOKENS = 16  # Of each row in the pass whose launches are counted
PARITY_TOLERANCE = 1.5
"""Error of grouped products over the loop's: of some twenty roundings in a layer they add one."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large everything is.

    Attributes:
        shapes: to be timed.
        parity_shape: whose gradients are compared, in float32 too.
        adapters: numbers of adapters.
        full_row: tokens of a single adapter's rows, full as in published figures.
        mean_row: tokens of a row of several adapters, on average; about GSM8K's 220.
        batch_tokens: of a pass, the first that fits into memory.
        step_tokens: of a step of all adapters, about.
    """

    shapes: tuple[str, ...]
    parity_shape: str
    adapters: tuple[int, ...]
    full_row: int
    mean_row: int
    batch_tokens: tuple[int, ...]
    step_tokens: int


FULL = Size(("8b", "1b"), "1b", (1, 8, 54), 4096, 220, (8192, 4096, 2048, 1024), 16_384)
TINY = Size(("tiny",), "tiny", (1, 8), 64, 24, (256, 128), 384)


# --- trials


def trials(count: int) -> list[TrialSpec]:
    """LoRA on attention."""
    return [
        TrialSpec(
            trial_id=str(i),
            task="gpu",
            method="lora",
            rank=16 if count == 1 else RANKS[i % len(RANKS)],
            alpha=32.0,
            lr=1e-4,
            targets=ATTENTION,
            dropout=0.0,
            seed=i,
        )
        for i in range(count)
    ]


def protocol(rows_each: int, batch_tokens: int, implementation: str) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "max_steps": WARMUP_STEPS + TIMED_STEPS,
            "batch_size": rows_each,
            "gradient_accumulation": 1,
            "batch_tokens": batch_tokens,
            "schedule": "constant",
            "warmup_fraction": 0.0,
            "checkpoint_seconds": 1e9,
            "lora_implementation": implementation,
        }
    )


# --- parity


def gradients(
    base: Base, group: Sequence[TrialSpec], rows: Sequence[EncodedRow], train: TrainConfig
) -> list[Tensor]:
    """Each adapter's gradient of a first step, on the CPU. B is drawn: of zeros, A has none."""
    model, states = start_trials(base, group, rows, train, {})
    generator = torch.Generator().manual_seed(SEED)
    for state in states:
        assert state.adapter is not None
        for b in state.adapter.b.values():
            b.data.copy_(0.02 * torch.randn(b.shape, generator=generator))
    accumulate(base, model, states, rows, train)
    found = [torch.cat([p.grad.flatten().cpu() for p in s.parameters]) for s in states]  # type: ignore[union-attr]
    base.multi_lora.clear()
    return found


def accumulate(
    base: Base,
    model: Base,
    states: Sequence[TrialState],
    rows: Sequence[EncodedRow],
    train: TrainConfig,
) -> None:
    """Forward and backward of the first step, without an update."""
    ordered = sorted(states, key=lambda state: model.multi_lora.place(state.adapter_name))
    terms = [term for state in ordered for term in state.begin_step(0)]
    model.multi_lora.training = True
    try:
        with model.multi_lora.optimizer_step():
            compute_gradients(model, base, terms, train.batch_tokens)
    finally:
        model.multi_lora.training = False


def parity(size: Size, device: torch.device) -> dict[str, float]:
    """How far each implementation's gradients are from float32's, relative to their norm: the
    largest of any adapter. Also the attention kernel's errors are in both."""
    group = trials(max(4, size.adapters[1]))
    found: dict[str, list[Tensor]] = {}
    for dtype, implementations in ((torch.float32, ("loop",)), (DTYPE, IMPLEMENTATIONS)):
        base = random_base(size.parity_shape, device, dtype)
        rows = random_rows(64, size.mean_row, False, base.record.vocab_size)
        for name in implementations:
            train = protocol(2, size.batch_tokens[-1], name)
            found[name if dtype == DTYPE else "float32"] = gradients(base, group, rows, train)
        del base

    def gap(name: str, other: str) -> float:
        pairs = zip(found[name], found[other], strict=True)
        return max(float((a - b).norm() / b.norm()) for a, b in pairs)

    return {
        "loop": gap("loop", "float32"),
        "grouped_mm": gap("grouped_mm", "float32"),
        "between": gap("grouped_mm", "loop"),
    }


# --- speed, launches, memory


def measure(
    base: Base, count: int, size: Size, implementation: str, peak_rate: float
) -> dict[str, Any]:
    """One line of the table."""
    device, group = base.device, trials(count)
    is_full = count == 1
    mean = size.full_row if is_full else size.mean_row
    rows_each = max(1, round(size.step_tokens / count / mean))
    rows = random_rows(max(64, rows_each), mean, is_full, base.record.vocab_size)
    counts, memory = RowCounts.of(rows), MemoryModel(base.model.config, base.model.dtype, device)
    for batch_tokens in size.batch_tokens:
        train = protocol(rows_each, batch_tokens, implementation)
        planned = memory.of_group(group, counts, train).total_bytes
        if planned < 0.85 * free_bytes(device):
            break
    else:
        return {"skipped": f"needs {planned / 1e9:.0f} GB"}
    launches = count_launches(base, group, rows, train)
    reset_peak_memory(device)
    clock, tokens = StepClock(device), [0]

    def step_done(step: int, num_steps: int, num_tokens: int, losses: list[float]) -> None:
        clock.step_done()
        tokens[0] += num_tokens if step > WARMUP_STEPS else 0

    # Few steps of a study check the size of the update, two of these three would.
    with patch("rankscope.train.trial_state.is_update_checked", lambda *_: False):
        train_group(base, group, rows, train, progress=step_done)
    base.multi_lora.clear()
    rate = tokens[0] / clock.seconds(WARMUP_STEPS)
    return {
        "tokens_per_second": rate,
        "utilization": 4 * base.record.num_parameters * rate / peak_rate,
        "launches": launches,
        "batch_tokens": batch_tokens,
        "memory_bytes": peak_memory_bytes(device),
        "planned_bytes": planned,
    }


# --- parts, switched one by one


def parts(
    size: Size, device: torch.device, peak_rate: float, ends: float
) -> dict[str, dict[str, Any]]:
    """Training by the loop as it is, with compiled functions and Liger's kernels; answers as they
    are written, and with one part switched off a line; training in float16."""
    shape, count = size.parity_shape, size.adapters[1]
    lines: dict[str, dict[str, Any]] = {}

    def add(name: str, work: Callable[..., dict[str, Any]], base: Base, *rest: Any) -> None:
        lines[name] = tried(ends, base, work, base, count, size, *rest)
        print(f"{name}: {lines[name]}", file=sys.stderr, flush=True)

    base = random_base(shape, device, DTYPE)
    add("trained", measure, base, "loop", peak_rate)
    for kernels in [*all_kernels()][1:]:
        try:
            use_kernels(base.model, kernels)
        except UserError as error:
            lines[f"trained, {kernels}"] = {"skipped": str(error)}
        else:
            add(f"trained, {kernels}", measure, base, "loop", peak_rate)
    use_kernels(base.model, PLAIN)
    add("written", write, base)
    with patch.object(base_module, "distinct_places", lambda device: nullcontext()):
        add("written, cached keys sorted", write, base)
    with patch.object(MultiLora, "fixed_weights", lambda group: nullcontext()):
        add("written, adapters cast in every pass", write, base)
    del base
    half = random_base(shape, device, torch.float16)
    add("trained, float16", measure, half, "loop", peak_rate)
    return lines


def tried(
    ends: float, base: Base, work: Callable[..., dict[str, Any]], *rest: Any
) -> dict[str, Any]:
    """A line, or why there is none: the other lines are worth having."""
    if time.perf_counter() > ends:
        return {"skipped": "no time left"}
    try:
        return work(*rest)
    except Exception as error:
        base.multi_lora.clear()
        return {"failed": str(error).partition("\n")[0]}


@torch.no_grad()
def write(base: Base, count: int, size: Size) -> dict[str, Any]:
    """Answers of ``count`` adapters at once, as long as their prompts."""
    rows = random_rows(1, 8, True, base.record.vocab_size)
    _, states = start_trials(base, trials(count), rows, protocol(1, 64, "loop"), {})
    names = [state.adapter_name for state in states]
    prompts = random_rows(ANSWERS, size.mean_row, False, base.record.vocab_size)
    limits = GenerationLimits(size.mean_row, 8192, size.batch_tokens[0], frozenset())
    for _ in range(2):  # the first one warms up
        answers = [Generation(n, row.input_ids, size.mean_row) for n in names for row in prompts]
        clock = StepClock(base.device)
        RunningBatch(base, limits).run(deque(answers))
        clock.step_done()
    base.multi_lora.clear()
    return {"tokens_per_second": sum(len(a.ids) for a in answers) / clock.seconds(0)}


def count_launches(
    base: Base, group: Sequence[TrialSpec], rows: Sequence[EncodedRow], train: TrainConfig
) -> int:
    """Kernels of one forward and backward pass with a row of each adapter; on a processor
    operators, those inside of others too."""
    # Launches do not depend on a row's length, but memory does.
    ids = rows[0].input_ids[:LAUNCH_TOKENS]
    row = EncodedRow(ids, tuple(i > 0 for i in range(len(ids))), truncated=False)
    train = train.model_copy(update={"batch_size": 1, "batch_tokens": 10**9})
    model, states = start_trials(base, group, [row] * len(rows), train, {})
    is_cuda = base.device.type == "cuda"
    kind = DeviceType.CUDA if is_cuda else DeviceType.CPU
    activities = [ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]
    accumulate(base, model, states, [row] * len(rows), train)  # compiles, and chooses kernels
    with profile(activities=activities) as watched:
        accumulate(base, model, states, [row] * len(rows), train)
    base.multi_lora.clear()
    events = [event for event in watched.key_averages() if not event.key.startswith("Mem")]
    return sum(event.count for event in events if event.device_type == kind)


def free_bytes(device: torch.device) -> int:
    """Memory that a new model and its training could have, torch's cached blocks included."""
    held = torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
    return available_memory_bytes(device) + held


# --- the command


def peak_rate_of(device: torch.device) -> tuple[float, str]:
    """Operations per second that utilization is a share of, and where the figure is from."""
    side = SQUARE.get(device.type, SQUARE["cpu"])
    name = torch.cuda.get_device_name(device).lower() if device.type == "cuda" else ""
    for key, machine in MACHINES.items():
        # Cards on PCIe, and parts of a card, are slower than what the data sheet is quoted for.
        if re.search(rf"\b{key}\b", name) and not re.search("pcie|nvl|mig", name):
            return machine.rates[dtype_name(DTYPE)] * 1e12, "published"
    x, clock = torch.randn(side, side, device=device).to(DTYPE), StepClock(device)
    for _ in range(10):
        x @ x
        clock.step_done()
    best = min(b - a for a, b in pairwise(clock.marks))
    return 2 * side**3 / best, f"a product of side {side}, measured"


def cases(size: Size, device: torch.device, rate: float, ends: float) -> dict[str, dict[str, Any]]:
    """The lines of the table; after ``ends`` (``time.perf_counter``) the others are skipped."""
    lines: dict[str, dict[str, Any]] = {}
    for shape in size.shapes:
        base = random_base(shape, device, DTYPE)
        for count in size.adapters:
            for name in IMPLEMENTATIONS:
                line = tried(ends, base, measure, base, count, size, name, rate)
                lines[f"{shape} x {count} {name}"] = line
                print(f"{shape} x {count} {name}: {line}", file=sys.stderr, flush=True)
        del base
    return lines


def page(result: dict[str, Any]) -> str:
    """The dated page of results, as Markdown."""
    text = [
        f"# Training on {result['device']}, {result['date']}",
        "",
        f"`benchmarks/gpu.py`, {result['dtype']}, random weights, LoRA on attention; a single "
        f"adapter of rank 16 on full rows, several of ranks {', '.join(map(str, RANKS))} on rows "
        f"of uneven length. Utilization is 4 N tokens/s over {result['peak_tflops']:,.4g} TFLOP/s "
        f"({result['peak_source']}).",
        "",
        "Distance of the gradients from float32's, relative to their norm, largest of any adapter: "
        + ", ".join(f"{name} {value:.2g}" for name, value in result["gradient_errors"].items())
        + ".",
        "",
        "| shape, adapters, products | tokens/s | utilization | launches a pass | tokens a pass "
        "| memory, GB | planned, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, line in result["cases"].items():
        if len(line) == 1:
            ((what, reason),) = line.items()
            text.append(f"| {name} | {what}: {reason} | | | | | |")
            continue
        text.append(
            f"| {name} | {line['tokens_per_second']:,.0f} | {line['utilization']:.3f} "
            f"| {line['launches']:,} | {line['batch_tokens']:,} "
            f"| {line['memory_bytes'] / 1e9:,.1f} | {line['planned_bytes'] / 1e9:,.1f} |"
        )
    text += ["", f"| part, 8 adapters, {ANSWERS} answers each | tokens/s |", "|---|---|"]
    for name, line in result["parts"].items():
        if "tokens_per_second" in line:
            text.append(f"| {name} | {line['tokens_per_second']:,.0f} |")
        else:
            text.append(f"| {name} | {': '.join(*line.items())} |")
    return "\n".join(text) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=420, help="after them, skip what is left")
    parser.add_argument("--results", type=Path, help="folder to write the dated page to")
    parser.add_argument("--tiny", action="store_true", help="shapes of a test")
    return parser.parse_args()


def main() -> int:
    """Compare, measure, print; 1 if the implementations do not agree, or one fails."""
    options, begun = parse(), time.perf_counter()
    device, size = choose_device(options.device), TINY if options.tiny else FULL
    prepare_process()  # the deterministic kernels and the allocator of a study
    choose_lora_implementation("grouped_mm", device, DTYPE)  # refused before anything is made
    rate, source = peak_rate_of(device)
    name = provenance().processor
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    errors = parity(size, device)
    result: dict[str, Any] = {
        "benchmark": "gpu",
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{name}, torch {torch.__version__}",
        "dtype": str(DTYPE).removeprefix("torch."),
        "parity": errors["grouped_mm"] / errors["loop"],
        "parity_tolerance": PARITY_TOLERANCE,
        "gradient_errors": errors,
        "peak_tflops": rate / 1e12,
        "peak_source": source,
        "cases": cases(size, device, rate, begun + options.seconds * CASES_SHARE),
        "parts": parts(size, device, rate, begun + options.seconds),
    }
    if options.results is not None:
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        path = options.results / f"{result['date']}-{slug}-gpu.md"
        path.write_text(page(result), encoding="utf-8")
    lines = [*result["cases"].values(), *result["parts"].values()]
    failed = any("failed" in line for line in lines)
    return announce(result) or int(failed)


if __name__ == "__main__":
    sys.exit(main())
