"""Mitigations at an equal score: each beside its plain arm scaled down to the same score."""

from rankscope.formatting import count, difference
from rankscope.records import TaskMitigation
from rankscope.report.charts.figure import Figure, hover_texts, tidy
from rankscope.report.charts.interval_rows import IntervalRow, interval_rows
from rankscope.report.figures import register
from rankscope.report.figures.scaled_variants import mitigation_of
from rankscope.report.study_view import StudyView

LEVEL = 0.05
CAPTION = """How much more each mitigation forgets than the same arm without it, scaled down \
until both have the same in-domain score. Left of zero it keeps more than scaling, which is free. \
Bars are 95 % intervals over seeds and items, each on its own; a hollow mark has no interval. If \
a mitigation learned more than the plain arm does at any scale, the plain arm is credited with \
the difference."""


@register("mitigation", 20)
def draw(view: StudyView, task: str) -> Figure | None:
    """The comparisons of one training task; None if there are none."""
    mitigation = mitigation_of(view, task)
    if mitigation is None or not mitigation.comparisons:
        return None
    unit, lost = view.unit(task), view.forgetting_unit(task)
    made = sorted(mitigation.comparisons, key=lambda c: c.difference.value)
    d, f = "difference", lost.digits + 1
    ends = [
        [None if end is None else end * lost.scale for end in (c.difference.low, c.difference.high)]
        for c in made
    ]
    frame = tidy(
        {
            "mitigation": [c.label for c in made],
            "plain arm": [c.plain for c in made],
            f"gain over base, {unit.difference}": [c.gain * unit.scale for c in made],
            f"forgetting, {lost.difference}": [c.forgetting * lost.scale for c in made],
            "forgetting of the plain arm at that gain": [c.baseline * lost.scale for c in made],
            d: [c.difference.value * lost.scale for c in made],
            f"{d}, low": [low for low, _ in ends],
            f"{d}, high": [high for _, high in ends],
            "p, Holm": [c.difference.p_holm for c in made],
            "seeds": [c.difference.seeds for c in made],
            "seeds that learned more than the plain arm": [c.beyond for c in made],
        },
        {
            f"gain over base, {unit.difference}": unit.digits + 1,
            f"forgetting, {lost.difference}": f,
            "forgetting of the plain arm at that gain": f,
            d: f,
            f"{d}, low": f,
            f"{d}, high": f,
            "p, Holm": 3,
            "seeds": 0,
            "seeds that learned more than the plain arm": 0,
        },
    )
    texts = hover_texts(frame, "mitigation", {"": d})
    rows = [
        IntervalRow(
            c.label, c.difference.value * lost.scale, low, high,
            view.color(view.arm(task, c.plain)).light, text, hollow=low is None,
        )
        for c, (low, high), text in zip(made, ends, texts, strict=True)
    ]  # fmt: skip
    names = [c.label for c in made]
    plot, _ = interval_rows({"": rows}, names, f"forgetting beyond scaling, {lost.difference}")
    key, title = view.key("mitigation", task), f"Mitigations at an equal score, {task}"
    return Figure(key, title, finding(view, mitigation), frame, plot, CAPTION, min_width=560)


def finding(view: StudyView, mitigation: TaskMitigation) -> str:
    """How many mitigations are shown to be better or worse than scaling."""
    tested = [c for c in mitigation.comparisons if c.difference.p_holm is not None]
    if not tested:
        return (
            f"{count(len(mitigation.comparisons), 'comparison')} over fewer than three seeds: the "
            "spread between seeds is unknown, so none shows which is better. Add seeds."
        )
    significant = [c for c in tested if (c.difference.p_holm or 0.0) < LEVEL]
    better = [c for c in significant if c.difference.value < 0]
    fewer = sum(c.difference.value < 0 for c in tested)
    text = (
        f"Of {count(len(tested), 'comparison')} over seeds and items, {fewer} forgot less than the "
        f"plain arm scaled to the same score, {len(tested) - fewer} did not. "
        "Tested together (Holm, 5 %), "
    )
    if not significant:
        return text + "none of these differences is significant: treat them as hints."
    text += f"{len(better)} are better and {len(significant) - len(better)} worse."
    if better:
        first = min(better, key=lambda c: c.difference.value)
        less = difference(first.difference.value, view.forgetting_unit(mitigation.task))
        text += f" The largest significant improvement: {first.label}, {less} of forgetting."
    return text
