"""Agreement of an arm with full fine-tuning: does it change the same answers?"""

from itertools import chain, combinations, product
from statistics import fmean

import numpy as np
import numpy.typing as npt

from rankscope.formatting import number
from rankscope.records import BASE, ItemScores
from rankscope.report.charts.figure import Figure, range_cells
from rankscope.report.charts.rank_lines import Panel, rank_plot
from rankscope.report.columns import Column
from rankscope.report.figures import in_section
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import shown, table

ItemChanges = npt.NDArray[np.float64]
ALIKE = "correlation with full fine-tuning"
_CAPTION = """Of every test item, the change of its right answer's log-probability (of its score, \
if one is unknown) against the base; the mean of the correlations of one seed with one of \
full fine-tuning, bands are the range over such pairs. The line of full fine-tuning is the \
correlation between its own seeds: as much as two runs that differ in the seed have in common."""


@in_section("ranks", 30)
def draw_like_full(view: StudyView, task: str) -> Figure | None:
    """Draw the figure; None without two seeds of full fine-tuning, which a correlation needs."""
    full = view.best_full(task)
    if full is None or len(view.trials(full)) < 2:
        return None
    changed = changes(view, task)
    of_full = changed[full.label]
    if len(of_full) < 2:
        return None
    rows, means = [], {}
    for arm in view.arms(task):
        pairs = combinations(of_full, 2) if arm == full else product(changed[arm.label], of_full)
        found = [value for pair in pairs if (value := correlation(*pair)) is not None]
        rows.append({"arm": arm.label, "rank": arm.rank, **range_cells(ALIKE, found)})
        if found:
            means[arm.label] = fmean(found)
    axis = view.rank_axis(task)
    ranked = [(p.rank, means[p.arm]) for p in axis.focus_points if p.arm in means]
    if not ranked or full.label not in means:
        return None
    frame = shown(table(rows, {ALIKE: Column(digits=2)}))
    listed = ", ".join(f"{number(value)} at r={rank}" for rank, value in ranked)
    return Figure(
        key=view.key("like-full", task),
        title=f"Changes like those of full fine-tuning {axis.against}, {task}",
        finding=f"At {axis.focus}, what changes item by item correlates with what changes under "
        f"{full.label}: {listed}. Two seeds of the latter: {number(means[full.label])}.",
        data=frame,
        plot=rank_plot(axis, [Panel(frame, ALIKE)]),
        caption=_CAPTION,
    )


def changes(view: StudyView, task: str) -> dict[str, list[ItemChanges]]:
    """Return tuned minus base on the test items of ``task``, (items,) for each scored seed, by
    arm."""
    trials = {arm.label: [t.spec.trial_id for t in view.trials(arm)] for arm in view.arms(task)}
    found: dict[str, ItemScores] = {}
    for name in (BASE, *chain(*trials.values())):  # Read from disk, each once
        if (scored := view.study.items.get((name, task, "test"))) is not None:
            found[name] = scored
    if BASE not in found:
        return {label: [] for label in trials}
    has_logprobs = all(np.isfinite(of.gold_logprobs).all() for of in found.values())
    scores = {n: of.gold_logprobs if has_logprobs else of.scores for n, of in found.items()}
    return {
        label: [scores[name] - scores[BASE] for name in of_arm if name in scores]
        for label, of_arm in trials.items()
    }


def correlation(one: ItemChanges, other: ItemChanges) -> float | None:
    """Return Pearson's correlation; None if either side does not vary."""
    if min(one.std(), other.std()) == 0:
        return None
    return float(np.corrcoef(one, other)[0, 1])
