"""The expected net gain of every rank, and the probability that it is within the margin."""

from rankscope.formatting import join_names, percent
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.rank_lines import Panel, Reference, rank_plot
from rankscope.report.columns import Column
from rankscope.report.figures import in_section
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import shown, table
from rankscope.report.tables import STUDY_COLUMNS, arm_row

_CAPTION = """Net gain: {}. Every configuration stands at its learning rate of the highest \
expected net gain; beside it, the probability of being within {} of the best of all arms and the \
base. These values are expected, not measured: all items and seeds are evidence, and neighbors in \
rank and rate are shrunk toward each other. The figures below show what was measured. {}"""
_COLUMNS = (
    *("arm", "rank", "lr", "expected_net_gain", "expected_net_gain_low", "expected_net_gain_high"),
    *("p_within_margin", "p_better", "p_best", "expected_regret"),
)


@in_section("ranks", 5)
def draw_expected_gain(view: StudyView, task: str) -> Figure | None:
    """Draw the figure; None if no arm was scored, or all exceed the limit on forgetting."""
    unit, margin = view.net_unit(task), view.margin(task)
    axis = view.rank_axis(task, best_rates=True)
    gain, regret = (f"expected {name}, {unit.difference}" for name in ("net gain", "regret"))
    units = {"expected_net_gain": Column(gain, unit), "expected_regret": Column(regret, unit)}
    rows = [arm_row(view, arm) for arm in view.candidates(task)]
    if not rows:
        return None
    frame = shown(table([{n: row[n] for n in _COLUMNS} for row in rows], STUDY_COLUMNS | units))
    words = {"": gain, f"within {margin} of the best:": "P(within margin)"}
    lines = {line.points[-1].arm: f" {line.label}" for line in axis.lines if line.points}
    names = {
        arm.label: percent(arm.expected.p_within_margin)
        + (lines.get(arm.label, "") if len(axis.lines) > 1 else "")
        for arm in sorted(view.candidates(task), key=lambda arm: arm != view.focus(task))
        if arm.expected
    }
    references = [Reference("base", 0.0)]
    prompts = [row.arm.expected for row in view.advice(task).rows if "prompt" in row.roles]
    for of in filter(None, prompts):
        net, low, high = (unit.scale * end for end in (of.net.value, of.net.low, of.net.high))
        references.append(Reference("prompt", net, low, high, dash="dash"))
    plot = rank_plot(axis, [Panel(frame, gain, references, words)], names)
    return Figure(
        key=view.key("expected-gain", task),
        title=f"Expected net gain {axis.against}, {task}",
        finding=_finding(view, task),
        data=frame,
        plot=plot,
        caption=_CAPTION.format(view.study.config.objective.formula, margin, axis.bands_note()),
    )


def _finding(view: StudyView, task: str) -> str:
    margin, full = view.margin(task), view.best_full(task)
    ranks = [f"r={r.rank} ({percent(r.p)})" for r in view.advice(task).ranks_that_may_do]
    text = f"No rank is likely to be within {margin} of the best."
    if not any(arm.rank for arm in view.candidates(task)):  # Imported scores may not tell it
        arms = [(a.label, a.expected) for a in view.candidates(task)]
        likely = [f"{label} {percent(of.p_within_margin)}" for label, of in arms if of]
        return f"Probability of being within {margin} of the best: {join_names(likely, 12)}."
    if ranks:
        text = f"Ranks that may be within {margin} of the best: {join_names(ranks, 12)}."
    if full and full.expected:
        text += f" Full fine-tuning: {percent(full.expected.p_within_margin)}."
    for row in view.advice(task).rows:
        name, of = row.arm.label, row.arm.expected
        if "prompt" in row.roles and of:
            text += f" {name[0].upper()}{name[1:]}: {percent(of.p_within_margin)}."
    return text
