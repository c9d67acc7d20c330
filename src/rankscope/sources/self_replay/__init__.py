"""Replay of rows that the base itself writes: sampled once per study, before any training."""

from typing import TYPE_CHECKING

from rankscope.config.section import Unfit, short_repr
from rankscope.sources import Source, register_source

if TYPE_CHECKING:
    from rankscope.config.study import StudyConfig
    from rankscope.data.encode import EncodedRows, Encoder
    from rankscope.run.context import RunContext

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

    def lacks_rows(self, context: "RunContext") -> bool:
        from rankscope.sources.self_replay.stage import SelfReplayStage

        return bool(SelfReplayStage(context).missing())

    def use_rows(self, context: "RunContext") -> None:
        from rankscope.sources.self_replay.stage import use_sampled_rows

        use_sampled_rows(context)


register_source(SelfReplay())
