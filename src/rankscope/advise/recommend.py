"""The decision: which arm to use on each training task, or that none is worth it, and why.

A pure function of the records. The arm is chosen on the validation split (``choose.py``); whether it
beats the base, and every figure quoted, comes from the test split. The rule is written out in
docs/science.md, "From scores to a decision".
"""

from collections.abc import Sequence

import numpy as np

from rankscope.advise.arms import Arm, base_estimates, summarize_arms
from rankscope.advise.case import Case
from rankscope.advise.comparisons import compare_candidates, with_holm
from rankscope.advise.decide import decide
from rankscope.advise.next_steps import needs_of
from rankscope.advise.objective import task_objective
from rankscope.advise.reasons import reasons_for
from rankscope.advise.select import ArmChoice, Candidate, choose
from rankscope.advise.statistics.significance import ALPHA, holm
from rankscope.config.objective import ObjectiveConfig
from rankscope.records import BASE, Recommendation, StudyRecords, TaskAdvice


def recommend(study: StudyRecords) -> Recommendation:
    """Answer every training task of the study; never fails for what is missing.

    ``use``: the chosen LoRA arm beats the base on the test split. ``use_full``: only full
    fine-tuning does, or LoRA is clearly worse than it by the margin. ``do_not_fine_tune``: the arms
    tested are not shown to beat the base and no arm gains the margin, or more is forgotten than
    gained. ``not_decided``: nothing finished, too little data, or the intervals cannot tell.
    """
    arms = summarize_arms(study)
    objectives = {task: task_objective(study, task) for task in arms}
    choices = {task: _chosen(study, task, arms[task], objectives[task]) for task in arms}
    comparisons = with_holm(
        {task: compare_candidates(study, task, choice) for task, choice in choices.items()}
    )
    tested = _tested(choices)
    cases = [
        Case(
            study=study,
            task=task,
            arms=found,
            choice=choices[task],
            objective=objectives[task],
            comparisons=comparisons[task],
            tested=tested[task],
            num_tasks=len(arms),
        )
        for task, found in arms.items()
    ]
    return Recommendation(
        study=study.name,
        advice=tuple(_advise(case) for case in cases),
        method=method_text(study.config.objective, tuple(objectives.values())),
        base=base_estimates(study),
    )


def method_text(objective: ObjectiveConfig, of_tasks: Sequence[ObjectiveConfig]) -> str:
    """How every choice of the study was made, one paragraph; the study's objective, each task's."""
    limit = (
        ""
        if objective.max_forgetting is None
        else f" Arms that forget more than {objective.max_forgetting:g} are left out."
    )
    apart = ""
    if any(own.retention != objective.retention for own in of_tasks):
        apart = " Where gain and forgetting differ in unit, forgetting has no weight."
    return (
        f"On the validation split every arm has the utility {objective.formula}, against the base "
        "and with failed trials counting as no gain; cost is the logarithm of the trainable "
        "parameters, from 0 for the fewest to 1 for the most. The learning rate is chosen for each "
        "rank first; then the smallest LoRA rank whose utility is within "
        f"{objective.margin:g} of the best arm's.{limit}{apart} Every figure quoted comes from the "
        "test split: paired differences on the same items, 95 % intervals from a bootstrap over "
        "items (whole subjects or passages, where there are ten or more) and Student's t over "
        "seeds, exact McNemar tests for one seed, sign-flip tests on item means beside the "
        "interval's own for more. An arm is recommended only if its gain over the base has "
        f"p < {ALPHA:g} there; where the smallest rank's has not, the arm of the highest utility "
        "gets a second try (Holm over both, on all training tasks). It is taken back where gain "
        "and forgetting come to nothing by the weights there, or the limit on forgetting is broken."
    )


def _chosen(
    study: StudyRecords, task: str, arms: tuple[Arm, ...], objective: ObjectiveConfig
) -> ArmChoice:
    base = study.items.get((BASE, task, "validation"))
    scores = np.empty(0) if base is None else base.scores
    finite = scores[np.isfinite(scores)]
    return choose(arms, float(finite.mean()) if finite.size else None, objective)


def _tested(choices: dict[str, ArmChoice]) -> dict[str, dict[str, float]]:
    """Of the arms that may be recommended, p of their gains, Holm over all of them together."""
    named = []
    for task, choice in choices.items():
        by_label = {
            c.arm.summary.label: c.arm.summary
            for c in (choice.chosen, choice.best)
            if c is not None
        }
        named += [(task, arm) for arm in by_label.values()]
    p_values = [1.0 if a.gain is None or a.gain.p is None else a.gain.p for _, a in named]
    found: dict[str, dict[str, float]] = {task: {} for task in choices}
    for (task, arm), p in zip(named, holm(p_values), strict=True):
        found[task][arm.label] = p
    return found


def _advise(case: Case) -> TaskAdvice:
    verdict = decide(case)
    subject = verdict.subject
    used = verdict.decision in ("use", "use_full")
    gains = used or (subject is not None and case.is_shown_to_gain(subject.summary))
    return TaskAdvice(
        task=case.task,
        decision=verdict.decision,
        confidence=verdict.confidence,
        headline=verdict.headline,
        chosen=subject.summary if used and subject is not None else None,
        reasons=reasons_for(case, subject),
        arms=tuple(arm.summary for arm in case.arms),
        comparisons=case.comparisons,
        needs=() if verdict.confidence == "firm" else needs_of(case, subject, gains),
        subject_label=None if subject is None else subject.summary.label,
        best_full_label=_label(case.choice.best_full),
        best_lora_label=_label(case.choice.best_lora),
    )


def _label(candidate: Candidate | None) -> str | None:
    return None if candidate is None else candidate.arm.summary.label
