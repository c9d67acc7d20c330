"""Figures of scaled variants: arms from the base to the trained model, with mitigations."""

from collections.abc import Mapping, Sequence

from rankscope.extensions.variants.results import (
    MitigationComparison,
    ScaledPoint,
    compare_mitigations,
    scaling_curves,
)
from rankscope.formatting import amount, count, difference
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.interval_rows import interval_rows
from rankscope.report.charts.scatter import Path, paths_from_base
from rankscope.report.columns import Column, interval_cells
from rankscope.report.figures import Section, in_section
from rankscope.report.study_view import StudyView, retention_text
from rankscope.report.table_formats import shown, table

MITIGATION_SECTION = Section(
    "mitigation",
    20,
    "Forgetting less",
    "What remains when an update is scaled down, and how other mitigations compare with that.",
)
_SCALED_CAPTION = """Each line is one configuration, the mean over its seeds, from the untuned \
base to the trained model (the large mark): its whole update times 0 to 1, without further \
training. Right is learned more, up is retained more. A mitigation is worth its trouble if its \
mark is above the line of the configuration without it."""
_MITIGATION_CAPTION = """How much more each mitigation retains than the same settings without it, \
scaled down until both have the same in-domain score. Right of zero it retains more than scaling, \
which is free. Bars are 95 % intervals over seeds and items, each on its own; a hollow mark has \
none. If a mitigation learned more than its plain partner does at any scale, that one is credited \
with the difference."""


@in_section("mitigation", 10)
def draw_scaled_variants(view: StudyView, task: str) -> Figure | None:
    """Draw the scaling curves of one training task; None if the study has none."""
    curves = {
        label: points
        for label, points in scaling_curves(view.whole, task).items()
        if view.arm(task, label)  # else beyond the page's limit
    }
    if not curves:
        return None
    kept = view.retention_unit(task)
    gain, retained = view.plane_titles(task, kept)
    rows = [
        {
            "arm": label,
            "strength": point.strength,
            gain: point.gain,
            retained: -point.forgetting,
            "seeds": point.seeds,
        }
        for label, points in curves.items()
        for point in points
    ]
    frame = shown(table(rows, view.plane_columns(task, kept)))
    words = {"strength": "strength", "gain": gain, "retention": retained}
    paths: dict[str, list[Path]] = {}
    names = view.point_names(task)
    for label in curves:
        drawn, color = frame[frame["arm"] == label], view.color(view.arm(task, label)).light
        sizes, name = [6.0] * (len(drawn) - 1) + [12.0], names.get(label, label)
        paths[label] = [Path(drawn, words, [color], ("solid", "circle"), "", sizes, name)]
    focus = [arm.label for arm in view.focus_arms(task)]
    return Figure(
        key=view.key("scaling", task),
        title=f"Scaled down without training, {task}",
        finding=_scaled_finding(view, task, curves),
        data=frame,
        caption=_SCALED_CAPTION,
        **paths_from_base(paths, focus, gain, retained),
    )


def _scaled_finding(view: StudyView, task: str, curves: Mapping[str, Sequence[ScaledPoint]]) -> str:
    focus = view.focus(task)
    label = focus.label if focus and focus.label in curves else next(iter(curves))
    points = curves[label]
    trained, chosen = points[-1], max(points, key=lambda point: point.net)

    def text(gain: float, forgetting: float) -> str:
        kept = retention_text(-forgetting, view.retention_unit(task))
        return f"{difference(gain, view.unit(task))} and {kept}"

    best = f"At {chosen.strength:g} of its update, chosen on the validation split: "
    best += f"{text(chosen.gain, chosen.forgetting)} (means over {count(chosen.seeds, 'seed')})."
    if chosen is trained:
        best = "On the validation split no scaled-down variant is better."
    elif chosen.strength == 0:
        best = "On the validation split the untuned base beats every variant."
    return f"{label} as trained: {text(trained.gain, trained.forgetting)}. {best}"


@in_section("mitigation", 20)
def draw_mitigation(view: StudyView, task: str) -> Figure | None:
    """Draw the comparisons of one training task; None if there are none."""
    compared = compare_mitigations(view.whole, task)
    return comparisons_figure(view, task, [c for c in compared if view.arm(task, c.plain)])


def comparisons_figure(
    view: StudyView, task: str, compared: Sequence[MitigationComparison]
) -> Figure | None:
    if not compared:
        return None
    lost = view.retention_unit(task)
    gain, retained = view.plane_titles(task, lost)
    comparisons = sorted(compared, key=lambda c: c.difference.value)
    rows = [
        {
            "mitigation": c.label,
            "plain arm": c.plain,
            gain: c.gain,
            retained: -c.forgetting,
            "retention change of the plain arm at that gain": -c.baseline,
            **interval_cells("difference", -c.difference),
            "seeds": c.difference.seeds,
            "seeds that learned more than the plain arm": c.beyond,
        }
        for c in comparisons
    ]
    titles = [title for title in rows[0] if "retention" in title or title == "difference"]
    columns = dict.fromkeys(titles, Column(unit=lost, digits=lost.digits + 1))
    frame = shown(table(rows, columns | view.plane_columns(task, lost)))
    return Figure(
        key=view.key("mitigation", task),
        title=f"Mitigations at an equal score, {task}",
        finding=_comparisons_finding(view, task, compared),
        data=frame,
        caption=_MITIGATION_CAPTION,
        **interval_rows(
            frame,
            "mitigation",
            colors=[view.color(view.arm(task, c.plain)).light for c in comparisons],
            hollow=[c.difference.low is None for c in comparisons],
            words=["seeds"],
            x_title=f"retention beyond scaling, {lost.difference}",
            min_width=560,
        ),
    )


def _comparisons_finding(
    view: StudyView, task: str, compared: Sequence[MitigationComparison]
) -> str:
    known = [c for c in compared if c.difference.low is not None]
    if not known:
        return (
            f"{count(len(compared), 'comparison')} over fewer than three seeds: the "
            "spread between seeds is unknown, so none shows which is better. Add seeds."
        )
    better = [c for c in known if c.difference.is_below(0)]
    worse = sum(c.difference.is_above(0) for c in known)
    text = f"Of {count(len(known), 'comparison')} with an interval, {len(better)} retained more "
    text += f"than scaling and {worse} less. By chance, one in 20 would."
    if better:
        first = min(better, key=lambda c: c.difference.value)
        more = amount(first.difference.value, view.retention_unit(task))
        text += f" The largest improvement: {first.label}, {more} more retained."
    return text
