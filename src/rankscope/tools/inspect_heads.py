"""``inspect --heads``: the attention heads of stored adapters and checkpoints beside the base's.

Unlike spectra, which read one matrix at a time, this runs the models: the base is loaded whole, and
checkpoints one after another beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from rankscope.analyze.heads.layout import HeadLayout
from rankscope.analyze.heads.trial import HeadStudy, HeadTask, head_task, measure
from rankscope.analyze.stored_models import StoredTunedModel, computing_device, principal_part
from rankscope.config.study import EvaluateConfig, ModelConfig
from rankscope.config.task import TaskConfig
from rankscope.data.encode import Encoder
from rankscope.data.tasks import LoadedTask, load_task
from rankscope.device import choose_device, choose_dtype
from rankscope.evaluate.evaluator import context_length
from rankscope.formatting import count, join_names
from rankscope.models.base import Base
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.load import load_base, load_tokenizer, shapes_folder
from rankscope.models.lora import Adapter
from rankscope.progress import NullReporter, ProgressReporter
from rankscope.records import HeadsRecord, Inspection, TunedModel

BATCH_TOKENS = 4096
"""Most tokens of a pass."""


@dataclass(frozen=True, slots=True)
class HeadSettings:
    """What heads are looked at on.

    Attributes:
        task: a named task, whose test items importance and entropy are of, and which counts as
            the one trained on.
        ablate: tasks on which every head is removed by itself.
        items: at most so many of each task.
        data_dir: folder of the named tasks' files; the hub's where None.
        dtype: the models run in; ``auto`` is the machine's fast one, whose rounding may be as large
            as what a head is worth. Changes are of stored weights.
    """

    task: str
    ablate: tuple[str, ...] = ()
    items: int = 64
    data_dir: Path | None = None
    dtype: str = "float32"


def read(settings: HeadSettings, task: str) -> LoadedTask:
    """A task's items, as many as are looked at."""
    return load_task(TaskConfig(name=task), settings.data_dir, 0, settings.items)


def check(base: str, settings: HeadSettings) -> None:
    """Look at the base's shapes, read the tasks and encode their items before spectra, which may
    take minutes.

    Raises:
        UserError: heads that cannot be told apart, a task that is not known or cannot be read, items
            longer than the base's context; a dtype of another name.
    """
    choose_dtype(settings.dtype, torch.device("cpu"))
    folder = shapes_folder(base)
    shapes = CheckpointReader.open(folder).shapes
    HeadLayout.of(shapes)
    encoder = Encoder(load_tokenizer(folder), "auto", max_length=None)
    context = context_length(shapes.config)
    for task in dict.fromkeys((settings.task, *settings.ablate)):
        head_task(context, encoder, read(settings, task), settings.items, EvaluateConfig())


def inspect_heads(
    found: Inspection,
    settings: HeadSettings,
    device: str = "auto",
    reporter: ProgressReporter | None = None,
) -> Inspection:
    """An inspection with the heads of every tuned model in it.

    Raises:
        UserError: an architecture whose heads cannot be told apart, or a task that cannot be read.
        IntegrityError: weights that are missing, misshapen or not finite.
    """
    reporter = reporter or NullReporter()
    disable_progress_bar()  # transformers' own, for reading weights
    study, base = base_heads(found.base, settings, choose_device(device), reporter)
    tuned = []
    reporter.stage("heads", len(found.tuned))
    for done, model in enumerate(found.tuned):
        reporter.advance(done, model.name)
        heads = heads_of(model, study, base, settings.task)
        tuned.append(model.model_copy(update={"heads": heads}))
    reporter.finish()
    return found.model_copy(update={"tuned": tuple(tuned)})


def base_heads(
    name: str, settings: HeadSettings, device: torch.device, reporter: ProgressReporter
) -> tuple[HeadStudy, Base]:
    """The base and what its heads are."""
    folder = shapes_folder(name)
    model = ModelConfig(path=str(folder.resolve()))
    base = load_base(model, device, choose_dtype(settings.dtype, device))
    layout = HeadLayout.of(base.model)
    encoder = Encoder(base.tokenizer, base.record.prompt_format, max_length=None)
    context, evaluate = context_length(base.model.config), EvaluateConfig()
    task = head_task(context, encoder, read(settings, settings.task), settings.items, evaluate)
    ablated_on = tuple(
        head_task(context, encoder, read(settings, other), settings.items, evaluate)
        for other in dict.fromkeys(settings.ablate)
    )
    if ablated_on:
        reporter.note(ablation_size(layout, ablated_on))
        if settings.task not in settings.ablate:
            reporter.note(
                f"what heads carry of the tuned skill and carried of what was lost is not told: it "
                f"needs --ablate {settings.task} too"
            )
    reporter.stage("base heads", 1)
    measured = measure(base, layout, None, task, ablated_on, BATCH_TOKENS)
    reporter.finish()
    return HeadStudy(layout, task, ablated_on, settings.items, BATCH_TOKENS, measured), base


def ablation_size(layout: HeadLayout, ablated_on: Sequence[HeadTask]) -> str:
    """How much is ablated: real models have hundreds of heads, and it may take hours."""
    tasks = join_names(f"{count(len(task.trees), 'item')} of {task.name}" for task in ablated_on)
    return (
        f"ablation: {count(layout.num_heads, 'head')} and {count(len(layout), 'layer')} are "
        f"removed one by one and {tasks} scored each time, in the base and again in every tuned "
        "model; this may take hours on a large one"
    )


def heads_of(model: TunedModel, study: HeadStudy, base: Base, trained_on: str) -> HeadsRecord:
    """Heads of one adapter or checkpoint."""
    stored = StoredTunedModel.open(Path(model.path), model.name)
    before = CheckpointReader.open(base.folder)
    if stored.adapter is None:
        config = ModelConfig(path=str(Path(model.path).resolve()))
        # Its items are encoded already; many trainers save a checkpoint without a tokenizer.
        tuned = load_base(config, base.device, base.model.dtype, tokenizer=base.tokenizer)
        return study.record(model.name, trained_on, base, tuned, before.weight)
    adapter = started(stored, before, computing_device(base.device))
    base.multi_lora.attach(adapter.to(base.device))
    try:
        return study.record(adapter.name, trained_on, base, base, before.weight)
    finally:
        base.multi_lora.clear()


def started(stored: StoredTunedModel, base: CheckpointReader, device: torch.device) -> Adapter:
    """A stored adapter, PiSSA's start, computed on ``device``, subtracted from every module."""
    assert stored.adapter is not None
    adapter = stored.adapter
    if stored.kind == "pissa":
        for name in adapter.a:
            adapter.start[name] = principal_part(base.weight(name, device), adapter, name)
    return adapter


def most_moved_heads(record: HeadsRecord, most: int = 8) -> Sequence[tuple[int, int, float]]:
    """(layer, query head, |dW_h| / |W0_h|) of the q_proj or o_proj slices that moved most."""
    found: dict[tuple[int, int], float] = {}
    for change in record.changes:
        if change.module in ("q_proj", "o_proj"):
            for head, value in enumerate(change.relative):
                place = (change.layer, head)
                found[place] = max(found.get(place, 0.0), value)
    ordered = sorted(found.items(), key=lambda item: -item[1])[:most]
    return [(layer, head, value) for (layer, head), value in ordered]
