"""Machines that a plan is made for, and the pace at which they train.

A line in ``MACHINES`` adds one: dense rates, without sparsity. This machine's pace is given, or
measured: on training steps of a small model, on one layer of a larger one.
"""

import copy
import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig
from transformers.initialization import no_init_weights

from rankscope.config.study import StudyConfig
from rankscope.data.study_data import StudyData
from rankscope.device import (
    available_memory_bytes,
    choose_device,
    choose_dtype,
    dtype_name,
    keep_freed_memory,
    limit_kernel_cache,
)
from rankscope.errors import Interrupted, UserError, did_you_mean, first_line
from rankscope.evaluate.vllm import resolved_engine
from rankscope.formatting import count
from rankscope.models.attention import varlen
from rankscope.models.load import frozen_base, model_record
from rankscope.models.parameters import architecture
from rankscope.models.study_base import StudyBase
from rankscope.run.costs import CostModel
from rankscope.run.groups import USABLE_SHARE, Group, Grouping
from rankscope.run.prepared import PreparedStudy
from rankscope.train.loop import train_group
from rankscope.train.memory import MemoryModel, RowCounts
from rankscope.train.objectives.objective import objective_of

PROBE_SECONDS = 0.3
SMALL_MODEL = 5e7  # Weights; steps of fewer take longer than their products do
STEPS_SECONDS, FEWEST_STEPS = 1.5, 3
UNTRAINED_LENGTH = 256  # Tokens of a row where the study trains on none
WEIGHT_DEVIATION = 0.02  # Standard deviation of the random weights

PUBLISHED_SHARE = 0.41
"""Share of a card's product rate that its plans use. It is published for LoRA on an 8B and a 7B
model, one H100, full rows of 4,096 tokens: 402 and 423 of 989 TFLOP/s (NVIDIA NeMo AutoModel,
performance summary)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    label: str
    device: torch.device
    rates: Mapping[str, float]  # By dtype, 10^12 operations per second of a matrix product
    memory: float  # 10^9 bytes
    share: float = PUBLISHED_SHARE
    """Part of a rate that training and scoring reach; 0 if no pace is known."""
    basis: str = "from published figures, not measured"  # Basis of time estimates
    is_here: bool = False  # Whether it can be asked

    def dtype(self, wanted: str) -> torch.dtype:
        """Return the base's dtype; ``auto`` is the first of its rates, as in
        ``device.choose_dtype``."""
        name = next(iter(self.rates)) if wanted == "auto" else wanted
        if name not in self.rates:
            known = f"{' or '.join(self.rates)}, in which {self.label} computes"
            raise UserError("plan: dtype", name, known, "give '--set dtype=...'")
        named: torch.dtype = getattr(torch, name)
        return named

    def resolved(self, config: StudyConfig) -> StudyConfig:
        """Fill in the study's dtype and the engine that writes answers.

        Raises UserError: a wish cannot be met here.
        """
        dtype = self.dtype(config.dtype)
        engine = resolved_engine(config, self.device, dtype) if self.is_here else "own"
        evaluate = config.evaluate.model_copy(update={"engine": engine})
        return config.model_copy(update={"dtype": dtype_name(dtype), "evaluate": evaluate})

    def grouping(
        self, config: StudyConfig, base: StudyBase, data: StudyData, num_processes: int
    ) -> Grouping:
        """Make the object that cuts a study's trials into groups.

        ``num_processes`` groups share the memory.
        """
        dtype = self.dtype(config.dtype)
        # NVIDIA's cards have it from compute capability 8.0 on, where bfloat16 begins, too.
        kernel = None if self.is_here else self.device.type == "cuda" and "bfloat16" in self.rates
        model = MemoryModel(base.config, dtype, self.device, config.quantize, kernel)
        rows = {**data.replay_rows, **data.rows}
        counts = {name: RowCounts.of(encoded.rows) for name, encoded in rows.items()}
        shards = config.train.devices if self.device.type == "cpu" else 1  # which share it
        free_bytes = self.memory * 1e9 / num_processes / shards
        return Grouping(model, counts, config.memory_limit or round(USABLE_SHARE * free_bytes))


def _card(label: str, half: float, float32: float, memory: float, *dtypes: str) -> Machine:
    rates = dict.fromkeys(dtypes or ("bfloat16", "float16"), half) | {"float32": float32}
    return Machine(label, torch.device("cuda"), rates, memory)


MACHINES: Mapping[str, Machine] = {
    "h100": _card("NVIDIA H100 SXM", 989, 67, 80),
    "h200": _card("NVIDIA H200 SXM", 989, 67, 141),
    "a100": _card("NVIDIA A100 80GB SXM", 312, 19.5, 80),
    "l40s": _card("NVIDIA L40S", 362, 91.6, 48),
    "l4": _card("NVIDIA L4", 121, 30.3, 24),
    "4090": _card("GeForce RTX 4090", 165, 82.6, 24),
    "v100": _card("NVIDIA V100 SXM2 32GB", 125, 15.7, 32, "float16"),
    "t4": _card("NVIDIA T4", 65, 8.1, 16, "float16"),
    # 10 cores x 128 units x 2 x 1.4 GHz; Apple publishes no rate
    "m3": Machine("Apple M3", torch.device("mps"), {"float32": 3.6}, 24),
}
"""Machines by the names that ``rankscope plan --device`` takes; the figures are the vendors'."""


