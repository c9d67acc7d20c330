"""The stage that computes the base's log-probabilities of pairs, for rows and items."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from rankscope.data.encode import EncodedRow, EncodedRows
from rankscope.data.tasks import LoadedTask, items_sha256
from rankscope.errors import NotFiniteError
from rankscope.evaluate.context_window import context_length
from rankscope.evaluate.evaluator import encode_split
from rankscope.evaluate.likelihood import continuation_logprobs
from rankscope.evaluate.scorers import get_scorer
from rankscope.extensions.preferences.dpo import Dpo
from rankscope.hashing import sha256_json
from rankscope.models.base import Base
from rankscope.models.output_layer import output_layer_apart
from rankscope.records import Split
from rankscope.run.prepared import SPLITS, PreparedStudy
from rankscope.run.stages import RowsStage
from rankscope.train.loss import mean_losses
from rankscope.train.objectives.objective import objective_of
from rankscope.train.step import forward_passes, label_states

Margins = Callable[[Base], list[float]]


class ReferenceStage(RowsStage[Margins]):
    """Computes log p of each pair's preferred answer minus the other's, under the bare base."""

    name = "reference"

    def wanted(self) -> dict[str, Margins]:
        study = self.context.study
        data, wanted = study.data, dict[str, Margins]()
        if any(isinstance(objective_of(text), Dpo) for text in study.config.objectives()):
            compute = partial(reference_margins, batch_tokens=study.config.train.batch_tokens)
            sets = [rows for of in data.fewer_rows.values() for rows in of.values()]
            for rows in (*data.rows.values(), *sets):
                wanted[_of_rows(rows)] = partial(compute, rows=rows.rows)
        for task, split in _pair_splits(study):
            wanted[_of_items(study, task, split)] = partial(_item_margins, study, task, split)
        return wanted

    def run(
        self, model: Base, work: Sequence[tuple[str, Margins]]
    ) -> Iterator[tuple[str, list[float]]]:
        self.context.begin_stage(self.name, len(work))
        for sha256, compute in work:
            self.context.begin_piece("pairs")
            margins = compute(model)
            if not all(map(math.isfinite, margins)):
                found = "log-probabilities that are not finite"
                raise NotFiniteError("pairs: the base", found, do="try 'dtype: float32'")
            yield sha256, margins

    def use(self) -> None:
        if not (made := self.made()):
            return
        study, data = self.context.study, self.context.study.data

        def beside(rows: EncodedRows) -> EncodedRows:
            margins = made.get(_of_rows(rows))
            if margins is None:
                return rows
            pairs = zip(rows.rows, margins, strict=True)
            return replace(rows, rows=tuple(replace(row, value=margin) for row, margin in pairs))

        tasks = dict(data.tasks)
        for task, split in _pair_splits(study):
            pairs = zip(task.items(split), made[_of_items(study, task, split)], strict=True)
            items = tuple(replace(item, base_margin=margin) for item, margin in pairs)
            own = tasks[task.spec.name]
            tasks[task.spec.name] = (
                replace(own, test=items) if split == "test" else replace(own, validation=items)
            )
        fewer = {
            name: {n: beside(rows) for n, rows in of.items()}
            for name, of in data.fewer_rows.items()
        }
        rows = {name: beside(rows) for name, rows in data.rows.items()}
        data = replace(data, tasks=tasks, rows=rows, fewer_rows=fewer)
        self.context.study = replace(study, data=data)


def _of_rows(rows: EncodedRows) -> str:
    return sha256_json(["reference", rows.sha256])


def _of_items(study: PreparedStudy, task: LoadedTask, split: Split) -> str:
    items, size = items_sha256(task.items(split)), study.config.evaluate.batch_tokens
    return sha256_json(["reference", task.spec.name, split, items, size])


def _pair_splits(study: PreparedStudy) -> list[tuple[LoadedTask, Split]]:
    """Return the splits that are scored against the base."""
    tasks = study.data.tasks.values()
    return [
        (task, split)
        for task in tasks
        if not task.parts and get_scorer(task.spec.scorer).compares_with_base
        for split in SPLITS
        if (task.spec.name, split) in study.items
    ]


def _item_margins(study: PreparedStudy, task: LoadedTask, split: Split, base: Base) -> list[float]:
    """Compute the margins in the passes of scoring.

    A model that changes nothing then scores exactly 0.5.
    """
    longest, settings = context_length(base.model.config), study.config.evaluate
    encoded = encode_split(study.data.encoder, task, split, longest, settings)
    questions = [question for of_item in encoded.encoded for question in of_item]
    with torch.inference_mode():
        by_model = continuation_logprobs(base, questions, [None], settings.batch_tokens)
    answers = [item.answer or 0 for item in encoded.items]
    values = zip(answers, by_model[None].values, strict=True)
    return [float(own[answer] - own[1 - answer]) for answer, own in values]


def reference_margins(base: Base, rows: Sequence[EncodedRow], batch_tokens: int) -> list[float]:
    """Return log p of each pair's chosen answer minus its rejected one's, under the bare base.

    In nats, computed in the passes of training.
    """
    pairs = [part for row in rows for part in row.parts]
    losses = []
    with torch.no_grad():
        for ((_, part),) in forward_passes([pairs], batch_tokens):
            with output_layer_apart(base.model) as head:
                states, labels = label_states(base, [(part, None, True)])
            counts = [sum(row.is_label) for row in part]
            losses.append(mean_losses(states, labels, counts, [1.0] * len(counts), head))
    chosen, rejected = torch.cat(losses).unflatten(0, (-1, 2)).unbind(1)
    margins: list[float] = (rejected - chosen).tolist()
    return margins
