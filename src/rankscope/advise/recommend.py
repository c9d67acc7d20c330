"""The recommendation: which arm to use on each training task, or that none is worth it, and why.

It is a pure function of the records. All scored items, validation and test, are evidence for one
joint posterior of each task (``evidence.py``, ``posterior.py``, ``net_gains.py``). One rule decides
from it (``decide.py``). Quoted raw numbers are those of the test split. docs/methods.md, "From
scores to a decision".
"""

from rankscope.advise.arms import Arm, base_estimates, summarize_arms
from rankscope.advise.checks import trust_checks
from rankscope.advise.comparisons import model_scores
from rankscope.advise.decide import RIVALS_NAMED, Answer, decide, no_surer_than
from rankscope.advise.next_steps import next_steps
from rankscope.advise.reasons import reasons_for
from rankscope.advise.results import TaskResults, task_results
from rankscope.config.objective import ObjectiveConfig
from rankscope.formatting import margin_text
from rankscope.records import AnswerRow, Recommendation, RowRole, StudyRecords, TaskAdvice


def recommend(study: StudyRecords) -> Recommendation:
    """Answer every training task of the study; missing results never raise an error.

    ``use`` and ``use_full`` name the arm of fewest parameters that is expected to lose at most a
    quarter of the margin more than the best choice. The base and prompts have no parameters; of
    these, the one that reads the fewest tokens is chosen. ``do_not_fine_tune`` means that the base
    is chosen, or that every arm probably exceeds the limit on forgetting. ``not_decided`` means
    that nothing was scored, or that a check is bad.
    """
    results = [task_results(study, task, arms) for task, arms in summarize_arms(study).items()]
    advice = tuple(map(_advise, results))
    margins = dict.fromkeys(margin_text(r.margin, r.net_unit) for r in results)
    return Recommendation(
        study=study.name,
        advice=advice,
        method=_method_text(study.config.objective, " or ".join(margins)),
        base=base_estimates(study),
        given=model_scores(study),
    )


def _method_text(objective: ObjectiveConfig, margins: str) -> str:
    """Write one paragraph on how every choice of the study was made.

    ``margins`` are those of all training tasks, in words.
    """
    limit = ""
    if objective.max_forgetting is not None:
        limit = (
            f" Configurations that forget more than {objective.max_forgetting:g} with a "
            "probability above 0.5 are left out."
        )
    text = f"""
        Every configuration has a net gain over the base, {objective.formula}. One point counts
        as much as a log probability of 0.01 nats per token, which is 1 % of perplexity. The
        gain and the change of every retention task have a posterior each, from all scored items
        and seeds; their draws are added. Items and seeds are crossed, configurations share the
        spread between seeds (a prompt has none), and ranks and rates that are neighbors are
        shrunk toward each other. Of those whose expected regret is at most a quarter of the
        margin ({margins}) above the least, the one of fewest trainable parameters is chosen.
        The base is one of the choices; without parameters, the fewest tokens read win.{limit} A
        run that failed counts as no gain. Raw scores are of the test split, with 95 % intervals
        from a bootstrap over items (over whole subjects or passages if there are any) and
        Student's t over seeds."""
    return " ".join(text.split())


def _advise(results: TaskResults) -> TaskAdvice:
    answer = decide(results)
    checks = trust_checks(results, answer.subject)
    answer = no_surer_than(answer, checks)
    subject, full, lora = answer.subject, results.best_full, results.best_lora
    return TaskAdvice(
        task=results.task,
        decision=answer.decision,
        p_within_margin=answer.p_within_margin,
        p_better=answer.p_better,
        confidence=answer.confidence,
        expected_regret=answer.regret,
        verdict=answer.verdict,
        summary=answer.summary,
        explanation=answer.explanation,
        ranks_that_may_do=answer.ranks,
        rows=_answer_rows(results, answer),
        checks=checks,
        chosen=answer.chosen,
        reasons=reasons_for(results, subject),
        arms=tuple(arm.summary for arm in results.arms),
        comparisons=results.comparisons,
        next_steps=next_steps(results, answer, checks),
        subject_label=None if subject is None else subject.summary.label,
        best_full_label=full.summary.label if full else None,
        best_lora_label=lora.summary.label if lora else None,
        candidate_labels=tuple(arm.summary.label for arm in results.candidates),
    )


def _answer_rows(results: TaskResults, answer: Answer) -> tuple[AnswerRow, ...]:
    """Return the rows of the answer's short table.

    They are the recommended arm, the largest of the smaller ranks that may do, the best arm, the
    best full one, the best prompt, and a LoRA arm.
    """
    arms = {arm.summary.label: arm.summary for arm in results.arms}
    roles: dict[str, list[RowRole]] = {}
    full, lora = results.best_full, results.best_lora
    best = results.candidates[0] if results.candidates else None
    named: list[tuple[RowRole, Arm | None]] = [
        ("closest" if answer.chosen is None else "recommended", answer.subject),
        ("best", best),
        ("full", full),
        ("prompt", results.best_prompt),
    ]
    labels: list[tuple[RowRole, str]] = [(r, a.summary.label) for r, a in named if a is not None]
    chosen_rank = answer.subject.summary.rank if answer.subject else None
    smaller = [r for r in answer.ranks if r.rank < (chosen_rank or 0)]
    labels[1:1] = [("smaller", r.label) for r in smaller[-RIVALS_NAMED:][::-1]]
    for role, label in labels:
        roles.setdefault(label, []).append(role)
    if lora is not None and roles and not any(arms[label].is_lora for label in roles):
        roles[lora.summary.label] = ["lora"]
    return tuple(AnswerRow(roles=tuple(found), arm=arms[label]) for label, found in roles.items())
