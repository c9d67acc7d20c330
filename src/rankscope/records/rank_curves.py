"""Curves over rank that were made in different ways: trained, nested, truncated."""

from typing import Literal

from rankscope.records.estimate import Estimate
from rankscope.records.record import Record

CurveKind = Literal["trained", "nested", "truncated"]


class RankCurvePoint(Record):
    rank: int | None  # None: the area under the curve over log2 of the rank, by its width
    score: Estimate  # In-domain, test split
    forgetting: Estimate | None  # Base minus tuned, mean over retention tasks
    more_score: Estimate | None = None  # Than what was trained, on the same items
    more_forgetting: Estimate | None = None


class RankCurve(Record):
    kind: CurveKind
    rates: tuple[float, ...]  # Learning rates that were chosen
    points: tuple[RankCurvePoint, ...]  # By rising rank, the area last


class TaskRankCurves(Record):
    task: str
    curves: tuple[RankCurve, ...]  # Over the same ranks; what was trained first
