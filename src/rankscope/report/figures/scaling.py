"""Every arm made milder without training: the curve that other mitigations are measured against."""

import plotly.graph_objects as go

from rankscope.formatting import count, difference, number
from rankscope.records import ArmSummary, ScalingCurve, TaskMitigation
from rankscope.report.charts.figure import (
    Choice,
    Column,
    DataTable,
    Figure,
    axis,
    layout,
    name,
    table,
)
from rankscope.report.charts.labels import Label, add_labels, place
from rankscope.report.study_view import StudyView
from rankscope.report.style import BASE, MUTED, SURFACE, Color

LEVEL = 0.05
DASH_OF = {"scale": "solid", "layers": "dot", "intruders": "dash", "control": "dashdot"}
"""Lines of one arm, by how it is scaled."""


def draw(view: StudyView, task: str) -> tuple[Figure, ...]:
    """The scaling curves of one training task and what is compared with them; none if not asked."""
    found = next((m for m in view.recommendation.mitigation if m.task == task), None)
    if found is None:
        return ()
    drawing = Drawing(view, found)
    place_of = view.training_tasks.index(task)
    curves = Figure(
        key=f"scaling-{place_of}",
        title=f"Milder without training, {task}",
        finding=_finding(view, found),
        table=_table(view, found),
        plot=drawing.figure,
        how_to_read="Each line is one arm, the mean over its seeds, from the untuned base to what "
        "was trained (the large mark): its whole update times 0 to 1, nothing trained again. "
        "Right is learned more, up is forgot less. A mitigation is worth its trouble where its "
        "mark lies above the line of the arm without it.",
        choices=drawing.choices if len(drawing.choices) > 1 else (),
    )
    if not found.comparisons:
        return (curves,)
    compared = Figure(
        key=f"mitigation-{place_of}",
        title=f"Mitigations at an equal score, {task}",
        finding=_verdict(view, found),
        table=_comparison_table(view, found),
        plot=_bars(view, found),
        how_to_read="How much more each forgets than the same arm without it, scaled down until "
        "both have the same in-domain score. Left of zero it keeps more than scaling does, which "
        "is free. Bars are 95 % intervals over seeds and items, each by itself; a hollow mark has "
        "none. "
        "Where a mitigation learned more than the plain arm at any scale, that one is granted the "
        "rest.",
        min_width=560,
    )
    return curves, compared


def _finding(view: StudyView, found: TaskMitigation) -> str:
    unit = view.unit(found.task)
    focus = view.focus(found.task)
    curves = [curve for curve in found.curves if curve.kind == "scale"] or list(found.curves)
    told = next((c for c in curves if focus is not None and c.label == focus.label), curves[0])
    chosen = next(p for p in told.points if p.strength == told.chosen_strength)
    whole = told.points[-1]
    as_trained = (
        f"{told.label} as trained has {difference(whole.gain, unit)} and "
        f"{_fell(whole.forgetting, view, found.task)}"
    )
    if chosen is whole:
        return f"{as_trained}; the validation split asks for no milder form of it."
    if chosen.strength == 0:
        return f"{as_trained}; by the validation split the untuned base is better than any of it."
    return (
        f"{as_trained}; at {chosen.strength:g} of its update, chosen on the validation split, "
        f"{difference(chosen.gain, unit)} and {_fell(chosen.forgetting, view, found.task)}"
        f" (means over {count(chosen.seeds, 'seed')})."
    )


def _fell(value: float, view: StudyView, task: str) -> str:
    unit = view.forgetting_unit(task)
    amount = number(abs(value) * unit.scale, unit.digits)
    return f"{amount} {unit.difference} {'forgotten' if value >= 0 else 'gained on retention'}"


