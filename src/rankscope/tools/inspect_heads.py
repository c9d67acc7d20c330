"""``inspect --heads``: the attention heads of stored adapters and checkpoints beside the base's.

Unlike spectra, which read one matrix at a time, this runs the models: the base is loaded whole, and
full checkpoints beside it, one after another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rankscope.analyses.heads.layout import HeadLayout, HeadModel
from rankscope.analyses.heads.record import HeadsRecord
from rankscope.analyses.heads.tasks import HeadTask, head_task
from rankscope.analyses.heads.trial_heads import HeadAnalysis
from rankscope.analyses.inspection import Inspection, TunedModel
from rankscope.analyses.spectra.stored_models import StoredTunedModel
from rankscope.config.study import EvaluateConfig, ModelConfig
from rankscope.config.task import TaskConfig
from rankscope.data.encode import Encoder
from rankscope.data.tasks import load_task
from rankscope.device import choose_device, choose_dtype
from rankscope.evaluate.context_window import context_length
from rankscope.formatting import count, join_names
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.load import load_base, load_tokenizer
from rankscope.models.model_folder import shapes_folder
from rankscope.models.svd_cache import decomposition_device
from rankscope.progress import NullReporter, ProgressReporter

TOKENS_PER_PASS = 4096


@dataclass(frozen=True, slots=True)
class HeadSettings:
    task: str  # Its test items give importance and entropy; it counts as the trained one
    ablate: tuple[str, ...] = ()  # Tasks on which every head is removed by itself
    items: int = 64  # Most items of each task
    data_dir: Path | None = None  # Of the named tasks' files; by default from the hub
    dtype: str = "float32"
    """That the models run in. ``auto`` is the machine's fast one, whose rounding may be as large as
    a head's contribution. Changes are always computed from stored weights."""


def _load_head_task(
    name: str, settings: HeadSettings, encoder: Encoder, context: int | None
) -> HeadTask:
    task = load_task(TaskConfig(name=name), settings.data_dir, 0, settings.items)
    return head_task(context, encoder, task, settings.items, EvaluateConfig())


def check_heads(base: str, settings: HeadSettings) -> None:
    """Check architecture, tasks and items before spectra, which may take minutes."""
    choose_dtype(settings.dtype, torch.device("cpu"))
    folder = shapes_folder(base)
    shapes = CheckpointReader.open(folder).shapes
    HeadLayout.of(shapes)
    encoder = Encoder(load_tokenizer(folder), "auto", max_length=None)
    context = context_length(shapes.config)
    for name in dict.fromkeys((settings.task, *settings.ablate)):
        _load_head_task(name, settings, encoder, context)


def inspect_heads(
    inspection: Inspection,
    settings: HeadSettings,
    device: str = "auto",
    reporter: ProgressReporter | None = None,
) -> Inspection:
    reporter = reporter or NullReporter()
    analysis = _analyze_base(inspection.base, settings, choose_device(device), reporter)
    tuned = []
    reporter.stage("heads", len(inspection.tuned))
    for done, model in enumerate(inspection.tuned):
        reporter.advance(done, model.name)
        heads = _tuned_heads(model, analysis, settings.task)
        tuned.append(model.model_copy(update={"heads": heads}))
    reporter.finish()
    return inspection.model_copy(update={"tuned": tuple(tuned)})


def _analyze_base(
    name: str, settings: HeadSettings, device: torch.device, reporter: ProgressReporter
) -> HeadAnalysis:
    config = ModelConfig(path=str(shapes_folder(name).resolve()))
    base = load_base(config, device, choose_dtype(settings.dtype, device))
    layout = HeadLayout.of(base.model)
    encoder = Encoder(base.tokenizer, base.record.prompt_format, max_length=None)
    context = context_length(base.model.config)
    task = _load_head_task(settings.task, settings, encoder, context)
    ablated_on = tuple(
        _load_head_task(other, settings, encoder, context)
        for other in dict.fromkeys(settings.ablate)
    )
    if ablated_on:
        reporter.note(_ablation_size(layout, ablated_on))
        if settings.task not in settings.ablate:
            reporter.note(
                "head roles (skill gained, skill lost) are left out: they need --ablate "
                f"{settings.task} too"
            )
    reporter.stage("base heads", 1)
    model = HeadModel(base, layout, batch_tokens=TOKENS_PER_PASS)
    analysis = HeadAnalysis(model, task, ablated_on, settings.items)
    reporter.finish()
    return analysis


def _ablation_size(layout: HeadLayout, ablated_on: Sequence[HeadTask]) -> str:
    tasks = join_names(f"{count(len(task.trees), 'item')} of {task.name}" for task in ablated_on)
    return (
        f"ablation: {count(layout.num_heads, 'head')} and {count(len(layout), 'layer')} are "
        f"removed one by one and {tasks} scored each time, in the base and again in every tuned "
        "model; this may take hours on a large one"
    )


def _tuned_heads(model: TunedModel, analysis: HeadAnalysis, trained_on: str) -> HeadsRecord:
    base = analysis.model.base
    stored = StoredTunedModel.open(Path(model.path), model.name)
    stored_base = CheckpointReader.open(base.folder)
    if stored.adapter is None:
        config = ModelConfig(path=str(Path(model.path).resolve()))
        # Use the base's tokenizer: its items are encoded, and many checkpoints have none.
        tuned = load_base(config, base.device, base.model.dtype, tokenizer=base.tokenizer)
        return analysis.record(model.name, trained_on, tuned, stored_base.weight)
    adapter = stored.adapter
    for name in adapter.a:
        weight = stored_base.weight(name, decomposition_device(base.device))
        stored.subtract_initial_factors(name, weight)
    base.multi_lora.attach(adapter.to(base.device))
    try:
        return analysis.record(adapter.name, trained_on, base, stored_base.weight)
    finally:
        base.multi_lora.clear()


def most_moved_heads(record: HeadsRecord, most: int = 8) -> Sequence[tuple[int, int, float]]:
    """(layer, query head, |dW_h| / |W0_h|) of the heads whose q_proj or o_proj moved most."""
    moved: dict[tuple[int, int], float] = {}
    for change in record.changes:
        if change.module in ("q_proj", "o_proj"):
            for head, relative in enumerate(change.relative):
                key = (change.layer, head)
                moved[key] = max(moved.get(key, 0.0), relative)
    ordered = sorted(moved.items(), key=lambda item: -item[1])[:most]
    return [(layer, head, relative) for (layer, head), relative in ordered]
