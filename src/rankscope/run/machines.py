"""Machines that a plan is made for: what they compute, move and hold, and who says so.

To add one, add a line to ``MACHINES``. Rates are dense ones, without sparsity. This machine is
measured: a product, its memory, and a few training steps, in which two adapters train on a copy of
the base that has its shapes and random weights. For any other, the share of its rate that training
reaches is a published one.
"""

import copy
import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from rankscope.device import (
    available_memory_bytes,
    dtype_name,
    keep_freed_memory,
    limit_kernel_cache,
    release_freed_memory,
)
from rankscope.errors import UserError, did_you_mean
from rankscope.formatting import count
from rankscope.models.attention import varlen
from rankscope.models.base import Base
from rankscope.models.compiled import use_kernels
from rankscope.models.load import frozen_base, model_record
from rankscope.models.methods.lora import LoraMethod
from rankscope.models.parameters import architecture
from rankscope.records import TrialSpec
from rankscope.run.costs import CostModel
from rankscope.run.groups import USABLE_SHARE
from rankscope.run.prepared import PreparedStudy
from rankscope.train.loop import train_group
from rankscope.train.memory import MemoryModel
from rankscope.train.objectives import SFT
from rankscope.train.pass_memory import FEWEST_LAYERS
from rankscope.train.step_schedule import trial_protocol

PROBE_ROWS = 1024
PROBE_SECONDS = 0.3
COPIED_BYTES = 2**26

STEPS = 4  # The first touches new memory and compiles kernels, and is not counted
STEP_SECONDS = 1.0  # Estimated, of a step; of a larger model fewer layers run
WEIGHT_DEVIATION = 0.02  # Standard deviation of the random weights

now = time.perf_counter

PUBLISHED_UTILIZATION = 0.41
"""Most of the product rate that training is planned to use on a machine that was not measured.
Published for LoRA on an 8B and a 7B model, one H100, full rows of 4,096 tokens: 402 and 423 of 989
TFLOP/s (NVIDIA NeMo AutoModel, performance summary)."""


PCIE = 32  # Of version 4.0, 16 lanes, in one direction


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    label: str
    device: torch.device
    rates: Mapping[str, float]  # By dtype, 10^12 operations per second of a matrix product
    bandwidth: float  # Of its memory, 10^9 bytes per second
    memory: float  # 10^9 bytes
    source: str
    link: float = PCIE  # From other devices to this one, 10^9 bytes per second
    decomposition_share: float = 0.01
    """Of the float32 rate, in singular value decompositions; on an H100 one of 4096 x 4096 then
    takes 3 s. Not measured."""
    utilization: float = PUBLISHED_UTILIZATION  # Of the product rate, in training and scoring
    probed_layers: int = 0  # Of the model, in the steps that measured it; 0: it was not measured

    @property
    def has_attention_kernel(self) -> bool:
        """Of ``attention/kernel.py``: NVIDIA's cards have it from compute capability 8.0 on, which
        is also the first with bfloat16."""
        return self.device.type == "cuda" and "bfloat16" in self.rates

    def dtype(self, wanted: str) -> torch.dtype:
        """The base's dtype; ``auto`` is the first of its rates, as in ``device.choose_dtype``."""
        name = next(iter(self.rates)) if wanted == "auto" else wanted
        if name not in self.rates:
            known = f"{' or '.join(self.rates)}, in which {self.label} computes"
            raise UserError("plan: dtype", name, known, "give '--set dtype=...'")
        named: torch.dtype = getattr(torch, name)
        return named

    def basis(self, dtype: torch.dtype) -> str:
        """What estimates of time rest on, as a sentence."""
        rate = self.rates[dtype_name(dtype)]
        shown = f"{rate:,.0f} TFLOP/s" if rate >= 10 else f"{rate * 1000:,.0f} GFLOP/s"
        figures = f"{shown} ({dtype_name(dtype)}) and {self.bandwidth:,.0f} GB/s ({self.source})"
        used = f"{self.utilization:.0%}" if self.utilization >= 0.01 else "less than 1%"
        if self.probed_layers:
            return (
                f"{figures}; training steps of {self.probed_layers} layers use {used} of the rate"
            )
        return (
            f"{figures}, used to {used} as published for LoRA on an 8B model and one H100, "
            "whatever the machine and the model; not measured"
        )


