"""Limit for studies with thousands of arms, so that their files stay small and readable."""

from dataclasses import replace
from math import inf

from rankscope.records import BASE, TaskAdvice
from rankscope.report.study_view import StudyView

MAX_PAGE_ARMS = 300  # Most arms of all training tasks together; each takes some 30 kB of a page
MAX_FAILED = 100  # Most failed trials whose reasons a page lists


def limited(view: StudyView) -> StudyView:
    """Limit the view to ``MAX_PAGE_ARMS`` arms; they stay in the study's order.

    The arms that the answer names are kept, then those with the highest expected net gain.
    """
    study, recommendation = view.study, view.recommendation
    if sum(len(advice.arms) for advice in recommendation.advice) <= MAX_PAGE_ARMS:
        return view
    most = MAX_PAGE_ARMS // len(recommendation.advice)
    advice = tuple(_limited_advice(advice, most) for advice in recommendation.advice)
    labels = {a.task: {arm.label for arm in a.arms} for a in advice}
    trials = tuple(t for t in study.trials if t.spec.arm_label in labels.get(t.spec.task, ()))
    ids = {BASE, *(trial.spec.trial_id for trial in trials)}
    evals = {key: record for key, record in study.evals.items() if record.trial_id in ids}
    shown = recommendation.model_copy(update={"advice": advice})
    return StudyView(replace(study, trials=trials, evals=evals), shown, unlimited=study)


def _limited_advice(advice: TaskAdvice, most: int) -> TaskAdvice:
    named = {advice.subject_label, advice.best_full_label, advice.best_lora_label}
    named |= {row.arm.label for row in advice.rows}
    expected = {a.label: a.expected.net.value if a.expected else -inf for a in advice.arms}
    best = sorted(expected, key=lambda label: (label not in named, -expected[label]))
    labels = set(best[:most])
    return advice.model_copy(
        update={
            "arms": tuple(arm for arm in advice.arms if arm.label in labels),
            "arms_left_out": len(advice.arms) - len(labels),
            "comparisons": tuple(
                pair
                for pair in advice.comparisons
                if {pair.first_label, pair.second_label} <= labels
            ),
            "candidate_labels": tuple(n for n in advice.candidate_labels if n in labels),
        }
    )


def not_shown(whole: StudyView, shown: StudyView) -> list[str]:
    """Write a sentence if ``shown`` is only a part of ``whole``."""
    views = (whole, shown)
    total, kept = (sum(len(a.arms) for a in view.recommendation.advice) for view in views)
    if kept == total:
        return []
    return [
        f"{kept:,} of {total:,} configurations are shown: those that the answer names, then those "
        "with the highest expected net gain. The answer rests on all of them; "
        "'rankscope report DIR --tables FOLDER' writes them all."
    ]
