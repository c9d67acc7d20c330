"""The first screen: the answer of each task with the numbers that matter, and what is missing."""

from collections import Counter
from dataclasses import dataclass

from rankscope.formatting import (
    Unit,
    count,
    difference,
    duration,
    interval,
    join_names,
    number,
    safe_text,
    score_text,
)
from rankscope.records import BASE, FEWEST_SEEDS, AdviceMessage, ArmSummary, Estimate, TaskAdvice
from rankscope.report.study_view import StudyView

NEXT_STEPS_TITLES = {
    "firm": "",
    "tentative": "What would make the answer firm",
    "none": "What would decide it",
}

MEANINGS = {
    "firm": "The intervals support this answer.",
    "tentative": "The data lean this way; see the caveats below.",
    "none": "The data do not decide it.",
}


@dataclass(frozen=True, slots=True)
class Tile:
    """One number that matters."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of one training task."""

    task: str
    headline: str = "There is no recommendation for this task yet."
    confidence: str = "none"
    meaning: str = MEANINGS["none"]
    subject: str = ""
    """The arm that the tiles describe."""
    tiles: tuple[Tile, ...] = ()
    reasons: tuple[AdviceMessage, ...] = ()
    findings: tuple[AdviceMessage, ...] = ()
    next_steps: tuple[str, ...] = ()
    """What would decide an open answer, or make it firm."""
    next_steps_title: str = ""


def answer(view: StudyView, task: str) -> Answer:
    """The first screen of one task."""
    advice = view.advice(task)
    if advice is None:
        return Answer(task)
    return Answer(
        task=task,
        headline=advice.verdict,
        confidence=advice.confidence,
        meaning=MEANINGS[advice.confidence],
        subject=_subject(view, task, advice),
        tiles=tuple(_tiles(view, task)),
        reasons=tuple(r for r in advice.reasons if r.kind not in ("diagnostic", "caveat")),
        findings=tuple(r for r in advice.reasons if r.kind in ("diagnostic", "caveat")),
        next_steps=tuple(step.text for step in advice.next_steps),
        next_steps_title=NEXT_STEPS_TITLES[advice.confidence],
    )


def _subject(view: StudyView, task: str, advice: TaskAdvice) -> str:
    arm = view.focus(task)
    if arm is None:
        return ""
    if advice.chosen is not None:
        return f"The recommended arm, {arm.label}"
    if advice.subject_label == arm.label:
        return f"The arm this answer is about, {arm.label}"
    return f"The best arm on the validation split, {arm.label}"


def _tiles(view: StudyView, task: str) -> list[Tile]:
    arm, unit, base = view.focus(task), view.unit(task), view.base(task)
    if arm is None:
        return [Tile("base", score_text(base.score, unit), count(base.n, "item"))] if base else []
    tiles = []
    if arm.score is not None:
        against = f"base {score_text(base.score, unit)}" if base else "base not scored"
        tiles.append(Tile("in-domain score", score_text(arm.score.value, unit), against))
    tiles.append(_tile("gain over base", arm.gain, unit))
    tiles.append(_tile("forgetting", arm.forgetting, view.forgetting_unit(task)))
    full = view.best_full(task)
    if full is not None and full.label != arm.label:
        tiles.append(_tile("full fine-tuning's gain", full.gain, unit))
    tiles.append(_cost_tile(arm, full))
    return tiles


def _tile(label: str, estimate: Estimate | None, unit: Unit) -> Tile:
    if estimate is None:
        return Tile(label, "unknown", "not measured in this study")
    sizes = f"{count(estimate.n, 'item')}, {count(estimate.seeds, 'seed')}"
    return Tile(label, difference(estimate.value, unit), f"{interval(estimate, unit)}; {sizes}")


def _cost_tile(arm: ArmSummary, full: ArmSummary | None) -> Tile:
    parts = [f"{duration(arm.seconds)} of training per trial"] if arm.seconds is not None else []
    if full and full.trainable_parameters and full.label != arm.label:
        share = 100 * arm.trainable_parameters / full.trainable_parameters
        parts.append(f"{number(share)} % of full fine-tuning's")
    return Tile("trainable parameters", number(arm.trainable_parameters), "; ".join(parts))


def missing(view: StudyView) -> list[str]:
    """What a reader might look for and will not find, one sentence each."""
    study = view.study
    statuses = Counter(trial.status for trial in study.trials)
    total, done = len(study.trials), statuses.pop("done", 0)
    rest = ", ".join(f"{number} {status}" for status, number in statuses.items())
    unscored = [t.name for t in study.tasks if (BASE, t.name, "test") not in study.evals]
    few = sum(0 < a.seeds < FEWEST_SEEDS for task in view.training_tasks for a in view.arms(task))
    sentences = {
        "The study has no trials: only the base model is shown.": not total,
        f"None of the {count(total, 'trial')} has finished: only the base is shown.": total
        and not done,
        f"{done} of {count(total, 'trial')} finished; the others: {rest}.": 0 < done < total,
        f"The base has no score on {join_names(unscored)}: changes there are unknown.": unscored,
        "There is no retention task, so forgetting is unknown.": not view.retention_tasks,
        f"{count(few, 'arm')} {'has' if few == 1 else 'have'} fewer than {FEWEST_SEEDS} finished "
        "seeds: the spread between training runs is not known well.": few,
        "No trial has a spectra record: the weights were not analyzed.": done
        and not any(trial.spectra for trial in study.trials),
    }
    return [safe_text(text, 500) for text, applies in sentences.items() if applies]
