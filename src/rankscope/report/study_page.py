"""The page of a study: one HTML file that opens offline, answer first."""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import yaml

from rankscope.config.loader import study_values
from rankscope.formatting import safe_text
from rankscope.records import Recommendation, StudyRecords
from rankscope.report.analyzed_models import arms_analyzed
from rankscope.report.answer import answer, missing
from rankscope.report.charts.figure import Figure
from rankscope.report.figures import SECTIONS, draw_section
from rankscope.report.page import PageSection, render_page, write_page
from rankscope.report.study_view import StudyView
from rankscope.report.style import DASHES
from rankscope.report.tables import (
    contamination_table,
    failed_trials_table,
    tasks_table,
    training_table,
)

BESIDE_ANSWER = ("plane-0", "in-domain-0")
"""Keys of the figures for the place beside the answer; the first one with a plot is taken."""


def write_study_page(study: StudyRecords, recommendation: Recommendation, path: Path) -> None:
    """Write the study as one offline HTML page, replacing ``path`` in one step."""
    write_page(path, lambda: render_study(StudyView(study, recommendation)))


def render_study(view: StudyView) -> str:
    hero, sections = study_sections(view)
    figures = [*([hero] if hero else []), *(f for section in sections for f in section.figures)]
    return render_page(
        "study.html.j2",
        figures,
        view.ranks,
        view.study.provenance,
        view=view,
        study=view.study,
        answers=[answer(view, task) for task in view.training_tasks],
        missing=missing(view),
        hero=hero,
        sections=sections,
        failed=failed_trials_table(view),
        tasks=tasks_table(view),
        without_contamination=contamination_table(view),
        training=training_table(view),
        config=yaml_text(study_values(view.study.config)),
        rank_swatches=[(rank, view.colors[rank]) for rank in view.ranks],
        lines=_line_key(view),
    )


def study_sections(view: StudyView) -> tuple[Figure | None, list[PageSection]]:
    """The figure beside the answer, and all others by section in reading order."""
    tasks = view.training_tasks
    units = dict.fromkeys(view.unit(task.name) for task in view.study.tasks)
    models = [arms_analyzed(view, task) for task in tasks]
    drawn = {
        key: [
            *chain.from_iterable(draw_section(key, "study", "unit", view, unit) for unit in units),
            *chain.from_iterable(draw_section(key, "study", "task", view, task) for task in tasks),
            *chain.from_iterable(draw_section(key, "study", "models", m) for m in models),
        ]
        for key in SECTIONS
    }
    every = {figure.key: figure for figures in drawn.values() for figure in figures}
    beside = [every[key] for key in BESIDE_ANSWER if key in every]
    hero = next((figure for figure in beside if figure.plot is not None), None)
    return hero, [
        PageSection(key, *SECTIONS[key], tuple(f for f in figures if f is not hero))
        for key, figures in drawn.items()
    ]


def yaml_text(config: Mapping[str, object]) -> str:
    """The resolved study file in YAML; long or hostile values are cut and made visible."""

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
    lines = [line for task in view.training_tasks for line in view.rank_axis(task).lines]
    return list({line.label: patterns[line.dash] for line in lines}.items())
