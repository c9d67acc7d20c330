"""Replay of rows that the base itself writes: sampled once per study, before any training."""

from typing import TYPE_CHECKING

from rankscope.config.section import Unfit, short_repr
from rankscope.sources import Source, register_source

if TYPE_CHECKING:
    from rankscope.config.study import StudyConfig
    from rankscope.data.encode import EncodedRows, Encoder
    from rankscope.run.context import RunContext
    from rankscope.sources.self_replay.stage import SelfReplayStage

MOST_ROWS = 100_000


class SelfReplay(Source):
    name = "self_replay"
    prefix = "self"
    use = "replayed"
    label = "rows that the base writes"

    def check_name(self, rest: str) -> None:
        if not (rest.isdecimal() and 1 <= int(rest[:7]) <= MOST_ROWS):
            rule = f"a number of rows to sample, at most {MOST_ROWS:,}, each of at most "
            raise Unfit(short_repr(rest), f"{rule}train.max_length tokens")

    def rows(self, rest: str, config: "StudyConfig", encoder: "Encoder") -> "EncodedRows":
        from rankscope.sources.self_replay.rows import RowsToSample

        return RowsToSample.of(int(rest), encoder, config.train.max_length, config.data_seed)

    def stage(self, context: "RunContext") -> "SelfReplayStage":
        from rankscope.sources.self_replay.stage import SelfReplayStage

        return SelfReplayStage(context)


register_source(SelfReplay())