def _card(
    label: str,
    source: str,
    half: float,
    float32: float,
    bandwidth: float,
    memory: float,
    link: float = PCIE,
    *,
    has_bfloat16: bool = True,
) -> Machine:
    rates = {"bfloat16": half} if has_bfloat16 else {}
    rates |= {"float16": half, "float32": float32}
    return Machine(label, torch.device("cuda"), rates, bandwidth, memory, source, link)


MACHINES: Mapping[str, Machine] = {
    "h100": _card("NVIDIA H100 SXM", "data sheet", 989, 67, 3350, 80, 450),
    "h200": _card("NVIDIA H200 SXM", "data sheet", 989, 67, 4800, 141, 450),
    "a100": _card("NVIDIA A100 80GB SXM", "data sheet", 312, 19.5, 2039, 80, 300),
    "l40s": _card("NVIDIA L40S", "data sheet", 362, 91.6, 864, 48),
    "l4": _card("NVIDIA L4", "data sheet", 121, 30.3, 300, 24),
    "4090": _card("GeForce RTX 4090", "Ada architecture white paper", 165, 82.6, 1008, 24),
    "v100": _card(
        "NVIDIA V100 SXM2 32GB", "data sheet", 125, 15.7, 900, 32, 150, has_bfloat16=False
    ),
    "t4": _card("NVIDIA T4", "data sheet", 65, 8.1, 320, 16, 16, has_bfloat16=False),
    "m3": Machine(
        "Apple M3",
        torch.device("mps"),
        {"float32": 3.6},
        100,
        24,
        "10 cores x 128 units x 2 x 1.4 GHz; Apple publishes bandwidth and memory only",
    ),
}
"""By the name that ``rankscope plan --device`` takes."""


def find_machine(name: str) -> Machine | None:
    """A machine of the catalogue; None for ``here``."""
    if name == "here":
        return None
    if name not in MACHINES:
        hint = did_you_mean(name, MACHINES)
        raise UserError("plan: device", repr(name), f"here or one of {', '.join(MACHINES)}", hint)
    return MACHINES[name]


