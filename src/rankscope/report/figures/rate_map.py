"""Learning rate and rank: did every rank have a learning rate that suits it?"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from rankscope.formatting import join_names
from rankscope.records import ArmSummary, Status, TrialRecords
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.heat_map import change_grid, heat_map
from rankscope.report.columns import Column, interval_cells
from rankscope.report.figures import in_section
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import shown, table

_CAPTION = """Each cell is the expected net gain of one configuration. Blue is better than the \
base, orange worse; an empty cell was not trained, and one without a score says why. Brackets: \
the 95 % interval includes zero. The frame marks the recommendation. If the best rate of a rank \
is at the edge of its grid, a better one may be beyond it."""

UNKNOWN_RATES = (
    "No rank was trained and scored at two learning rates, so it is unknown how much of the "
    "difference between ranks is due to the rate."
)
_WITHOUT: dict[Status, str] = {
    "done": "not scored",
    "trained": "not scored",
    "diverged": "diverged",
    "oom": "out of memory",
    "failed": "failed",
}


@in_section("ranks", 30)
def draw_rate_map(view: StudyView, task: str) -> Figure:
    """Draw a map for each variant (method, targets, alpha) and quantity."""
    key, title = view.key("rates", task), f"Learning rate and rank, {task}"
    variants, chosen = view.variants(task), view.advice(task).chosen
    of_lora = [arm for group in variants.values() for arm in group]
    if len({arm.lr for arm in of_lora}) < 2:
        return Figure(key, title, UNKNOWN_RATES, table([]))
    unit, arms = view.net_unit(task), of_lora + view.full(task)
    gain = f"expected net gain, {unit.difference}"
    cells = [
        {
            "arm": arm.label,
            "rank": arm.rank,
            "learning rate": arm.lr,
            **interval_cells(gain, arm.expected and arm.expected.net),
        }
        for arm in arms
    ]
    frame = shown(table(cells, {gain: Column(unit=unit, digits=unit.digits + 1)}))
    row_of = {a.label: "full" if a.is_full else f"r={a.rank}" for a in arms}
    ranks = [f"r={rank}" for rank in sorted({arm.rank for arm in of_lora if arm.rank})]
    rows = [*ranks, *(["full"] if view.full(task) else [])]
    columns = [f"{lr:g}" for lr in sorted({arm.lr for arm in arms})]
    places = frame.assign(row=frame["arm"].map(row_of), column=[f"{arm.lr:g}" for arm in arms])
    grids = {}
    for variant, group in variants.items():
        shared = {s for arm in view.full(task) for s in arm.special_settings}
        special = shared & {*group[0].special_settings}  # the others are of adapters alone
        full = [arm for arm in view.full(task) if {*arm.special_settings} == special]
        own = [*group, *(full or view.full(task))]
        known = [arm.label for arm in own if arm.expected]
        grids[variant or "lora"] = change_grid(
            places[places["arm"].isin(known)],
            ("row", "column"),
            gain,
            unit,
            (rows, columns),
            absent=lambda *_: "not trained",
            marks={
                (row_of[arm.label], f"{arm.lr:g}"): _without_result(view.trials(arm))
                for arm in own
                if not arm.expected
            },
            framed=[(row_of[a.label], f"{a.lr:g}") for a in own if a == chosen],
        )
    drawn = heat_map(grids, row_height=38, x_title="learning rate")
    return Figure(key, title, finding(variants), frame, caption=_CAPTION, **drawn)


def _without_result(trials: Sequence[TrialRecords]) -> str:
    """Return why an arm has no score, from the trial that came furthest."""
    statuses = {trial.status for trial in trials}
    return next((words for status, words in _WITHOUT.items() if status in statuses), "not begun")


def finding(variants: Mapping[str, Sequence[ArmSummary]]) -> str:
    """Name each rank's rate of the highest expected net gain.

    The ranks are those of the first variant that has two rates of a rank.
    """
    for name, group in variants.items():
        gains: dict[int, dict[float, float]] = defaultdict(dict)
        tried: dict[int, set[float]] = defaultdict(set)
        for arm in group:
            if arm.rank is not None:
                tried[arm.rank].add(arm.lr)
                if arm.expected is not None:
                    gains[arm.rank][arm.lr] = arm.expected.net.value
        best = {rank: max(g, key=g.__getitem__) for rank, g in sorted(gains.items()) if len(g) > 1}
        of = f" of {name}" if name and len(variants) > 1 else ""
        if best:
            break
    else:
        return UNKNOWN_RATES
    by_rate: dict[float, list[str]] = defaultdict(list)
    for rank, rate in best.items():
        by_rate[rate].append(f"r={rank}")
    parts = "; ".join(f"{rate:g} at {join_names(by_rate[rate])}" for rate in sorted(by_rate))
    edge = [f"r={r}" for r, rate in best.items() if rate in (min(tried[r]), max(tried[r]))]
    text = f"The expected net gain{of} is highest with the rate {parts}."
    return text + f" That is the edge of the grid for {join_names(edge)}." * bool(edge)
