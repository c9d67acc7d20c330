"""The page of a study: one HTML file that opens offline, with the answer first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import yaml

from rankscope.config.loader import study_values
from rankscope.evaluate.engines import all_engines
from rankscope.formatting import NATS, Unit, count, join_names, number, safe_text
from rankscope.records import BASE, ItemResult, StudyRecords
from rankscope.report.analyzed_models import arms_analyzed, given_analyzed
from rankscope.report.answer import answer_cards, missing
from rankscope.report.figures import Section, all_sections, draw_section
from rankscope.report.page import embedded, render_page
from rankscope.report.page_limit import MAX_FAILED, limited, not_shown
from rankscope.report.study_view import StudyView
from rankscope.report.style import DASHES
from rankscope.report.tables import (
    contamination_table,
    failed_trials_table,
    given_table,
    rounds_table,
    tasks_table,
    training_table,
)
from rankscope.report.use_it import steps_for_task


def render_study(whole: StudyView, folder: str = "DIR", view: StudyView | None = None) -> str:
    """Render the page.

    ``folder`` is the study's in commands on the page. ``view`` is the part that ``limited`` leaves
    of the whole, if it is known.
    """
    if not whole.training_tasks:
        return _given_page(whole)
    view, failed = view or limited(whole), failed_trials_table(whole)
    sections, tasks = study_sections(view), view.training_tasks
    items = {task: _compared_items(view, task, MAX_EMBEDDED // len(tasks)) for task in tasks}
    return render_page(
        "study.html.j2",
        [figure for section in sections for figure in section.figures],
        view.ranks,
        view.study.provenance,
        view=view,
        study=whole.study,
        cards=answer_cards(view),
        notes=_notes(whole.study),
        missing=[*missing(whole), *not_shown(whole, view)],
        items={task: compared for task, compared in items.items() if compared},
        items_json=embedded(
            [(c.pairs, c.shown, c.names) for of_task in items.values() for c in of_task]
        ),
        outcomes=ITEM_OUTCOMES,
        steps={task: steps_for_task(view, task, folder) for task in tasks},
        sections=sections,
        failed=failed.head(MAX_FAILED),
        num_failed=len(failed),
        rounds=rounds_table(whole),
        num_skipped=sum(trial.status == "skipped" for trial in whole.study.trials),
        given=given_table(view.recommendation.given),
        tasks=tasks_table(view),
        without_contamination=contamination_table(view),
        training=training_table(view),
        config=_yaml_text(study_values(view.study.config)),
        rank_swatches=[(rank, view.colors[rank]) for rank in view.ranks],
        lines=_line_key(view),
    )


def _given_page(view: StudyView) -> str:
    """Render the page of a study that trained nothing."""
    sections = [section for section in study_sections(view) if section.figures]
    given = [trial for trial in view.study.trials if trial.spec.given is not None]
    return render_page(
        "given.html.j2",
        [figure for section in sections for figure in section.figures],
        [trial.spec.rank for trial in given if trial.spec.rank is not None],
        view.study.provenance,
        study=view.study,
        notes=_notes(view.study),
        given=given,
        sections=sections,
    )


def _notes(study: StudyRecords) -> list[str]:
    scores, kinds = study.evals.values(), all_engines().values()
    return [*study.notes, *(note for kind in kinds for note in kind.study_notes(scores))]


def study_sections(view: StudyView) -> list[Section]:
    tasks = view.training_tasks
    units = dict.fromkeys(view.unit(task.name) for task in view.study.tasks)
    subjects: list[tuple[Any, ...]] = [("unit", view, unit) for unit in units]
    subjects += [("task", view, task) for task in tasks]
    subjects += [("models", arms_analyzed(view, task)) for task in tasks]
    subjects += [("models", given_analyzed(view.study))]

    def of_page(section: Section) -> Section:
        figures = [figure for of in subjects for figure in draw_section(section.key, *of)]
        return section._replace(figures=tuple(figures), folded=section.folded and bool(tasks))

    return [*map(of_page, all_sections())]


def _yaml_text(config: Mapping[str, object]) -> str:
    """Write the resolved study file in YAML; long or hostile values are cut and made visible."""

    def cut(value: object) -> object:
        if isinstance(value, Mapping):
            return {safe_text(key, 100): cut(inner) for key, inner in list(value.items())[:500]}
        if isinstance(value, list | tuple):
            return [cut(inner) for inner in value[:500]]
        return safe_text(value, 500) if isinstance(value, str) else value

    return yaml.safe_dump(cut(config), sort_keys=False, allow_unicode=True, width=90)


def _line_key(view: StudyView) -> list[tuple[str, str]]:
    """Return (label, SVG dash pattern) of every line over rank."""
    patterns = dict(zip(DASHES, ("none", "7 5", "2 4", "8 4 2 4", "12 6"), strict=True))
    lines = [line for task in view.training_tasks for line in view.rank_axis(task).lines]
    return list({line.label: patterns[line.dash] for line in lines}.items())


SHOWN = 10  # Items shown before any search
MAX_EMBEDDED = 400_000  # Most characters of items on one page, over all tasks
MAX_PROMPT, MAX_ANSWER = 600, 240  # Longest prompt and answer on the page, in characters
MARKS = ("\N{BALLOT X} ", "\N{CHECK MARK} ")  # Before a wrong answer, and before a right one

Outcome = Literal["gained", "lost", "kept", "missed"]
ITEM_OUTCOMES: dict[Outcome, tuple[str, str]] = {
    "gained": ("gained (wrong before, right after)", "with a more probable gold text"),
    "lost": ("lost (right before, wrong after)", "with a less probable gold text"),
    "kept": ("right both times", "unchanged"),
    "missed": ("wrong both times", ""),
}
"""Words for outcomes: of items that are right or wrong, and of log probabilities."""


class _ItemPair(NamedTuple):
    """One item with the answers of the base, of the answer's arm and of full fine-tuning."""

    outcome: Outcome
    prompt: str
    gold: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _ComparedItems:
    tested_on: str
    names: tuple[str, ...]  # Models of the answers
    note: str  # Content of the plot, its choice, and what was left out
    pairs: tuple[_ItemPair, ...]
    shown: tuple[int, ...]  # Places in ``pairs`` of the items that are shown first
    unit: Unit


