"""The report: one HTML file that opens offline, answer first.

Everything is inside the file (plotly.js once) and its content security policy forbids every
request. Text from data reaches the page through one filter (``visible``, then Jinja's escaping) or
as JSON that cannot end its script element.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from rankscope.errors import BadInput
from rankscope.records import Recommendation, Record, StudyRecords
from rankscope.report.answer import answer, missing
from rankscope.report.figure import Figure
from rankscope.report.figures import (
    accuracy,
    curve,
    heads,
    plane,
    scaling,
    spectra,
    training,
    transfer,
)
from rankscope.report.style import DASHES, dark_colors, duration, number, visible
from rankscope.report.tables import failed_trials, tasks_read, training_rows, without_leaks
from rankscope.report.view import StudyView

# Plotly reads a few tags inside its texts; these are the ones the figures themselves write.
_FOREIGN_TAG = re.compile(r"<(?!/?(?:b|br|extra)>)")


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the page with its figures."""

    key: str
    title: str
    lead: str
    figures: tuple[Figure, ...]


def write_report(study: StudyRecords, recommendation: Recommendation, path: Path) -> None:
    """Write the study as one offline HTML page, replacing ``path`` in one step.

    Args:
        study: what was measured.
        recommendation: what ``advise.recommend`` made of it.
        path: the file to write; its folder must exist.

    Raises:
        BadInput: ``path`` is a folder, or its folder does not exist.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise BadInput(
            f"{path}: cannot write the report here; expected a file in an existing folder"
        )
    page = render(StudyView(study, recommendation))
    aside = path.with_name(path.name + ".part")
    aside.write_text(page, encoding="utf-8")
    os.replace(aside, path)


def render(view: StudyView) -> str:
    """The whole page as text."""
    first, *parts = sections(view)
    drawn = [f for part in (first, *parts) for f in part.figures]
    templates = _templates()
    return templates.get_template("report.html.j2").render(
        view=view,
        study=view.study,
        answers=[answer(view, task) for task in view.training_tasks],
        missing=missing(view),
        hero=first.figures[0] if first.figures else None,
        sections=parts,
        failed=failed_trials(view),
        tasks=tasks_read(view),
        without_leaks=without_leaks(view),
        training=training_rows(view),
        config=yaml_text(view.study.config),
        rank_swatches=[(rank, view.colors[rank]) for rank in view.ranks],
        lines=_line_key(view),
        plotly=Markup(get_plotlyjs()),
        style=Markup(_source(templates, "report.css")),
        script=Markup(_source(templates, "report.js")),
        figures_json=_embedded({f.key: figure_data(f) for f in drawn if f.plot is not None}),
        dark_json=_embedded(dark_colors(view.ranks)),
    )


def sections(view: StudyView) -> list[Section]:
    """The figures in reading order; the first section's first figure stands beside the answer.

    A new figure is one file under ``figures/`` and one line here.
    """
    tasks = view.training_tasks
    planes = [plane.draw(view, task) for task in tasks]
    curves = [figure for task in tasks if (figure := curve.draw(view, task)) is not None]
    in_domain = [accuracy.draw_in_domain(view, task) for task in tasks]
    # Without retention tasks the plane is empty; then the score against rank is the picture.
    first = next((f for f in (*planes[:1], *in_domain[:1]) if f.plot is not None), None)
    maps = [figure for task in tasks if (figure := heads.draw(view, task)) is not None]
    units = dict.fromkeys(view.unit(task.name) for task in view.study.tasks)
    retention = [accuracy.draw_retention(view, task) for task in tasks]
    ranks = [figure for pair in zip(in_domain, retention, strict=True) for figure in pair]
    weights = (
        spectra.draw_norm,
        spectra.draw_effective_rank,
        spectra.draw_similarity,
        spectra.draw_intruders,
    )
    return [
        Section("first", "", "", (first,) if first else ()),
        Section(
            "planes",
            "Learning against forgetting",
            "What each arm learned in its domain and what it lost elsewhere.",
            (*(f for f in planes if f is not first), *curves),
        ),
        Section(
            "mitigation",
            "Forgetting less",
            "What a milder update keeps, and what was done in training to keep more.",
            tuple(figure for task in tasks for figure in scaling.draw(view, task)),
        ),
        Section(
            "ranks",
            "How much rank is enough",
            "Scores of the report split against LoRA rank.",
            tuple(f for f in ranks if f is not first),
        ),
        Section(
            "transfer",
            "What training did elsewhere",
            "Every tested task against every trained one.",
            tuple(transfer.draw(view, unit) for unit in units) if tasks else (),
        ),
        Section(
            "spectra",
            "Inside the weights",
            "dW is what training added to a weight matrix W0.",
            (*(draw(view, task) for task in tasks for draw in weights), *maps),
        ),
        Section(
            "training",
            "Training and cost",
            "",
            tuple(d(view, t) for t in tasks for d in (training.draw_losses, training.draw_cost)),
        ),
    ]


def figure_data(figure: Figure) -> dict[str, object]:
    """What the page's script needs to draw one figure."""
    plot = figure.plot.to_plotly_json() if figure.plot is not None else {"data": [], "layout": {}}
    # Plotly's template holds colours that have no dark partner, and every figure would repeat it.
    layout = {key: value for key, value in plot["layout"].items() if key != "template"}
    return {
        "data": _plain(plot["data"]),
        "layout": _plain(layout),
        "choices": [list(choice.traces) for choice in figure.choices],
        "file": f"rankscope-{figure.key}",
    }


def _plain(value: Any) -> Any:
    """JSON types only: six significant digits are more than a screen shows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if value - value == 0 else None
    if isinstance(value, str):
        return _FOREIGN_TAG.sub("&lt;", visible(value))
    return value


def _embedded(value: object) -> Markup:
    """JSON for a script element: no character of it can end the element or start another."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def yaml_text(config: Mapping[str, object]) -> str:
    """The study file as resolved, in YAML, long or hostile values cut and made visible."""

    def cut(value: object) -> object:
        if isinstance(value, Mapping):
            return {visible(key, 100): cut(inner) for key, inner in list(value.items())[:500]}
        if isinstance(value, list | tuple):
            return [cut(inner) for inner in value[:500]]
        return visible(value, 500) if isinstance(value, str) else value

    return yaml.safe_dump(cut(config), sort_keys=False, allow_unicode=True, width=90)


def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("rankscope.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Every value the templates print passes here first, so none can be forgotten.
        finalize=lambda value: value if isinstance(value, Markup) else visible(value, 20_000),
    )
    environment.filters |= {"number": number, "duration": duration, "facts": _facts}
    return environment


def _source(environment: Environment, name: str) -> str:
    if environment.loader is None:
        raise AssertionError("the environment is made with a loader")
    return environment.loader.get_source(environment, name)[0]


def _facts(record: Record) -> list[tuple[str, str]]:
    """A record's plain fields as (name, value) for a definition list."""
    fields = record.model_dump(exclude={"schema_version", "libraries"})
    return [
        (field.replace("_", " "), number(value) if isinstance(value, int) else str(value))
        for field, value in fields.items()
    ]


def _line_key(view: StudyView) -> list[tuple[str, str]]:
    """(label, SVG dash pattern) of every line over rank."""
    patterns = dict(zip(DASHES, ("none", "7 5", "2 4", "8 4 2 4", "12 6"), strict=True))
    found = {s.label: patterns[s.dash] for task in view.training_tasks for s in view.series(task)}
    return list(found.items())
