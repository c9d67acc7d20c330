"""Sample the rows that arms replay of the base's own, once per study."""

import json
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from rankscope.evaluate.context_window import context_length
from rankscope.evaluate.continuous_batching import GenerationLimits, RunningBatch
from rankscope.evaluate.sampling import SampledGeneration, draw
from rankscope.models.base import Base
from rankscope.run.context import RunContext
from rankscope.run.groups import Group
from rankscope.run.stages import Stage, run_stage
from rankscope.sources.self_replay.rows import RowsToSample
from rankscope.store import rows_path


class SelfReplayStage(Stage[RowsToSample, "tuple[RowsToSample, list[list[int]]]"]):
    """Rows written by the bare base, stored before any trial trains."""

    name = "sample self_replay"

    def missing(self, group: Group = ()) -> list[RowsToSample]:
        """Those not stored yet; no group has rows of its own."""
        wanted, ledger = _rows_to_sample(self.context).values(), self.context.ledger
        return [rows for rows in wanted if not ledger.artifacts(rows_path(rows.sha256))]

    def run(
        self, model: Base, work: Sequence[RowsToSample]
    ) -> Iterator[tuple[RowsToSample, list[list[int]]]]:
        self.context.begin_stage(self.name, len(work))
        for rows in work:
            self.context.begin_piece(f"{len(rows.rows)} rows")
            yield rows, sample_rows(model, rows, self.context.study.config.evaluate.batch_tokens)

    def commit(self, result: tuple[RowsToSample, list[list[int]]]) -> None:
        rows, written = result
        rows.sampled(written)  # refuses rows without text before they are stored
        tokenizer, ledger = self.context.base.tokenizer, self.context.ledger
        lines = [json.dumps({"text": tokenizer.decode(ids), "ids": ids}) for ids in written]
        with ledger.stage() as folder:
            file = folder / "rows.jsonl"
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
            ledger.commit(artifacts=ledger.publish(file, rows_path(rows.sha256)))


def _rows_to_sample(context: RunContext) -> dict[str, RowsToSample]:
    """The stand-ins, until the base has written the rows."""
    replayed = context.study.data.replay_rows.items()
    return {name: rows for name, rows in replayed if isinstance(rows, RowsToSample)}


def use_sampled_rows(context: RunContext) -> None:
    """Put the base's own rows in place of their stand-ins; sample those that are not stored. Raises
    IntegrityError: stored rows are altered."""
    stage = SelfReplayStage(context)
    run_stage(context, stage, stage.missing())
    sampled = {}
    for name, rows in _rows_to_sample(context).items():
        lines = context.ledger.checked_path(rows_path(rows.sha256)).read_text("utf-8").splitlines()
        sampled[name] = rows.sampled([json.loads(line)["ids"] for line in lines])
    if sampled:
        data = context.study.data
        data = replace(data, replay_rows={**data.replay_rows, **sampled})
        context.study = replace(context.study, data=data)


# --- what the base writes by itself, at temperature 1 -------------------------------------------


def sample_rows(base: Base, rows: RowsToSample, batch_tokens: int) -> list[list[int]]:
    """What the base writes in each row after the prompt, token ids."""
    limits = GenerationLimits(
        max_new_tokens=rows.max_length - len(rows.prompt),
        context=min(rows.max_length, context_length(base.model.config) or rows.max_length),
        batch_tokens=batch_tokens,
        stop_ids=rows.stop_ids,
    )
    most = limits.context - len(rows.prompt)
    sampled = [
        SampledGeneration(
            None,
            rows.prompt,
            most,
            ends_left=rows.num_ends,
            draws=random.Random(f"self_replay/{rows.seed}/{index}"),
        )
        for index in range(len(rows.rows))
    ]
    with torch.inference_mode():
        RunningBatch(base, limits, draw).run(deque(sampled))
    return [row.ids for row in sampled]