def find_machine(name: str) -> Machine | None:
    """Return a machine of the catalog; None for ``here``."""
    if name == "here":
        return None
    if name not in MACHINES:
        hint = did_you_mean(name, MACHINES)
        raise UserError("plan: device", repr(name), f"here or one of {', '.join(MACHINES)}", hint)
    return MACHINES[name]


def this_machine(config: StudyConfig) -> Machine:
    """Return this machine, whose pace is not known yet."""
    device = choose_device(config.device)
    rates = {dtype_name(choose_dtype(config.dtype, device)): 0.0}
    memory = available_memory_bytes(device) / 1e9
    return Machine("this machine", device, rates, memory, share=0.0, is_here=True)


def paced_machine(
    inputs: PreparedStudy, machine: Machine | None = None, tokens_per_second: float | None = None
) -> Machine:
    """Return ``machine``, or this one, at a given pace, else measured here, else published."""
    if machine is not None and tokens_per_second is None:
        return machine
    dtype = dtype_name(inputs.dtype)
    if machine is None:
        keep_freed_memory()
        limit_kernel_cache()
        machine = this_machine(inputs.config)
    per_token = CostModel(inputs, machine).operations_per_token()
    pace, origin = (tokens_per_second or 0.0) * per_token, "as given"
    if not pace:
        try:
            pace, origin = _measured_pace(inputs, machine), "measured here"
        except Exception as error:  # of the model's own code, or a lack of memory
            found = f"a model whose pace cannot be measured: {first_line(error)}"
            do = "give it to 'plan' by --tokens-per-second, and --anyway to 'run'"
            raise UserError("time", found, do=do) from error
    basis = f"from {pace / per_token:,.0f} tokens a second of training, {origin}"
    return dataclasses.replace(machine, rates={dtype: pace / 1e12}, share=1.0, basis=basis)


def _measured_pace(inputs: PreparedStudy, machine: Machine) -> float:
    """Measure operations per second, on steps of a small model or a layer of a larger one."""
    writes = objective_of(inputs.config.train.objective).max_new_tokens
    groups = [] if writes or inputs.base.shapes.num_parameters > SMALL_MODEL else inputs.groups
    for group in groups:
        if group[0].trains and not group[0].trains_alone:
            return _pace_of_steps(inputs, machine, group)
    return _pace_of_layer(inputs, machine)