@cache
def _this_machine(device: torch.device, dtype: torch.dtype, shape: tuple[int, int]) -> Machine:
    """The machine that this process runs on, measured for about a second, once.

    Args:
        shape: (out, in) of a weight of the model: products of small matrices are slower.
    """

    def product(dtype: torch.dtype) -> float:
        x = torch.randn(PROBE_ROWS, shape[1], device=device).to(dtype)
        weight = torch.randn(shape[1], shape[0], device=device).to(dtype)
        rows = 1
        # A processor without bfloat16 products takes a thousand times as long: begin with one row.
        while rows < PROBE_ROWS:
            if _seconds_of(partial(torch.matmul, x[:rows], weight), device) > PROBE_SECONDS / 4:
                break
            rows *= 4
        seconds = _fastest(partial(torch.matmul, x[:rows], weight), device)
        return 2 * rows * shape[0] * shape[1] / seconds / 1e12

    values = torch.zeros(COPIED_BYTES // 4, device=device)
    rates = {dtype_name(d): product(d) for d in {dtype, torch.float32}}
    return Machine(
        label="this machine",
        device=device,
        rates=rates,
        bandwidth=2 * COPIED_BYTES / _fastest(lambda: values.add_(1), device) / 1e9,
        memory=available_memory_bytes(device) / 1e9,
        source="measured here",
        decomposition_share=0.01 if device.type == "cuda" else 0.5,
    )


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of a few calls: other work on the machine only adds to the others."""
    call()
    best, ends = _seconds_of(call, device), time.perf_counter() + PROBE_SECONDS
    while time.perf_counter() < ends:
        best = min(best, _seconds_of(call, device))
    return best


def _seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, its kernels included."""
    begun = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - begun


def busy_notes() -> list[str]:
    """A sentence if other programs want more processors than this machine has."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load <= cores:
        return []
    found = f"this machine is busy: {load:.1f} programs want its {count(cores, 'core')}"
    return [f"{found}, so a run takes longer now than this estimate, which is of an idle machine"]


# --- training steps on this machine


_MEASURED: dict[tuple[object, ...], tuple[float, int]] = {}
"""Of this process, which may plan a model more than once."""


def measured_machine(inputs: PreparedStudy) -> Machine:
    """This machine, with the share of its product rate that training steps of the study's base
    reach, computed as ``train.kernels`` says; ``auto`` is plain here.

    No step is run without LoRA arms, with ``train.devices`` or 4-bit weights, where the memory is
    short, where two layers and a row of each adapter are estimated to take longer than a step may,
    and where the base cannot be trained like this.
    """
    keep_freed_memory()
    limit_kernel_cache()
    machine = _this_machine(inputs.device, inputs.dtype, _widest(inputs))
    train = inputs.config.train
    lora = [t for t in inputs.trials if not t.trains_alone and t.trains]
    if not lora or train.devices > 1 or inputs.config.quantize != "none":
        return machine
    ranks = sorted(trial.rank or 1 for trial in lora)
    trials = [probe_trial(lora[0], rank, seed) for seed, rank in enumerate((ranks[0], ranks[-1]))]
    rows = inputs.data.rows[lora[0].task]
    full_pass = round(train.batch_tokens / len(trials) * len(rows.rows) / rows.num_tokens)
    own = trial_protocol(lora[0], train)
    num_rows = max(1, min(full_pass, own.batch_size * own.gradient_accumulation))
    depth = int(inputs.base.config.get_text_config().num_hidden_layers)
    seconds = step_seconds(with_rows(inputs, trials, num_rows), machine)
    layers = min(depth, max(FEWEST_LAYERS, int(depth * STEP_SECONDS / seconds)))
    most_rows = int(num_rows * STEP_SECONDS / (seconds * layers / depth))
    if most_rows < 1:
        return machine
    key = (
        *(inputs.base.folder, inputs.device, inputs.dtype, layers, most_rows),
        *(rows.num_tokens, len(rows.rows), str(train), *map(str, trials)),
    )
    if key not in _MEASURED:
        try:
            probed = with_layers(with_rows(inputs, trials, min(num_rows, most_rows)), layers)
            _MEASURED[key] = _run_steps(probed, machine), layers
        except Exception:  # of what is wrong a run or a check will tell
            _MEASURED[key] = machine.utilization, 0
        finally:
            release_freed_memory()
    share, probed_layers = _MEASURED[key]
    return dataclasses.replace(machine, utilization=share, probed_layers=probed_layers)


def _widest(inputs: PreparedStudy) -> tuple[int, int]:
    """The shape of the largest weight but the output layer's."""
    shapes = inputs.base.shapes
    layers = [s for name, s in shapes.linear_shapes.items() if name != shapes.output_layer]
    return max(layers, key=lambda shape: shape[0] * shape[1])


def with_rows(inputs: PreparedStudy, trials: Sequence[TrialSpec], num_rows: int) -> PreparedStudy:
    """The study with these trials, each of a few steps of so many rows."""
    steps: dict[str, object] = {"max_steps": STEPS}
    steps |= {"tokens": None, "batch_size": num_rows, "gradient_accumulation": 1}
    steps["objective"] = SFT  # the share of the product rate is the same
    train = inputs.config.train.model_copy(update=steps)
    config = inputs.config.model_copy(update={"train": train})
    return dataclasses.replace(inputs, config=config, trials=tuple(trials))


def with_layers(inputs: PreparedStudy, layers: int) -> PreparedStudy:
    """The study on a base of the first layers."""
    config: PretrainedConfig = copy.deepcopy(inputs.base.config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if kinds := vars(text).get("layer_types"):  # of a state space, a property of the number above
        text.layer_types = kinds[:layers]
    base = dataclasses.replace(inputs.base, config=config, shapes=architecture(config))
    memory = MemoryModel(config, inputs.dtype, inputs.device, inputs.config.quantize)
    grouping = dataclasses.replace(inputs.grouping, model=memory)
    return dataclasses.replace(inputs, base=base, grouping=grouping)


def probe_trial(of: TrialSpec, rank: int, seed: int) -> TrialSpec:
    return TrialSpec(
        trial_id=f"probe-{seed}",
        task=of.task,
        method=LoraMethod.name,
        rank=rank,
        alpha=1.0,
        lr=of.lr,
        targets=of.targets,
        dropout=0.0,
        seed=seed,
    )


def step_seconds(probed: PreparedStudy, machine: Machine) -> float:
    """Estimated."""
    return sum(CostModel(probed, machine).training(probed.trials).values()) / STEPS


def _run_steps(probed: PreparedStudy, machine: Machine) -> float:
    """The share of the product rate that the fastest step reaches."""
    base, kernels = probed_base(probed), probed.config.train.kernels
    if kernels != "auto":
        use_kernels(base.model, kernels)
    seconds, _ = fastest_step(base, probed)
    costs, tokens = CostModel(probed, machine), map(probed.training_tokens, probed.trials)
    counted = [
        (costs.training_operations(trial, count), count)
        for trial, count in zip(probed.trials, tokens, strict=True)
    ]
    per_token = sum(operations for operations, _ in counted) / sum(count for _, count in counted)
    return per_token / (seconds * machine.rates[dtype_name(probed.dtype)] * 1e12)


def probed_base(probed: PreparedStudy) -> Base:
    """A random base, if there is room for it and its steps. Raises MemoryError."""
    memory, counts = probed.grouping.model, probed.grouping.counts[probed.trials[0].task]
    needed = memory.of_group(probed.trials, counts, probed.config.train).total_bytes
    free = available_memory_bytes(probed.device)
    if needed > USABLE_SHARE * min(free, probed.config.memory_limit or free):
        raise MemoryError("no room for the base of a few steps")
    return random_base(probed)


def fastest_step(base: Base, probed: PreparedStudy) -> tuple[float, list[float]]:
    """Seconds of a token in the fastest step, as what else the machine does only slows the others,
    and the losses."""
    ends: list[tuple[float, int]] = []

    def note_end(step: int, num_steps: int, num_tokens: int, losses: Sequence[float]) -> None:
        ends.append((now(), num_tokens))

    rows = probed.data.rows[probed.trials[0].task].rows
    try:
        group = train_group(base, list(probed.trials), rows, probed.config.train, progress=note_end)
    finally:
        base.multi_lora.clear()
    taken = [(end - begun) / tokens for (begun, _), (end, tokens) in itertools.pairwise(ends)]
    return min(taken), [point.loss for state in group.states for point in state.losses]


def random_base(inputs: PreparedStudy) -> Base:
    attention = varlen.attention_of(inputs.base.config)
    with torch.device(inputs.device), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            inputs.base.config, attn_implementation=attention, dtype=inputs.dtype
        )
    model.tie_weights()  # which comes with the weights otherwise
    generator = torch.Generator(inputs.device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=WEIGHT_DEVIATION, generator=generator)
    tokenizer, device = inputs.data.encoder.tokenizer, inputs.device
    record = model_record(inputs.config.model, device, inputs.dtype, model, tokenizer, "")
    return frozen_base(model, tokenizer, record, inputs.base.folder)
