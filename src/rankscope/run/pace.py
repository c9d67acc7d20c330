"""How long training steps take on this machine, over what the time model says of them.

The model of time counts products and traffic; what the libraries, the threads and the sizes of
tensors make of them is only seen by training. Two adapters train for a few steps on a copy of the
base that has its shapes and none of its weights.
"""

import copy
import dataclasses
import itertools
import time
from collections.abc import Sequence
from contextlib import nullcontext

import torch

from rankscope.device import available_memory_bytes, release_freed_memory
from rankscope.models.base import Base
from rankscope.models.methods.lora import LoraMethod
from rankscope.models.multi_lora import MultiLora, linear_layers
from rankscope.models.output_layer import block_output_layer
from rankscope.records import ModelRecord, TrialSpec
from rankscope.run.costs import CostModel
from rankscope.run.prepared import PreparedStudy
from rankscope.train.loop import train_group
from rankscope.train.pass_memory import FEWEST_LAYERS, decoder_layers, first_layers

STEPS = 4  # The first touches new memory and compiles kernels, and is not counted
STEP_SECONDS = 1.0  # That a step may be estimated to take; of a larger model fewer layers run
MOST_SECONDS = 5.0  # Nothing is measured if two layers and one row of each take longer
PARAMETER = 0.01  # Value of all weights: memory that was never written is not read as other memory


@dataclasses.dataclass(frozen=True, slots=True)
class Pace:
    factor: float = 1.0  # Seconds over estimated seconds
    layers: int = 0  # That were run; 0: nothing was


_MEASURED: dict[tuple[object, ...], Pace] = {}
"""Of this process, which may plan a model more than once."""


def measured_pace(model: CostModel) -> Pace:
    """The pace of a study's base on this machine; none is measured where there are no adapters, or
    no room."""
    inputs, memory = model.inputs, model.inputs.grouping.model
    lora = [trial for trial in inputs.trials if not trial.trains_alone]
    train = inputs.config.train
    if not lora or train.devices > 1 or inputs.config.quantize != "none":
        return Pace()
    ranks = sorted(trial.rank or 1 for trial in lora)
    trials = [probe_trial(lora[0], rank, seed) for seed, rank in enumerate((ranks[0], ranks[-1]))]
    rows = inputs.rows[lora[0].task]
    mean_tokens = rows.num_tokens / len(rows.rows)
    most_rows = max(1, round(train.batch_tokens / len(trials) / mean_tokens))
    num_rows = min(most_rows, train.batch_size * train.gradient_accumulation)
    probed = with_rows(inputs, trials, num_rows)
    seconds = step_seconds(model, probed)
    depth = len(decoder_layers(memory.base))
    layers = min(depth, max(FEWEST_LAYERS, int(depth * STEP_SECONDS / seconds)))
    if seconds * layers > STEP_SECONDS * depth:
        num_rows = max(1, int(num_rows * STEP_SECONDS * depth / (seconds * layers)))
        probed = with_rows(inputs, trials, num_rows)
        seconds = step_seconds(model, probed)
    counts = inputs.grouping.counts[lora[0].task]
    needed = memory.of_group(trials, counts, probed.config.train).total_bytes
    has_room = needed < available_memory_bytes(inputs.device)
    if not depth or not has_room or seconds * layers > MOST_SECONDS * depth:
        return Pace()
    key = (inputs.base.folder, str(inputs.device), inputs.dtype, layers, num_rows, *ranks)
    if key not in _MEASURED:
        _MEASURED[key] = Pace(run_steps(probed, model, layers), layers)
        release_freed_memory()
    return _MEASURED[key]


def with_rows(inputs: PreparedStudy, trials: Sequence[TrialSpec], num_rows: int) -> PreparedStudy:
    """The study with these trials, each of a few steps of so many rows."""
    steps = {
        "max_steps": STEPS,
        "tokens": None,
        "batch_size": num_rows,
        "gradient_accumulation": 1,
    }
    train = inputs.config.train.model_copy(update=steps)
    config = inputs.config.model_copy(update={"train": train})
    return dataclasses.replace(inputs, config=config, trials=tuple(trials))


def step_seconds(model: CostModel, probed: PreparedStudy) -> float:
    estimate = CostModel(probed, model.machine)
    return sum(estimate.training(probed.trials).values()) / STEPS


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


def seconds_per_token(model: CostModel) -> float:
    inputs = model.inputs
    tokens = sum(map(inputs.training_tokens, inputs.trials))
    return sum(model.training(inputs.trials).values()) / tokens


def run_steps(probed: PreparedStudy, model: CostModel, layers: int) -> float:
    """Train, and compare the fastest step with the estimate for as many layers: what else the
    machine does only adds to the others."""
    base = base_of_shapes(probed, layers)
    names = {
        name: (linear.out_features, linear.in_features)
        for name, linear in linear_layers(base.model).items()
    }
    shapes = dataclasses.replace(probed.base.shapes, linear_shapes=names)
    fewer = dataclasses.replace(probed, base=dataclasses.replace(probed.base, shapes=shapes))
    ends: list[tuple[float, int]] = []
    rows = probed.rows[probed.trials[0].task].rows

    def note_end(step: int, num_steps: int, num_tokens: int, losses: Sequence[float]) -> None:
        ends.append((time.perf_counter(), num_tokens))

    train_group(base, list(probed.trials), rows, probed.config.train, progress=note_end)
    taken = ((end - begun) / tokens for (begun, _), (end, tokens) in itertools.pairwise(ends))
    return min(taken) / seconds_per_token(CostModel(fewer, model.machine))


def base_of_shapes(inputs: PreparedStudy, layers: int) -> Base:
    """A base of the first layers, all of whose weights are one number."""
    shapes = inputs.grouping.model.base
    is_whole = layers == len(decoder_layers(shapes))
    with nullcontext() if is_whole else first_layers(shapes, layers):
        model = copy.deepcopy(shapes)
    model.to_empty(device=inputs.device)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(PARAMETER)
    model.tie_weights()
    model.eval()
    model.requires_grad_(False)
    block_output_layer(model)
    record = ModelRecord(
        label=inputs.config.model.label,
        sha256="",
        architecture=type(model).__name__,
        num_parameters=model.num_parameters(),
        num_layers=layers,
        hidden_size=int(model.config.get_text_config().hidden_size),
        vocab_size=int(model.config.get_text_config().vocab_size),
        dtype=str(inputs.dtype),
        device=str(inputs.device),
        prompt_format=inputs.encoder.prompt_format,
    )
    return Base(model, inputs.encoder.tokenizer, record, inputs.base.folder, MultiLora(model))