def _verdict(view: StudyView, found: TaskMitigation) -> str:
    known = [c for c in found.comparisons if c.difference.p_holm is not None]
    if not known:
        return (
            f"{count(len(found.comparisons), 'comparison')} over fewer than three seeds: how much "
            "seeds differ is unknown, so none says which is better. Give the study more seeds."
        )
    clear = [c for c in known if (c.difference.p_holm or 0.0) < LEVEL]
    better = [c for c in clear if c.difference.value < 0]
    fewer = sum(c.difference.value < 0 for c in known)
    text = (
        f"Of {count(len(known), 'comparison')} over seeds and items, {fewer} forgot less than the "
        f"plain arm scaled to the same score, {len(known) - fewer} did not. "
        "Counted together (Holm, 5 %) "
    )
    if not clear:
        return text + "none of these differences is shown: look at them as hints."
    text += f"shown to be better: {len(better)}, worse: {len(clear) - len(better)}."
    if better:
        first = min(better, key=lambda c: c.difference.value)
        unit = view.forgetting_unit(found.task)
        amount = number(abs(first.difference.value) * unit.scale, unit.digits)
        text += f" The largest shown: {first.label}, {amount} {unit.difference} less forgotten."
    return text


def _table(view: StudyView, found: TaskMitigation) -> DataTable:
    unit, forgetting = view.unit(found.task), view.forgetting_unit(found.task)
    g, f = unit.digits + 1, forgetting.digits + 1
    columns = [
        Column("arm"),
        Column("scaled"),
        Column("strength"),
        Column(f"gain over base, {unit.difference}", g),
        Column(f"forgetting, {forgetting.difference}", f),
        Column("validation split: gain", g),
        Column("forgetting", f),
        Column("seeds", 0),
    ]
    kinds = {
        "scale": "as a whole",
        "layers": "by layer",
        "intruders": "in its intruders",
        "control": "as a whole, to their norm",
    }
    rows = [
        (
            curve.label,
            kinds[curve.kind],
            p.strength,
            p.gain * unit.scale,
            p.forgetting * forgetting.scale,
            p.validation_gain * unit.scale,
            p.validation_forgetting * forgetting.scale,
            p.seeds,
        )
        for curve in found.curves
        for p in curve.points
    ]
    return table(columns, rows)


def _comparison_table(view: StudyView, found: TaskMitigation) -> DataTable:
    unit, forgetting = view.unit(found.task), view.forgetting_unit(found.task)
    g, f = unit.digits + 1, forgetting.digits + 1
    columns = [
        Column("mitigation"),
        Column("plain arm"),
        Column(f"gain over base, {unit.difference}", g),
        Column(f"forgetting, {forgetting.difference}", f),
        Column("of the plain arm at that gain", f),
        Column("difference", f),
        Column("low", f),
        Column("high", f),
        Column("p (Holm)", 3),
        Column("seeds", 0),
        Column("seeds that learned more than it", 0),
    ]
    rows = []
    for c in found.comparisons:
        d = c.difference
        ends = [None if value is None else value * forgetting.scale for value in (d.low, d.high)]
        rows.append(
            (
                c.label,
                c.plain,
                c.gain * unit.scale,
                c.forgetting * forgetting.scale,
                c.baseline * forgetting.scale,
                d.value * forgetting.scale,
                *ends,
                d.p_holm,
                d.seeds,
                c.beyond,
            )
        )
    return table(columns, rows)


def _bars(view: StudyView, found: TaskMitigation) -> go.Figure:
    scale = view.forgetting_unit(found.task).scale
    known = sorted(found.comparisons, key=lambda c: c.difference.value, reverse=True)
    height = 110 + 30 * len(known)
    figure = go.Figure(layout=layout(height, margin={"l": 20, "r": 20, "t": 10, "b": 52}))
    names = [name(c.label) for c in known]
    x: list[float | None] = []
    y: list[str | None] = []
    for c in known:
        if c.difference.low is not None and c.difference.high is not None:
            x += [c.difference.low * scale, c.difference.high * scale, None]
            y += [name(c.label), name(c.label), None]
    line = {"color": MUTED.light, "width": 2}
    figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip")
    values = [c.difference.value * scale for c in known]
    figure.add_scatter(
        x=values,
        y=names,
        mode="markers",
        marker={
            "color": [_color(view, found.task, c.plain).light for c in known],
            "size": 11,
            "symbol": ["circle-open" if c.difference.low is None else "circle" for c in known],
        },
        hoverinfo="text",
        hovertext=[
            f"<b>{text}</b><br>{number(v, 2)}" for text, v in zip(names, values, strict=True)
        ],
    )
    unit = view.forgetting_unit(found.task).difference
    figure.update_xaxes(axis(f"forgetting beyond scaling, {unit}"))
    span = [-0.7, len(known) - 0.3]
    figure.update_yaxes(axis("", categoryorder="array", categoryarray=names, range=span))
    return figure


