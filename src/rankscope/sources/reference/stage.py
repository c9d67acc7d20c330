"""Compute the base's log-probabilities of pairs, and store them in rows and items."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from rankscope.data.encode import EncodedRows
from rankscope.data.tasks import LoadedTask, items_sha256
from rankscope.errors import NotFiniteError
from rankscope.evaluate.context_window import context_length
from rankscope.evaluate.evaluator import encode_split
from rankscope.evaluate.likelihood import continuation_logprobs
from rankscope.evaluate.scorers import get_scorer
from rankscope.hashing import sha256_json
from rankscope.models.base import Base
from rankscope.records import Split
from rankscope.run.context import RunContext
from rankscope.run.groups import Group
from rankscope.run.prepared import SPLITS
from rankscope.run.stages import Stage, run_stage
from rankscope.store import rows_path

Margins = tuple[str, Callable[[Base], list[float]]]
"""The hash of what margins depend on besides the base, and how they are computed."""


class ReferenceStage(Stage[Margins, tuple[str, list[float]]]):
    """Log p of the preferred answer of each pair less that of the other, under the bare base."""

    name = "reference"

    def missing(self, group: Group = ()) -> list[Margins]:
        """Those not stored yet; no group has pairs of its own."""
        ledger, wanted = self.context.ledger, _wanted(self.context)
        return [margins for margins in wanted if not ledger.artifacts(rows_path(margins[0]))]

    def run(self, model: Base, work: Sequence[Margins]) -> Iterator[tuple[str, list[float]]]:
        self.context.begin_stage(self.name, len(work))
        for sha256, compute in work:
            self.context.begin_piece("pairs")
            margins = compute(model)
            if not all(map(math.isfinite, margins)):
                found = "log-probabilities that are not finite"
                raise NotFiniteError("pairs: the base", found, do="try 'dtype: float32'")
            yield sha256, margins

    def commit(self, result: tuple[str, list[float]]) -> None:
        (sha256, margins), ledger = result, self.context.ledger
        with ledger.stage() as folder:
            file = folder / "margins.jsonl"
            file.write_text("".join(f"{margin!r}\n" for margin in margins), encoding="utf-8")
            ledger.commit(artifacts=ledger.publish(file, rows_path(sha256)))


def _wanted(context: RunContext) -> list[Margins]:
    study = context.study
    data, train, wanted = study.data, study.config.train, list[Margins]()
    if any(objective.needs_reference for objective in study.config.objectives()):
        from rankscope.train.objectives.dpo import reference_margins

        sets = [rows for of in data.fewer_rows.values() for rows in of.values()]
        for rows in (*data.rows.values(), *sets):
            compute = partial(reference_margins, rows=rows.rows, batch_tokens=train.batch_tokens)
            wanted.append((_of_rows(rows), compute))
    for task, split in _pair_splits(context):
        sha256 = _of_items(context, task, split)
        wanted.append((sha256, partial(_item_margins, context, task, split)))
    return wanted


def _of_rows(rows: EncodedRows) -> str:
    return sha256_json(["reference", rows.sha256])


def _of_items(context: RunContext, task: LoadedTask, split: Split) -> str:
    items, size = items_sha256(task.items(split)), context.study.config.evaluate.batch_tokens
    return sha256_json(["reference", task.spec.name, split, items, size])


def _pair_splits(context: RunContext) -> list[tuple[LoadedTask, Split]]:
    """The splits that are scored against the base."""
    tasks = context.study.data.tasks.values()
    return [
        (task, split)
        for task in tasks
        if not task.parts and get_scorer(task.spec.scorer).compares_with_base
        for split in SPLITS
        if (task.spec.name, split) in context.study.items
    ]


def _item_margins(context: RunContext, task: LoadedTask, split: Split, base: Base) -> list[float]:
    """In the passes of scoring, so that a model that changes nothing scores exactly .5."""
    study = context.study
    longest, settings = context_length(base.model.config), study.config.evaluate
    encoded = encode_split(study.data.encoder, task, split, longest, settings)
    questions = [question for of_item in encoded.encoded for question in of_item]
    with torch.inference_mode():
        by_model = continuation_logprobs(base, questions, [None], settings.batch_tokens)
    answers = [item.answer or 0 for item in encoded.items]
    values = zip(answers, by_model[None].values, strict=True)
    return [float(own[answer] - own[1 - answer]) for answer, own in values]


def use_reference(context: RunContext) -> None:
    """Put the base's margins beside pairs; compute those that are not stored. Raises
    IntegrityError: stored margins are altered."""
    if not (wanted := _wanted(context)):
        return
    stage, data = ReferenceStage(context), context.study.data
    run_stage(context, stage, stage.missing())
    known = {
        sha256: [
            json.loads(line)
            for line in context.ledger.checked_path(rows_path(sha256)).read_text("utf-8").split()
        ]
        for sha256, _ in wanted
    }

    def beside(rows: EncodedRows) -> EncodedRows:
        margins = known.get(_of_rows(rows))
        if margins is None:
            return rows
        pairs = zip(rows.rows, margins, strict=True)
        return replace(rows, rows=tuple(replace(row, value=margin) for row, margin in pairs))

    tasks = dict(data.tasks)
    for task, split in _pair_splits(context):
        pairs = zip(task.items(split), known[_of_items(context, task, split)], strict=True)
        items = tuple(replace(item, base_margin=margin) for item, margin in pairs)
        own = tasks[task.spec.name]
        tasks[task.spec.name] = (
            replace(own, test=items) if split == "test" else replace(own, validation=items)
        )
    fewer = {
        name: {n: beside(rows) for n, rows in of.items()} for name, of in data.fewer_rows.items()
    }
    rows = {name: beside(rows) for name, rows in data.rows.items()}
    data = replace(data, tasks=tasks, rows=rows, fewer_rows=fewer)
    context.study = replace(context.study, data=data)
