"""Scaled variants: every arm with its update scaled down, from the base to what was trained."""

from rankscope.formatting import count, difference
from rankscope.records import ScalingCurve, TaskMitigation
from rankscope.report.charts.figure import Figure, tidy
from rankscope.report.charts.scatter import Path, paths_from_base
from rankscope.report.figures import register
from rankscope.report.study_view import StudyView, forgetting_text

DASHES = {"scale": "solid", "layers": "dot", "intruders": "dash", "control": "dashdot"}
KINDS = {
    "scale": "the whole update",
    "layers": "by layer",
    "intruders": "its intruder dimensions",
    "control": "the whole update, to their norm",
}
CAPTION = """Each line is one arm, the mean over its seeds, from the untuned base to the trained \
model (the large mark): its whole update times 0 to 1, without further training. Right is learned \
more, up is forgot less. A mitigation is worth its trouble if its mark is above the line of the \
arm without it."""


def mitigation_of(view: StudyView, task: str) -> TaskMitigation | None:
    """Scaled variants and mitigations of one training task."""
    return next((m for m in view.recommendation.mitigation if m.task == task), None)


@register("mitigation", 10)
def draw(view: StudyView, task: str) -> Figure | None:
    """The scaling curves of one training task; None if the study has none."""
    mitigation = mitigation_of(view, task)
    if mitigation is None:
        return None
    unit, lost = view.unit(task), view.forgetting_unit(task)
    gain, forgetting = f"gain over base, {unit.difference}", f"forgetting, {lost.difference}"
    points = [(curve, point) for curve in mitigation.curves for point in curve.points]
    frame = tidy(
        {
            "arm": [curve.label for curve, _ in points],
            "scaled": [KINDS[curve.kind] for curve, _ in points],
            "strength": [p.strength for _, p in points],
            gain: [p.gain * unit.scale for _, p in points],
            forgetting: [p.forgetting * lost.scale for _, p in points],
            "validation split: gain": [p.validation_gain * unit.scale for _, p in points],
            "validation split: forgetting": [
                p.validation_forgetting * lost.scale for _, p in points
            ],
            "seeds": [p.seeds for _, p in points],
        },
        {
            gain: unit.digits + 1,
            forgetting: lost.digits + 1,
            "validation split: gain": unit.digits + 1,
            "validation split: forgetting": lost.digits + 1,
            "seeds": 0,
        },
    )
    paths: dict[str, list[Path]] = {}
    for curve in mitigation.curves:
        arm = view.arm(task, curve.label)
        rows = frame[(frame["arm"] == curve.label) & (frame["scaled"] == KINDS[curve.kind])]
        name = (arm.short_label if arm else curve.label) if curve.kind == "scale" else ""
        words = {
            "scaled:": "scaled",
            "strength": "strength",
            "gain": gain,
            "forgetting": forgetting,
        }
        sizes = (*[6.0] * (len(rows) - 1), 12.0)
        path = Path(
            rows,
            (view.color(arm).light,),
            "circle",
            DASHES[curve.kind],
            "",
            sizes,
            False,
            name,
            words,
        )
        paths.setdefault(curve.label, []).append(path)
    focus = [arm.label for arm in view.focus_arms(task)]
    plot, choices = paths_from_base(paths, focus, gain, forgetting, reversed_y=True)
    key, title = view.key("scaling", task), f"Scaled down without training, {task}"
    choices = choices if len(choices) > 1 else ()
    return Figure(key, title, finding(view, mitigation), frame, plot, CAPTION, choices)


def finding(view: StudyView, mitigation: TaskMitigation) -> str:
    """The focus arm as trained, and at the strength chosen on the validation split."""
    task, focus = mitigation.task, view.focus(mitigation.task)
    whole = [curve for curve in mitigation.curves if curve.kind == "scale"] or mitigation.curves
    curve: ScalingCurve = next((c for c in whole if focus and c.label == focus.label), whole[0])
    trained = curve.points[-1]
    chosen = next(p for p in curve.points if p.strength == curve.chosen_strength)

    def text(gain: float, forgetting: float) -> str:
        lost = forgetting_text(forgetting, view.forgetting_unit(task))
        return f"{difference(gain, view.unit(task))} and {lost}"

    as_trained = f"{curve.label} as trained: {text(trained.gain, trained.forgetting)}"
    if chosen is trained:
        return f"{as_trained}. On the validation split no scaled-down variant is better."
    if chosen.strength == 0:
        return f"{as_trained}. On the validation split the untuned base beats every variant."
    return (
        f"{as_trained}. At {chosen.strength:g} of its update, chosen on the validation split: "
        f"{text(chosen.gain, chosen.forgetting)} (means over {count(chosen.seeds, 'seed')})."
    )
