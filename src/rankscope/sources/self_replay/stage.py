"""Sample the rows that arms replay of the base's own, once per study."""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from rankscope.evaluate.context_window import context_length
from rankscope.evaluate.continuous_batching import GenerationLimits, RunningBatch
from rankscope.evaluate.sampling import SampledGeneration, draw
from rankscope.models.base import Base
from rankscope.run.stages import RowsStage
from rankscope.sources.self_replay.rows import RowsToSample


class SelfReplayStage(RowsStage[RowsToSample]):
    """Rows written by the bare base."""

    name = "sample self_replay"

    def wanted(self) -> dict[str, RowsToSample]:
        """The stand-ins, until the base has written the rows."""
        replayed = self.context.study.data.replay_rows.values()
        return {rows.sha256: rows for rows in replayed if isinstance(rows, RowsToSample)}

    def run(
        self, model: Base, work: Sequence[tuple[str, RowsToSample]]
    ) -> Iterator[tuple[str, list[Any]]]:
        self.context.begin_stage(self.name, len(work))
        limit = self.context.study.config.evaluate.batch_tokens
        for sha256, rows in work:
            self.context.begin_piece(f"{len(rows.rows)} rows")
            written = sample_rows(model, rows, limit)
            rows.sampled(written)  # refuses rows without text before they are stored
            yield sha256, [{"text": model.tokenizer.decode(ids), "ids": ids} for ids in written]

    def use(self) -> None:
        if not (made := self.made()):
            return
        data = self.context.study.data
        replayed = dict(data.replay_rows)
        for name, rows in replayed.items():
            if isinstance(rows, RowsToSample):
                replayed[name] = rows.sampled([line["ids"] for line in made[rows.sha256]])
        data = replace(data, replay_rows=replayed)
        self.context.study = replace(self.context.study, data=data)


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