def _compared_items(view: StudyView, task: str, budget: int) -> list[_ComparedItems]:
    """Compare test items under the base, the arm of the answer, and the best full fine-tuning.

    The items of the training task come first, then those of its retention tasks; at most ``budget``
    characters in all. The list is empty if their texts are not stored.
    """
    arm, models = view.focus(task), {BASE: "base"}
    role = "recommended" if arm == view.advice(task).chosen else "best tried"
    for name, of in ((role, arm), ("best full", view.best_full(task))):
        done = [t.spec for t in (view.trials(of) if of else ()) if t.status == "done"]
        for spec in done[:1]:
            models.setdefault(spec.trial_id, f"{name}: {spec.arm_label}, seed {spec.seed}")
    found = []
    for name in (task, *view.retained(task)):
        asked = [item.item_id for item in view.study.results.get((BASE, name, "test"), ())]
        results = {
            told: items
            for model, told in models.items()
            if (items := view.study.results.get((model, name, "test")))
            and [item.item_id for item in items] == asked
        }
        if len(results) > 1 and any(item.prompt for item in results["base"]):
            found.append((name, results))
    each = budget // max(1, len(found))
    return [_compared(name, results, view.unit(name), each) for name, results in found]


def _item_pair(items: Sequence[ItemResult], unit: Unit) -> _ItemPair:
    base, tuned, *_ = items
    return _ItemPair(
        outcome=_outcome_of(base.score, tuned.score, unit),
        prompt=safe_text((base.prompt or base.item_id).strip(), MAX_PROMPT),
        gold=safe_text(base.gold, MAX_ANSWER),
        answers=tuple(_answer(item, unit) for item in items),
    )


def _outcome_of(before: float, after: float, unit: Unit) -> Outcome:
    """Return the outcome of one item; a log probability counts as changed from its shown digits
    on."""
    if unit == NATS:
        change = round(after - before, unit.digits)
        return "gained" if change > 0 else "lost" if change < 0 else "kept"
    right = before >= 0.5, after >= 0.5
    if right[0] != right[1]:
        return "gained" if right[1] else "lost"
    return "kept" if right[1] else "missed"


def _fair_choice(outcomes: Sequence[Outcome]) -> list[int]:
    """Choose places of at most ``SHOWN`` items, with every outcome in proportion and at least once.

    Within an outcome they are at even steps through the test set, so none is picked by hand. The
    places are in order.
    """
    places = {o: [i for i, found in enumerate(outcomes) if found == o] for o in ITEM_OUTCOMES}
    places = {outcome: found for outcome, found in places.items() if found}
    total, most = len(outcomes), min(SHOWN, len(outcomes))
    exact = {outcome: most * len(found) / total for outcome, found in places.items()}
    shares = {outcome: max(1, int(share)) for outcome, share in exact.items()}
    while sum(shares.values()) > most:
        shares[max((o for o in shares if shares[o] > 1), key=lambda o: shares[o] - exact[o])] -= 1
    while sum(shares.values()) < most:
        shares[max(shares, key=lambda o: exact[o] - shares[o])] += 1
    return [
        found[int((step + 0.5) * len(found) / shares[outcome])]
        for outcome, found in places.items()
        for step in range(shares[outcome])
    ]


def _answer(item: ItemResult, unit: Unit) -> str:
    """Return a model's answer; for texts that are only scored, their log probability."""
    text = item.generated if item.generated is not None else item.prediction
    if unit == NATS and not text:
        return f"{number(item.score, unit.digits)} {unit.score}"
    mark = "" if unit == NATS else MARKS[item.score >= 0.5]
    return mark + safe_text(text.strip() or "(no answer)", MAX_ANSWER)


def _compared(
    name: str, results: Mapping[str, Sequence[ItemResult]], unit: Unit, budget: int
) -> _ComparedItems:
    pairs = [_item_pair(items, unit) for items in zip(*results.values(), strict=True)]
    place = 1 if unit == NATS else 0
    numbers = {o: sum(pair.outcome == o for pair in pairs) for o in ITEM_OUTCOMES}
    parts = [f"{n} {ITEM_OUTCOMES[o][place]}" for o, n in numbers.items() if n]
    sizes = [sum(map(len, (pair.prompt, pair.gold, *pair.answers))) + 20 for pair in pairs]
    fits = min(len(pairs), int(len(pairs) * budget / max(1, sum(sizes))))
    kept = [pairs[int((step + 0.5) * len(pairs) / fits)] for step in range(fits)]
    shown = _fair_choice([pair.outcome for pair in kept])
    names = tuple(results)
    note = f"The base against {names[1]}, on the {count(len(pairs), 'test item')} of {name}: "
    note += f"{join_names(parts)}. Shown: {len(shown)}, in these proportions, at even steps."
    if fits < len(pairs):
        note += f" The search covers {fits:,} of the items, at even steps; the others are left out."
    return _ComparedItems(name, names, note, tuple(kept), tuple(shown), unit)
