"""The page of a study: one HTML file that opens offline, answer first."""

from collections.abc import Iterator, Mapping

import yaml

from rankscope.config.loader import study_values
from rankscope.formatting import safe_text
from rankscope.report.analyzed_models import arms_analyzed
from rankscope.report.answer import NEXT_STEPS_TITLE, answer_cards, missing
from rankscope.report.before_after import ITEM_OUTCOMES, MAX_EMBEDDED, ComparedItems, compared_items
from rankscope.report.charts.figure import Figure
from rankscope.report.figures import FOLDED, SECTIONS, draw_section
from rankscope.report.page import PageSection, embedded, render_page
from rankscope.report.page_limit import MAX_FAILED, limited, not_shown
from rankscope.report.study_view import StudyView
from rankscope.report.style import DASHES
from rankscope.report.tables import (
    contamination_table,
    failed_trials_table,
    given_table,
    stopped_trials_table,
    tasks_table,
    training_table,
)
from rankscope.report.use_it import steps_for_task


def render_study(whole: StudyView, folder: str = "DIR", view: StudyView | None = None) -> str:
    """The page; ``folder`` is the study's, as commands on the page name it, and ``view`` what
    ``limited`` leaves of the whole, if that is known."""
    view, failed = view or limited(whole), failed_trials_table(whole)
    sections, tasks = study_sections(view), view.training_tasks
    items = {task: compared_items(view, task, MAX_EMBEDDED // len(tasks)) for task in tasks}
    return render_page(
        "study.html.j2",
        [figure for section in sections for figure in section.figures],
        view.ranks,
        view.study.provenance,
        view=view,
        study=whole.study,
        cards=answer_cards(view),
        next_steps_title=NEXT_STEPS_TITLE,
        missing=[*missing(whole), *not_shown(whole, view)],
        items={task: compared for task, compared in items.items() if compared},
        items_json=embedded([_item_data(c) for compared in items.values() for c in compared]),
        outcomes=ITEM_OUTCOMES,
        steps={task: steps_for_task(view, task, folder) for task in tasks},
        sections=sections,
        failed=failed.head(MAX_FAILED),
        num_failed=len(failed),
        stopped=stopped_trials_table(whole),
        num_skipped=sum(trial.status == "skipped" for trial in whole.study.trials),
        given=given_table(view),
        tasks=tasks_table(view),
        without_contamination=contamination_table(view),
        training=training_table(view),
        config=yaml_text(study_values(view.study.config)),
        rank_swatches=[(rank, view.colors[rank]) for rank in view.ranks],
        lines=_line_key(view),
    )


def study_sections(view: StudyView) -> list[PageSection]:
    tasks = view.training_tasks
    units = dict.fromkeys(view.unit(task.name) for task in view.study.tasks)
    models = [arms_analyzed(view, task) for task in tasks]

    def of_section(key: str) -> Iterator[Figure]:
        for unit in units:
            yield from draw_section(key, "unit", view, unit)
        for task in tasks:
            yield from draw_section(key, "task", view, task)
        for analyzed in models:
            yield from draw_section(key, "models", analyzed)

    return [
        PageSection(key, *SECTIONS[key], tuple(of_section(key)), folded=key in FOLDED)
        for key in SECTIONS
    ]


def _item_data(compared: ComparedItems) -> dict[str, object]:
    rows = [(p.outcome, p.prompt, p.gold, p.before, p.after) for p in compared.pairs]
    return {"rows": rows, "shown": list(compared.shown)}


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
