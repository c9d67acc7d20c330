"""The report: one HTML file that opens offline, answer first.

Everything is inside the file (plotly.js once) and its content security policy forbids every
request. Text from data reaches the page through one filter (``visible``, then Jinja's escaping) or
as JSON that cannot end its script element.
"""

from collections.abc import Mapping
from pathlib import Path

import yaml
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from rankscope.formatting import safe_text
from rankscope.records import Recommendation, StudyRecords
from rankscope.report.answer import answer, missing
from rankscope.report.figures import (
    accuracy,
    curve,
    heads,
    plane,
    rate_map,
    scaling,
    spectra,
    subjects,
    training,
    transfer,
)
from rankscope.report.page import Section, embedded, figure_data, source, templates, write_page
from rankscope.report.study_view import StudyView
from rankscope.report.style import DASHES, dark_colors
from rankscope.report.tables import failed_trials, tasks_read, training_rows, without_contamination


def write_study_page(study: StudyRecords, recommendation: Recommendation, path: Path) -> None:
    """Write the study as one offline HTML page, replacing ``path`` in one step.

    Args:
        study: what was measured.
        recommendation: what ``advise.recommend`` made of it.
        path: the file to write; its folder must exist.

    Raises:
        UserError: ``path`` is a folder, or its folder does not exist.
    """
    write_page(path, lambda: render(StudyView(study, recommendation)))


def render(view: StudyView) -> str:
    """The whole page as text."""
    first, *parts = sections(view)
    drawn = [f for part in (first, *parts) for f in part.figures]
    environment = templates()
    return environment.get_template("report.html.j2").render(
        view=view,
        study=view.study,
        provenance=view.study.provenance,
        answers=[answer(view, task) for task in view.training_tasks],
        missing=missing(view),
        hero=first.figures[0] if first.figures else None,
        sections=parts,
        failed=failed_trials(view),
        tasks=tasks_read(view),
        without_contamination=without_contamination(view),
        training=training_rows(view),
        config=yaml_text(view.study.config),
        rank_swatches=[(rank, view.colors[rank]) for rank in view.ranks],
        lines=_line_key(view),
        plotly=Markup(get_plotlyjs()),
        style=Markup(source(environment, "report.css")),
        script=Markup(source(environment, "report.js")),
        figures_json=embedded({f.key: figure_data(f) for f in drawn if f.plot is not None}),
        dark_json=embedded(dark_colors(view.ranks)),
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
    rates = [rate_map.draw(view, task) for task in tasks]
    ranks = [
        figure for of_task in zip(in_domain, retention, rates, strict=True) for figure in of_task
    ]
    by_subject = [figure for task in tasks if (figure := subjects.draw(view, task)) is not None]
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
            "Scores of the test split, against LoRA rank where the study varies it.",
            tuple(f for f in ranks if f is not first),
        ),
        Section(
            "transfer",
            "What training did elsewhere",
            "Every tested task against every trained one.",
            (*(transfer.draw(view, unit) for unit in units), *by_subject) if tasks else (),
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


def yaml_text(config: Mapping[str, object]) -> str:
    """The study file as resolved, in YAML, long or hostile values cut and made visible."""

    def cut(value: object) -> object:
        if isinstance(value, Mapping):
            return {safe_text(key, 100): cut(inner) for key, inner in list(value.items())[:500]}
        if isinstance(value, list | tuple):
            return [cut(inner) for inner in value[:500]]
        return safe_text(value, 500) if isinstance(value, str) else value

    return yaml.safe_dump(cut(config), sort_keys=False, allow_unicode=True, width=90)


def _line_key(view: StudyView) -> list[tuple[str, str]]:
    """(label, SVG dash pattern) of every line over rank."""
    patterns = dict(zip(DASHES, ("none", "7 5", "2 4", "8 4 2 4", "12 6"), strict=True))
    found = {s.label: patterns[s.dash] for task in view.training_tasks for s in view.series(task)}
    return list(found.items())
