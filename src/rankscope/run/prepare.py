"""From a study file to everything that can be known before weights are loaded."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch

from rankscope.advise.checks import notes_beforehand
from rankscope.config.study import StudyConfig
from rankscope.data.study_data import prepare_data
from rankscope.device import (
    available_memory_bytes,
    choose_device,
    choose_dtype,
    dtype_name,
)
from rankscope.errors import UserError
from rankscope.evaluate.evaluator import scored_items
from rankscope.evaluate.vllm import resolved_engine
from rankscope.models.attention.kernel import kernel_takes
from rankscope.models.study_base import check_machine, resolve_base
from rankscope.progress import ProgressReporter
from rankscope.records import TrialSpec
from rankscope.run.groups import USABLE_SHARE, Grouping
from rankscope.run.machines import Machine
from rankscope.run.prepared import Items, PreparedStudy, check_prepared
from rankscope.run.trials import duplicate_grid_notes, study_trials
from rankscope.train.memory import MemoryModel, RowCounts


def prepare(
    config: StudyConfig,
    reporter: ProgressReporter | None = None,
    num_processes: int = 1,
    machine: Machine | None = None,
    *,
    is_plan: bool = False,
) -> PreparedStudy:
    """Fetch the model, encode the data, check it all. The base's weights are hashed, not loaded.

    ``num_processes`` groups train at a time and share the free memory. For a plan the base's
    configuration and tokenizer are enough, some rows stand for others of their length
    (``data/study_data.py``), and the trials' ids are not those of a run; it may be made for a
    ``machine`` in place of this one.
    """
    reporter = reporter or ProgressReporter()
    device = choose_device(config.device) if machine is None else machine.device
    if machine is None:
        dtype = choose_dtype(config.dtype, device)
        free_bytes = available_memory_bytes(device) / num_processes
    else:
        dtype, free_bytes = machine.dtype(config.dtype), machine.memory * 1e9
    reporter.stage("preparing", 3)
    config, base = resolve_base(config, weights=not is_plan)
    reporter.advance(1, "rows")
    data = prepare_data(config, base.tokenizer, whole=not is_plan)
    # ``auto`` is resolved: trial ids name what was done.
    model = config.model.model_copy(update={"prompt_format": data.encoder.prompt_format})
    engine = resolved_engine(config, device, dtype) if machine is None else "own"
    evaluate = config.evaluate.model_copy(update={"engine": engine})
    config = config.model_copy(
        update={"model": model, "dtype": dtype_name(dtype), "evaluate": evaluate}
    )
    reporter.advance(2, "trials and groups")
    tasks, items, length_notes = scored_items(config, base, data)
    trials, beyond = study_trials(config, base, data, tasks, whole=not is_plan)
    prompted = {
        t.trial_id: scored_items(config, base, data.seen_by(t))[1] for t in trials if t.prompt
    }
    has_kernel = None if machine is None else machine.has_attention_kernel
    memory = MemoryModel(base.config, dtype, device, config.quantize, has_kernel)
    rows = {**data.replay_rows, **data.rows}
    counts = {name: RowCounts.of(encoded.rows) for name, encoded in rows.items()}
    free_bytes /= config.train.devices if memory.device.type == "cpu" else 1  # shards share it
    room = config.memory_limit or round(USABLE_SHARE * free_bytes)
    notes = [*base.notes, *data.encoder.notes, *data.notes, *length_notes]
    notes += notes_beforehand(config, tasks)
    notes += experts_notes(memory, trials) + attention_notes(memory)
    if not memory.packs:
        notes += rows_alone_notes(config, memory, counts)
    notes += [_tokens_note(t, items, prompted[t.trial_id]) for t in trials if t.prompt]
    study = PreparedStudy(
        config=config,
        base=base,
        device=device,
        dtype=dtype,
        data=data,
        items=items,
        task_records=tasks,
        trials=trials,
        grouping=Grouping(memory, counts, room),
        beyond=beyond,
        prompted=prompted,
        notes=(*notes, *duplicate_grid_notes(config)),
    )
    check_prepared(study)
    reporter.finish()
    if machine is None:
        check_machine(study.config, study.trials, device, dtype)
    return study


def experts_notes(memory: MemoryModel, trials: Sequence[TrialSpec]) -> list[str]:
    """That adapters leave experts alone, if each layer holds them in one tensor."""
    names = [
        f"{name}.{key}"
        for name, module in memory.base.named_modules()
        if "Experts" in type(module).__name__
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3
    ]
    if not names or not any(trial.rank and not trial.peft for trial in trials):
        return []
    short = names[0].split(".layers.")[-1].partition(".")[2]
    return [
        f"{type(memory.base).__name__}: adapters leave its experts, no linear layers, as they "
        f"are; method {{peft: {{peft_type: LORA, target_parameters: [{short}]}}}} trains them"
    ]


def attention_notes(memory: MemoryModel) -> list[str]:
    """What attention on CUDA costs without the kernel that takes rows of any length."""
    if not memory.packs or memory.device.type != "cuda":
        return []
    sizes = {
        getattr(module, "qk_head_dim", None) or getattr(module, "head_dim", None) or 64
        for module in memory.base.modules()
    }
    sizes = {size for size in sizes if not kernel_takes(size, memory.dtype)}
    if not memory.passes.has_kernel:
        why = "a GPU below compute capability 8.0"
    elif memory.dtype == torch.float32:
        why = "float32"
    elif sizes:
        why = f"heads of {max(sizes)}"
    else:
        return []
    return [
        f"{why}: attention without FlashAttention, so rows are padded to the longest of their pass "
        "and key heads repeated; the plan counts their memory, not their time"
    ]


def rows_alone_notes(
    config: StudyConfig, memory: MemoryModel, counts: Mapping[str, RowCounts]
) -> list[str]:
    """What it costs that rows of this model cannot share a pass."""
    architecture = type(memory.base).__name__
    if config.train.devices > 1:
        found = f"{config.train.devices}, with {architecture}, whose rows run alone"
        raise UserError("train.devices", found, "1 (docs/models.md)")
    shortest = min((of.mean_tokens for of in counts.values()), default=1.0)
    times = max(1.0, config.train.batch_tokens / shortest)
    return [
        f"{architecture}: rows cannot share a pass (docs/models.md), so each row, and each answer "
        f"of a question, runs alone: exact, in up to {times:,.0f} times as many passes as "
        f"train.batch_tokens={config.train.batch_tokens:,} allows, and shared beginnings run again"
    ]


def _tokens_note(trial: TrialSpec, items: Items, prompted: Items) -> str:
    """How much longer a prompt makes what a model reads."""
    own, base = (fmean(i.read for i in of[trial.task, "validation"]) for of in (prompted, items))
    return f"{trial.task} {trial.arm_label}: reads {own:,.0f} tokens an item, the base {base:,.0f}"