def _pace_of_steps(inputs: PreparedStudy, machine: Machine, group: Group) -> float:
    """Measure operations per second in a group's first optimizer steps, on random weights."""
    config, tokenizer = copy.deepcopy(inputs.base.config), inputs.data.encoder.tokenizer
    attention = varlen.attention_of(config)
    with torch.device(inputs.device), no_init_weights():
        model = AutoModelForCausalLM.from_config(
            config, dtype=inputs.dtype, attn_implementation=attention
        )
    _fill(model, torch.Generator(inputs.device).manual_seed(0))
    source = inputs.config.model, inputs.device, inputs.dtype
    base = frozen_base(model, tokenizer, model_record(*source, model, tokenizer, ""), Path())
    plain = dict.fromkeys(("rows", "init_from", "replay", "replay_share", "kl_to_base"))
    trials = [trial.model_copy(update=plain) for trial in group]
    costs, rates, begun = CostModel(inputs, machine), list[float](), time.perf_counter()
    ends = begun + STEPS_SECONDS

    def note_step(step: int, num_steps: int, tokens: int, losses: list[float]) -> None:
        nonlocal begun
        each = round(tokens / max(1, len(losses)))
        operations = sum(costs.training_operations(t, each) for t in trials[: len(losses)])
        before, begun = begun, time.perf_counter()
        rates.append(operations / (begun - before))

    def is_enough() -> bool:
        return len(rates) >= FEWEST_STEPS and begun > ends

    rows = inputs.data.rows_of(trials[0]).rows
    with torch.random.fork_rng(), suppress(Interrupted):
        train_group(
            base, trials, rows, inputs.config.train, progress=note_step, should_stop=is_enough
        )
    return median(rates[1:] or rates)


def _fill(model: torch.nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=WEIGHT_DEVIATION, generator=generator)


def _pace_of_layer(inputs: PreparedStudy, machine: Machine) -> float:
    """Measure operations per second in the first layer of the base's shapes, both ways.

    The rows have the mean length of the first task's. They are as many as take a moment or fill a
    pass.
    """
    config: PretrainedConfig = copy.deepcopy(inputs.base.config.get_text_config())
    config.num_hidden_layers, config.vocab_size, config.pad_token_id = 1, 1, None
    if kinds := vars(config).get("layer_types"):  # of a state space, a property of the number above
        config.layer_types = kinds[:1]
    with torch.device(inputs.device), no_init_weights():
        layer = AutoModel.from_config(config, dtype=inputs.dtype).requires_grad_(False)
    generator = torch.Generator(inputs.device).manual_seed(0)
    _fill(layer, generator)
    grouping = inputs.grouping
    lengths = [rows.mean_tokens for rows in grouping.counts.values()]
    length = round(lengths[0]) if lengths else UNTRAINED_LENGTH
    most = max(1, inputs.config.train.batch_tokens // length) if grouping.model.packs else 1
    rows = 1
    while True:
        shape = rows, length, config.hidden_size
        x = torch.randn(shape, generator=generator, device=inputs.device).to(inputs.dtype)
        x.requires_grad_()

        def step(x: torch.Tensor = x) -> None:
            layer(inputs_embeds=x, use_cache=False).last_hidden_state.sum().backward()

        if rows == most or _seconds_of(step, inputs.device) > PROBE_SECONDS:
            break
        rows = min(4 * rows, most)
    costs, tokens = CostModel(inputs, machine, architecture(config)), rows * length
    # Backward, attention has the gradients of both products
    operations = 2 * costs.forward(tokens, 0, length / 2) + 2 * tokens * costs.attention * length
    return operations / _fastest(step, inputs.device)


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest of a few calls; other work on the machine slows the
    others."""
    call()
    best, ends = _seconds_of(call, device), time.perf_counter() + PROBE_SECONDS
    while time.perf_counter() < ends:
        best = min(best, _seconds_of(call, device))
    return best


def _seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call, its kernels included."""
    begun = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - begun


def busy_notes() -> list[str]:
    """Write a sentence if other programs want more processors than this machine has."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load <= cores:
        return []
    found = f"this machine is busy: {load:.1f} programs want its {count(cores, 'core')}"
    return [f"{found}, so a run takes longer now than this estimate, which is of an idle machine"]
