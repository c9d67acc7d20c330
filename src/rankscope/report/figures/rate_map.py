"""Learning rate and rank: whether every rank had a learning rate that suits it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from rankscope.formatting import Unit, join_names, rounded
from rankscope.records import ArmSummary, Status, TrialRecords
from rankscope.report.charts.figure import Figure, interval_cells, records
from rankscope.report.charts.heat_map import change_grid, heat_map
from rankscope.report.figures import register
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import table_from_rows

_CAPTION = """Each cell is one arm, the mean over its seeds. Blue is better than the base, orange \
worse; an empty cell was not trained, and an arm without a result says why. Brackets: the 95 % \
interval includes zero or is unknown. The frame marks the recommended arm. If the best rate \
of a rank is at the edge of its grid, a better one may be beyond it."""

_WITHOUT: dict[Status, str] = {
    "done": "not scored",
    "trained": "not scored",
    "diverged": "diverged",
    "oom": "out of memory",
    "failed": "failed",
    "stopped": "stopped early",
}


@register("ranks", 30)
def draw_rate_map(view: StudyView, task: str) -> Figure:
    """A map for each variant (method, targets, alpha) and quantity."""
    key, title = view.key("rates", task), f"Learning rate and rank, {task}"
    variants, chosen = view.variants(task), view.advice(task).chosen
    of_lora = [arm for group in variants.values() for arm in group]
    rates = sorted({arm.lr for arm in of_lora})
    if len(rates) < 2:
        return Figure(key, title, _one_rate(rates), table_from_rows([]))
    unit, kept = view.unit(task), view.retention_unit(task)
    gain, retained = view.plane_titles(task, kept)
    validation = f"gain on the validation split, {unit.difference}"
    arms = of_lora + view.full(task)
    rows = [
        {
            "arm": arm.label,
            "rank": arm.rank,
            "learning rate": arm.lr,
            **interval_cells(gain, arm.gain, unit),
            validation: arm.validation_gain and arm.validation_gain * unit.scale,
            **(interval_cells(retained, change, kept) if view.retained(task) else {}),
        }
        for arm in arms
        for change in [view.retention_change(arm)]
    ]
    frame = table_from_rows(rows, view.plane_digits(task, kept) | {validation: unit.digits + 1})
    ranks = [f"r={rank}" for rank in sorted({arm.rank for arm in of_lora if arm.rank})]
    places = frame.assign(
        row=["full" if arm.is_full else f"r={arm.rank}" for arm in arms],
        column=[f"{arm.lr:g}" for arm in arms],
        without=[_without_result(view.trials(arm)) for arm in arms],
    )
    order = (
        [*ranks, *(["full"] if view.full(task) else [])],
        [f"{lr:g}" for lr in sorted({arm.lr for arm in arms})],
    )
    grids = {}
    for variant, group in variants.items():
        cells = places[[arm in group or arm.is_full for arm in arms]]
        framed = cells[cells["arm"] == (chosen.label if chosen else None)]
        for name, of_name in {gain: unit, validation: unit, retained: kept}.items():
            if name in frame:
                label = name.rpartition(",")[0]
                label = f"{variant}: {label}" if len(variants) > 1 and variant else label
                grids[label] = change_grid(
                    cells[cells[name].notna()],
                    ("row", "column"),
                    name,
                    of_name,
                    order,
                    absent=lambda *_: "not trained",
                    marks={
                        (cell["row"], cell["column"]): "validation only"
                        if cell[gain] is None and cell[validation] is not None
                        else cell["without"]
                        for cell in records(cells[cells[name].isna()])
                    },
                    framed=list(zip(framed["row"], framed["column"], strict=True)),
                )
    drawn = heat_map(grids, row_height=38, x_title="learning rate")
    text = finding(variants, unit)
    return Figure(key, title, text, frame, caption=_CAPTION, choice_name="Shown", **drawn)


def _without_result(trials: Sequence[TrialRecords]) -> str:
    """Why an arm has no score: what happened to the trial that came furthest."""
    statuses = {trial.status for trial in trials}
    return next((words for status, words in _WITHOUT.items() if status in statuses), "not begun")


def _one_rate(rates: Sequence[float]) -> str:
    if not rates:
        return "No LoRA arm has finished, so it is unknown which rate suits which rank."
    return (
        f"Every rank was trained at one learning rate, {rates[0]:g}, so it is unknown how much of "
        "the difference between ranks is due to the rate."
    )


def finding(variants: Mapping[str, Sequence[ArmSummary]], unit: Unit) -> str:
    """The rate of the largest validation gain for each rank of the first variant."""
    gains: dict[int, dict[float, float]] = defaultdict(dict)
    for arm in next(iter(variants.values())):
        if arm.rank is not None and arm.validation_gain is not None:
            gains[arm.rank][arm.lr] = rounded(arm.validation_gain, unit)
    ahead = {
        rank: [rate for rate, gain in of_rank.items() if gain == max(of_rank.values())]
        for rank, of_rank in sorted(gains.items())
        if len(of_rank) > 1
    }
    if not ahead:
        return "No rank was trained and scored at two rates, so no rate can be called the best."
    by_rate: dict[float, list[str]] = defaultdict(list)
    best = {rank: rates[0] for rank, rates in ahead.items() if len(rates) == 1}
    for rank, rate in best.items():
        by_rate[rate].append(f"r={rank}")
    edge = [f"r={r}" for r, rate in best.items() if rate in (min(gains[r]), max(gains[r]))]
    parts = "; ".join(f"{rate:g} at {join_names(by_rate[rate])}" for rate in sorted(by_rate))
    sentences = [f"On the validation split the gain is largest with the rate {parts}."] * bool(best)
    sentences += [f"That is the edge of the grid for {join_names(edge)}."] * bool(edge)
    if equal := [f"r={rank}" for rank in ahead if rank not in best]:
        sentences += [f"Several rates share the largest validation gain at {join_names(equal)}."]
    return " ".join(sentences)
