"""The first screen: each task's answer with the numbers that matter, and what is missing."""

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
from rankscope.records import BASE, ArmSummary, Estimate, Reason, TaskAdvice
from rankscope.report.study_view import StudyView

ENOUGH_SEEDS = 3
"""Fewer leave the spread between training runs unknown (science.md section 5)."""

NEXT_STEPS_TITLES = {
    "firm": "",
    "tentative": "What would tell more",
    "none": "What would decide it",
}

CONFIDENCE = {
    "firm": "The intervals support it.",
    "tentative": "The data lean this way; see the limits below.",
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
    """One training task's answer."""

    task: str
    headline: str
    confidence: str
    meaning: str
    subject: str
    """Which arm the tiles are about."""
    tiles: tuple[Tile, ...]
    reasons: tuple[Reason, ...]
    signs: tuple[Reason, ...]
    needs: tuple[str, ...]
    """What would decide an open answer, or make it firm."""
    needs_title: str


def answer(view: StudyView, task: str) -> Answer:
    """What the first screen says of one task."""
    advice = view.advice(task)
    if advice is None:
        return Answer(
            task,
            headline="There is no recommendation for this task yet.",
            confidence="none",
            meaning=CONFIDENCE["none"],
            subject="",
            tiles=(),
            reasons=(),
            signs=(),
            needs=(),
            needs_title="",
        )
    return Answer(
        task=task,
        headline=advice.headline,
        confidence=advice.confidence,
        meaning=CONFIDENCE[advice.confidence],
        subject=_subject(view, task, advice),
        tiles=tuple(_tiles(view, task)),
        reasons=tuple(r for r in advice.reasons if r.kind not in ("sign", "limit")),
        signs=tuple(r for r in advice.reasons if r.kind in ("sign", "limit")),
        needs=tuple(need.text for need in advice.needs),
        needs_title=NEXT_STEPS_TITLES[advice.confidence],
    )


def _subject(view: StudyView, task: str, advice: TaskAdvice) -> str:
    arm = view.focus(task)
    if arm is None:
        return ""
    if advice.chosen is not None:
        return f"The recommended arm, {arm.label}"
    if advice.subject_label == arm.label:
        return f"The arm this answer speaks of, {arm.label}"
    return f"The best arm on the validation split, {arm.label}"


def _tiles(view: StudyView, task: str) -> list[Tile]:
    arm, unit = view.focus(task), view.unit(task)
    tiles = []
    base = view.base(task)
    if arm is None:
        if base is not None:
            tiles.append(Tile("base", score_text(base.score, unit), count(base.n, "item")))
        return tiles
    if arm.score is not None:
        against = f"base {score_text(base.score, unit)}" if base else "base not scored"
        tiles.append(Tile("in-domain score", score_text(arm.score.value, unit), against))
    tiles.append(_tile("gain over base", arm.gain, unit))
    tiles.append(_tile("forgetting", arm.forgetting, view.forgetting_unit(task)))
    full = view.best_full(task)
    if full is not None and full is not arm and full.label != arm.label:
        tiles.append(_tile("full fine-tuning's gain", full.gain, unit))
    tiles.append(_cost_tile(arm, full))
    return tiles


def _tile(label: str, estimate: Estimate | None, unit: Unit) -> Tile:
    if estimate is None:
        return Tile(label, "unknown", "not measured in this study")
    detail = (
        f"{interval(estimate, unit)}; {count(estimate.n, 'item')}, {count(estimate.seeds, 'seed')}"
    )
    return Tile(label, difference(estimate.value, unit), detail)


def _cost_tile(arm: ArmSummary, full: ArmSummary | None) -> Tile:
    parts = [f"{duration(arm.seconds)} of training per trial"] if arm.seconds is not None else []
    if full and full.trainable_parameters and full.label != arm.label:
        share = 100 * arm.trainable_parameters / full.trainable_parameters
        parts.append(f"{number(share)} % of full fine-tuning's")
    return Tile("trainable parameters", number(arm.trainable_parameters), "; ".join(parts))


def missing(view: StudyView) -> list[str]:
    """What a reader might look for and will not find, one sentence each."""
    study = view.study
    states = Counter(trial.status for trial in study.trials)
    total, done = len(study.trials), states["done"]
    found = []
    if not total:
        found.append("The study has no trials: only the base model can be shown.")
    elif not done:
        found.append(f"None of the {count(total, 'trial')} has finished: only the base is shown.")
    elif done < total:
        rest = [f"{states[s]} {s}" for s in states if s != "done"]
        found.append(f"{done} of {count(total, 'trial')} finished; the others: {', '.join(rest)}.")
    unscored = [t.name for t in study.tasks if (BASE, t.name, "test") not in study.evals]
    if unscored:
        found.append(
            f"The base has no score on {join_names(unscored)}, so no change against it is known "
            "there."
        )
    if not view.retention_tasks:
        found.append("There is no retention task, so forgetting is unknown.")
    few = sum(0 < a.seeds < ENOUGH_SEEDS for task in view.training_tasks for a in view.arms(task))
    if few:
        found.append(
            f"{count(few, 'arm')} {'has' if few == 1 else 'have'} fewer than {ENOUGH_SEEDS} "
            "finished seeds: how much another training run would differ is not known well."
        )
    if done and not any(trial.spectra for trial in study.trials):
        found.append("No trial has a spectra record: the weights were not analyzed.")
    return [safe_text(text, 500) for text in found]
