"""Sample the rows that arms replay of the base's own, once per study."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rankscope.data.encode import EncodedRows
from rankscope.data.self_replay import RowsToSample
from rankscope.evaluate.sampling import sample_rows
from rankscope.models.base import Base
from rankscope.run.context import RunContext
from rankscope.run.groups import Group
from rankscope.run.stages import Stage, run_stage
from rankscope.store import Ledger, sampled_rows_path


class SelfReplayStage(Stage[RowsToSample, "tuple[RowsToSample, list[list[int]]]"]):
    """Rows written by the bare base, stored before any trial trains."""

    name = "sample self_replay"

    def missing(self, group: Group = ()) -> list[RowsToSample]:
        """Those not stored yet; no group has rows of its own."""
        ledger, wanted = self.context.ledger, self.context.study.rows_to_sample.values()
        return [rows for rows in wanted if not ledger.artifacts(_place_of(rows))]

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
            ledger.commit(artifacts=ledger.publish(file, _place_of(rows)))


def _place_of(rows: RowsToSample) -> str:
    return sampled_rows_path(rows.sha256)


def _stored_rows(ledger: Ledger, rows: RowsToSample) -> EncodedRows:
    """The rows that were sampled in place of their stand-ins. Raises IntegrityError if they are
    altered."""
    lines = ledger.checked_path(_place_of(rows)).read_text(encoding="utf-8").splitlines()
    return rows.sampled([json.loads(line)["ids"] for line in lines])


def use_sampled_rows(context: RunContext) -> None:
    """Put the base's own rows in place of their stand-ins; sample those that are not stored."""
    stage = SelfReplayStage(context)
    run_stage(context, stage, context.base, stage.missing())
    wanted, data = context.study.rows_to_sample, context.study.data
    if wanted:
        sampled = {name: _stored_rows(context.ledger, rows) for name, rows in wanted.items()}
        data = replace(data, replay_rows={**data.replay_rows, **sampled})
        context.study = replace(context.study, data=data)
