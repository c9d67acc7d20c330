"""Sample the rows that arms replay of the base's own, once per study."""

import json
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from rankscope.errors import NotFiniteError
from rankscope.evaluate.context_window import context_length
from rankscope.evaluate.continuous_batching import Generation, GenerationLimits, RunningBatch
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

BLOCK = 256  # Tokens whose probabilities are added up on the device


@dataclass(slots=True)
class _SampledRow(Generation):
    """A row whose tokens are drawn; its ``ids`` keep its end tokens."""

    ends_left: int = 1
    draws: random.Random = field(default_factory=random.Random)
    """Uniform numbers of its own: what is drawn does not depend on the rows beside it."""

    def accept(self, token: int, batch: RunningBatch) -> None:
        self.ids.append(token)
        self.ends_left -= token in batch.limits.stop_ids
        self.stopped = self.ends_left == 0


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
        _SampledRow(
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


def draw(logits: Tensor, sequences: Sequence[_SampledRow]) -> Tensor:
    """A token for each row, (R,): the first whose cumulative probability exceeds the row's next
    uniform number. (R, V) logits.

    Only the sums of blocks of tokens, and the block that holds the token, leave the device: they
    are added up in float64, which not every device has.
    """
    uniform = torch.tensor([[row.draws.random()] for row in sequences], dtype=torch.float64)
    probabilities = F.pad(logits.float().softmax(dim=-1), (0, -logits.shape[-1] % BLOCK))
    blocks = probabilities.unflatten(-1, (-1, BLOCK))  # (R, V / BLOCK, BLOCK)
    sums = blocks.sum(dim=-1).cpu().double()
    if not sums.isfinite().all():
        raise NotFiniteError(
            "self_replay",
            "probabilities of the base that are not finite",
            "finite ones",
            "set dtype: float32 or use another model",
        )
    block, rest = _first_beyond(sums, uniform * sums.sum(dim=-1, keepdim=True))
    rows = torch.arange(len(blocks), device=blocks.device)
    token, _ = _first_beyond(blocks[rows, block.squeeze(1).to(blocks.device)].cpu().double(), rest)
    return (block * BLOCK + token).squeeze(1)


def _first_beyond(weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row, the index of the first weight with which the sum exceeds the target, and how far
    the target exceeds the sum of the weights before it. (R, N) and (R, 1) float64."""
    cumulative = weights.cumsum(dim=-1)
    below_all = cumulative[:, -1:] * (1 - torch.finfo(torch.float64).eps)
    target = torch.minimum(target, below_all)
    index = torch.searchsorted(cumulative, target, right=True)
    return index, target - (cumulative - weights).gather(1, index)
