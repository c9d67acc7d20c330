"""How long training steps take on this machine, relative to the estimate.

The estimate counts products and traffic; what libraries, threads and the sizes of tensors make of
them is only seen by training. Two adapters train for a few steps on a copy of the base that has
its shapes and random weights.
"""

import copy
import dataclasses
import gc
import itertools
import time
from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from rankscope.device import available_memory_bytes, release_freed_memory
from rankscope.models.attention import varlen
from rankscope.models.base import Base
from rankscope.models.load import frozen_base, model_record
from rankscope.models.methods.lora import LoraMethod
from rankscope.models.multi_lora import unwrap
from rankscope.models.parameters import architecture
from rankscope.records import TrialSpec
from rankscope.run.costs import CostModel
from rankscope.run.groups import USABLE_SHARE
from rankscope.run.prepared import PreparedStudy
from rankscope.train.loop import train_group
from rankscope.train.memory import MemoryModel
from rankscope.train.pass_memory import FEWEST_LAYERS
from rankscope.train.step_schedule import trial_protocol

STEPS = 4  # The first touches new memory and compiles kernels, and is not counted
STEP_SECONDS = 1.0  # Estimated, of a step; of a larger model fewer layers run

WEIGHT_DEVIATION = 0.02  # Standard deviation of the random weights

now = time.perf_counter


@dataclasses.dataclass(frozen=True, slots=True)
class Pace:
    factor: float = 1.0  # Measured over estimated seconds
    layers: int = 0  # That were run; 0: nothing was measured


_MEASURED: dict[tuple[object, ...], Pace] = {}
"""Of this process, which may plan a model more than once."""


def measured_pace(model: CostModel) -> Pace:
    """The pace of a study's base on this machine.

    Nothing is measured without LoRA arms, with ``train.devices`` or 4-bit weights, where the memory
    is short, where two layers and a row of each adapter are estimated to take longer than a step
    may, and where the base cannot be trained like this.
    """
    inputs = model.inputs
    train = inputs.config.train
    lora = [t for t in inputs.trials if not t.trains_alone and t.given is None]
    if not lora or train.devices > 1 or inputs.config.quantize != "none":
        return Pace()
    ranks = sorted(trial.rank or 1 for trial in lora)
    trials = [probe_trial(lora[0], rank, seed) for seed, rank in enumerate((ranks[0], ranks[-1]))]
    rows = inputs.rows[lora[0].task]
    full_pass = round(train.batch_tokens / len(trials) * len(rows.rows) / rows.num_tokens)
    own = trial_protocol(lora[0], train)
    num_rows = max(1, min(full_pass, own.batch_size * own.gradient_accumulation))
    depth = int(inputs.base.config.get_text_config().num_hidden_layers)
    seconds = step_seconds(model, with_rows(inputs, trials, num_rows))
    layers = min(depth, max(FEWEST_LAYERS, int(depth * STEP_SECONDS / seconds)))
    most_rows = int(num_rows * STEP_SECONDS / (seconds * layers / depth))
    if most_rows < 1:
        return Pace()
    key = (
        *(inputs.base.folder, inputs.device, inputs.dtype, layers, most_rows),
        *(rows.num_tokens, len(rows.rows), str(train), *map(str, trials)),
    )
    if key not in _MEASURED:
        try:
            probed = with_layers(with_rows(inputs, trials, min(num_rows, most_rows)), layers)
            _MEASURED[key] = Pace(_run_steps(probed, CostModel(probed, model.machine)), layers)
        except Exception:
            _MEASURED[key] = Pace()  # of what is wrong a run or a check will tell
        finally:
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


def with_layers(inputs: PreparedStudy, layers: int) -> PreparedStudy:
    """The study on a base of the first layers."""
    config: PretrainedConfig = copy.deepcopy(inputs.base.config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if kinds := getattr(text, "layer_types", None):
        text.layer_types = kinds[:layers]
    base = dataclasses.replace(inputs.base, config=config, shapes=architecture(config))
    memory = MemoryModel(config, inputs.dtype, inputs.device)
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


def step_seconds(model: CostModel, probed: PreparedStudy) -> float:
    estimate = CostModel(probed, model.machine).training(probed.trials)
    return sum(estimate.values()) / STEPS


def _run_steps(probed: PreparedStudy, model: CostModel) -> float:
    """The fastest step over its estimate, by tokens: what else the machine does only adds to the
    others."""
    ends: list[tuple[float, int]] = []

    def note_end(step: int, num_steps: int, num_tokens: int, losses: Sequence[float]) -> None:
        ends.append((now(), num_tokens))

    task = probed.trials[0].task
    memory, counts = probed.grouping.model, probed.grouping.counts[task]
    needed = memory.of_group(probed.trials, counts, probed.config.train).total_bytes
    free = available_memory_bytes(probed.device)
    if needed > USABLE_SHARE * min(free, probed.config.memory_limit or free):
        raise MemoryError("no room for the base of a few steps")
    base, rows = random_base(probed), probed.rows[task].rows
    try:
        train_group(base, list(probed.trials), rows, probed.config.train, progress=note_end)
    finally:
        unwrap(base.model)
        del base
        gc.collect()  # layers and adapters refer to each other
    taken = [(end - begun) / tokens for (begun, _), (end, tokens) in itertools.pairwise(ends)]
    estimated_tokens = sum(map(probed.training_tokens, probed.trials)) / STEPS
    return min(taken) * estimated_tokens / step_seconds(model, probed)


def random_base(inputs: PreparedStudy) -> Base:
    varlen.register_attention()
    with torch.device(inputs.device), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            inputs.base.config, attn_implementation=varlen.NAME, dtype=inputs.dtype
        )
    model.tie_weights()  # which comes with the weights otherwise
    generator = torch.Generator(inputs.device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=WEIGHT_DEVIATION, generator=generator)
    tokenizer, device = inputs.encoder.tokenizer, inputs.device
    record = model_record(inputs.config.model, device, inputs.dtype, "none", model, tokenizer, "")
    return frozen_base(model, tokenizer, record, inputs.base.folder)
