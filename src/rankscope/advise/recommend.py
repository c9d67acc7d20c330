"""The recommendation: which arm to use on each training task, or that none is worth it, and why.

A pure function of the records. The validation split chooses an arm (``select.py``); the test split
decides whether it beats the base (``decide.py``) and supplies every number quoted. The rule is in
docs/science.md, "From scores to a decision".
"""

from collections.abc import Mapping
from dataclasses import replace

from rankscope.advise.arms import base_estimates, summarize_arms
from rankscope.advise.catalogue import METHOD
from rankscope.advise.checks import trust_checks
from rankscope.advise.claims import answer_rows, with_claims
from rankscope.advise.comparisons import compare_candidates
from rankscope.advise.decide import decide
from rankscope.advise.mitigation import compare_mitigations
from rankscope.advise.next_steps import next_steps
from rankscope.advise.rank_curves import compare_rank_curves
from rankscope.advise.reasons import reasons_for
from rankscope.advise.select import ArmChoice, choose_for
from rankscope.advise.statistics.significance import ALPHA, holm
from rankscope.advise.subjects import subject_changes
from rankscope.advise.task_results import TaskResults
from rankscope.config.objective import ObjectiveConfig
from rankscope.formatting import join_names
from rankscope.records import Recommendation, StudyRecords, TaskAdvice


def recommend(study: StudyRecords) -> Recommendation:
    """Answer every training task of the study; missing results never raise an error.

    ``use``: a LoRA arm beats the base on the test split. ``use_full``: only full fine-tuning does,
    or LoRA is clearly worse by the margin. ``do_not_fine_tune``: no tested arm is shown to beat the
    base and no arm's measured gain reaches the margin; or the gain is not worth what it costs by
    the study's weights; or every arm exceeds the limit on forgetting. ``not_decided``: nothing
    finished, too little data, intervals too wide, or a test split that contradicts the choice.
    """
    results = task_results(study)
    comparisons = compare_candidates(study, {r.task: r.choice for r in results})
    advice = tuple(_advise(replace(r, comparisons=comparisons[r.task])) for r in results)
    return Recommendation(
        study=study.name,
        advice=advice,
        method=_method_text(
            study.config.objective, {a.task: a.forgetting_scale.text for a in advice}
        ),
        base=base_estimates(study),
        mitigation=compare_mitigations(study),
        rank_curves=compare_rank_curves(study),
        subjects=subject_changes(study, advice),
    )


def task_results(study: StudyRecords) -> tuple[TaskResults, ...]:
    """The arms of every training task and the choice among them, without comparisons of arms."""
    arms = summarize_arms(study)
    choices = {task: choose_for(study, task, arms[task]) for task in arms}
    gain_p_by_label = _gain_p_by_label(choices)
    return tuple(
        TaskResults(
            study=study,
            task=task,
            arms=arms[task],
            choice=choices[task],
            objective=study.config.objective,
            gain_p_by_label=gain_p_by_label[task],
            num_tasks=len(arms),
        )
        for task in arms
    )


def _method_text(objective: ObjectiveConfig, forgetting_rules: Mapping[str, str]) -> str:
    """One paragraph on how every choice of the study was made.

    forgetting_rules: training task -> how its forgetting was weighed.
    """
    limit = ""
    if objective.max_forgetting is not None:
        limit = f" Arms that forget more than {objective.max_forgetting:g} are excluded."
    rules = dict.fromkeys(forgetting_rules.values())
    weighed = " ".join(
        rule
        if len(rules) == 1
        else f"Of {join_names(t for t, r in forgetting_rules.items() if r == rule)}: {rule}"
        for rule in rules
    )
    return METHOD.format(
        formula=objective.formula,
        weighed=weighed,
        margin=objective.margin,
        limit=limit,
        alpha=ALPHA,
    )


def _gain_p_by_label(choices: Mapping[str, ArmChoice]) -> dict[str, dict[str, float]]:
    """p of the gain of every arm that may be recommended, by task and label.

    They are one family over all tasks for Holm's correction.
    """
    candidates = {
        (task, candidate.arm.summary.label): candidate.arm.summary.gain
        for task, choice in choices.items()
        for candidate in (choice.chosen, choice.best)
        if candidate is not None
    }
    adjusted = holm([None if gain is None else gain.p for gain in candidates.values()])
    by_task: dict[str, dict[str, float]] = {task: {} for task in choices}
    for (task, label), p in zip(candidates, adjusted, strict=True):
        by_task[task][label] = p
    return by_task


def _advise(results: TaskResults) -> TaskAdvice:
    verdict, better_than_base, best_choice = with_claims(results, decide(results))
    subject, full, lora = verdict.subject, results.choice.best_full, results.choice.best_lora
    return TaskAdvice(
        task=results.task,
        decision=verdict.decision,
        confidence=verdict.confidence,
        verdict=verdict.text,
        explanation=verdict.explanation,
        forgetting_scale=results.scale.record,
        better_than_base=better_than_base,
        best_choice=best_choice,
        rows=answer_rows(results, verdict),
        checks=trust_checks(results, subject),
        chosen=subject.summary if subject is not None and verdict.recommends_subject else None,
        reasons=reasons_for(results, subject),
        arms=tuple(arm.summary for arm in results.arms),
        comparisons=results.comparisons,
        next_steps=next_steps(results, verdict, best_choice),
        subject_label=None if subject is None else subject.summary.label,
        best_full_label=full.arm.summary.label if full else None,
        best_lora_label=lora.arm.summary.label if lora else None,
        candidate_labels=tuple(c.arm.summary.label for c in results.choice.candidates),
    )