def _color(view: StudyView, task: str, label: str) -> Color:
    arm = next((a for a in view.arms(task) if a.label == label), None)
    return view.color(arm) if arm is not None else MUTED


class Drawing:
    """The scaling curves of one task with the entries of its drop-down."""

    def __init__(self, view: StudyView, found: TaskMitigation) -> None:
        self.view, self.found = view, found
        self.figure = go.Figure(layout=layout(440, margin={"l": 56, "r": 20, "t": 28, "b": 52}))
        unit, forgetting = view.unit(found.task), view.forgetting_unit(found.task)
        self.scales = (unit.scale, forgetting.scale)
        self.arms: dict[str, ArmSummary] = {arm.label: arm for arm in view.arms(found.task)}
        told = {arm.label for arm in view.focus_arms(found.task)}
        traces = {id(c): self.add_curve(c) for c in found.curves}
        base = self.add_base()
        near = [c for c in found.curves if c.label in told]
        groups = [("all arms", list(found.curves))]
        if near and len(near) < len(found.curves):
            groups.insert(0, ("those the answer speaks of", near))
        self.choices = tuple(
            Choice(label, (*(traces[id(c)] for c in shown), base, self.add_names(shown)))
            for label, shown in groups
        )
        self.figure.update_xaxes(axis(f"gain over base, {unit.difference}"))
        down = f"forgetting, {forgetting.difference} (up: less)"
        self.figure.update_yaxes(axis(down, autorange="reversed"))

    def spots(self, curve: ScalingCurve) -> list[tuple[float, float]]:
        """(x, y) by rising strength."""
        across, down = self.scales
        return [(p.gain * across, p.forgetting * down) for p in curve.points]

    def add_curve(self, curve: ScalingCurve) -> int:
        """Draw one arm; the index of its trace."""
        x, y = zip(*self.spots(curve), strict=True)
        color = _color(self.view, self.found.task, curve.label).light
        reaches = {
            "scale": "all",
            "layers": "first layer",
            "intruders": "intruders",
            "control": "norm of intruders",
        }
        self.figure.add_scatter(
            x=x,
            y=y,
            mode="lines+markers",
            line={
                "color": color,
                "width": 1.5,
                "dash": DASH_OF[curve.kind],
            },
            marker={
                "color": color,
                "size": [6.0] * (len(x) - 1) + [12.0],
                "line": {"color": SURFACE.light, "width": 1},
                "opacity": 1,
            },
            hoverinfo="text",
            hovertext=[
                f"<b>{name(curve.label)}</b><br>{reaches[curve.kind]} x {p.strength:g}"
                f"<br>gain {number(gain, 2)}<br>forgetting {number(forgot, 2)}"
                for p, gain, forgot in zip(curve.points, x, y, strict=True)
            ],
            cliponaxis=False,
        )
        return len(self.figure.data) - 1

    def add_base(self) -> int:
        """Mark where every curve starts; the index of its trace."""
        self.figure.add_scatter(
            x=[0],
            y=[0],
            mode="markers",
            marker={"color": BASE.light, "symbol": "x", "size": 11},
            hoverinfo="text",
            hovertext="<b>base</b><br>untuned: the origin",
        )
        return len(self.figure.data) - 1

    def add_names(self, curves: list[ScalingCurve]) -> int:
        """Name the base and the trained ends, where there is room; the index of the trace."""
        points = [spot for curve in curves for spot in self.spots(curve)]
        x, y = ([0.0, *(spot[i] for spot in points)] for i in (0, 1))
        labels = [Label(0.0, 0.0, "base")]
        for curve in curves:
            if curve.kind != "scale":  # it ends where the arm's own curve does
                continue
            arm = self.arms.get(curve.label)
            labels.append(Label(*self.spots(curve)[-1], arm.short_label if arm else curve.label))
        add_labels(self.figure, place(labels, points, (min(x), max(x)), (max(y), min(y))))
        return len(self.figure.data) - 1
