"""Scaled variants: every arm with its update scaled down, from the base to what was trained."""

from rankscope.formatting import count, difference
from rankscope.records import TaskMitigation
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.scatter import Path, paths_from_base
from rankscope.report.figures import register
from rankscope.report.study_view import StudyView, retention_text
from rankscope.report.table_formats import table_from_rows

KINDS = {
    "scale": ("the whole update", "solid"),
    "layers": ("by layer", "dot"),
    "intruders": ("its intruder dimensions", "dash"),
    "control": ("the whole update, to their norm", "dashdot"),
}
"""What is scaled, and the dash of its line."""
_CAPTION = """Each line is one arm, the mean over its seeds, from the untuned base to the trained \
model (the large mark): its whole update times 0 to 1, without further training. Right is learned \
more, up is retained more. A mitigation is worth its trouble if its mark is above the line of the \
arm without it."""


@register("mitigation", 10)
def draw_scaled_variants(view: StudyView, task: str) -> Figure | None:
    """The scaling curves of one training task; None if the study has none."""
    mitigation = view.mitigation(task)
    if mitigation is None:
        return None
    unit, kept = view.unit(task), view.retention_unit(task)
    gain, retained = view.plane_titles(task, kept)
    rows = [
        {
            "arm": curve.label,
            "scaled": KINDS[curve.kind][0],
            "strength": point.strength,
            gain: point.gain * unit.scale,
            retained: -point.forgetting * kept.scale,
            f"validation split: {gain}": point.validation_gain * unit.scale,
            f"validation split: {retained}": -point.validation_forgetting * kept.scale,
            "seeds": point.seeds,
        }
        for curve in mitigation.curves
        for point in curve.points
    ]
    digits = view.plane_digits(task, kept)
    digits |= {f"validation split: {title}": places for title, places in digits.items()}
    frame = table_from_rows(rows, digits)
    words = {"scaled:": "scaled", "strength": "strength", "gain": gain, "retention": retained}
    paths: dict[str, list[Path]] = {}
    names = view.point_names(task)
    for curve in mitigation.curves:
        (scaled, dash), arm = KINDS[curve.kind], view.arm(task, curve.label)
        points = frame[(frame["arm"] == curve.label) & (frame["scaled"] == scaled)]
        sizes = [6.0] * (len(points) - 1) + [12.0]
        # Every curve of an arm ends in the same point.
        name = names.get(curve.label, curve.label) if curve.kind == "scale" else ""
        path = Path(points, words, [view.color(arm).light], (dash, "circle"), "", sizes, name)
        paths.setdefault(curve.label, []).append(path)
    focus = [arm.label for arm in view.focus_arms(task)]
    drawn = paths_from_base(paths, focus, gain, retained)
    key, title = view.key("scaling", task), f"Scaled down without training, {task}"
    return Figure(key, title, _finding(view, mitigation), frame, caption=_CAPTION, **drawn)


def _finding(view: StudyView, mitigation: TaskMitigation) -> str:
    task, focus = mitigation.task, view.focus(mitigation.task)
    whole = [curve for curve in mitigation.curves if curve.kind == "scale"] or mitigation.curves
    curve = next((c for c in whole if focus and c.label == focus.label), whole[0])
    trained = curve.points[-1]
    chosen = next(p for p in curve.points if p.strength == curve.chosen_strength)

    def text(gain: float, forgetting: float) -> str:
        kept = retention_text(-forgetting, view.retention_unit(task))
        return f"{difference(gain, view.unit(task))} and {kept}"

    best = f"At {chosen.strength:g} of its update, chosen on the validation split: "
    best += f"{text(chosen.gain, chosen.forgetting)} (means over {count(chosen.seeds, 'seed')})."
    if chosen is trained:
        best = "On the validation split no scaled-down variant is better."
    elif chosen.strength == 0:
        best = "On the validation split the untuned base beats every variant."
    return f"{curve.label} as trained: {text(trained.gain, trained.forgetting)}. {best}"
