"""Which trial of a study a user means: the recommended one, an id, or a label from the report."""

from pathlib import Path

from rankscope.errors import UserError
from rankscope.records import StudyRecords, TrialSpec
from rankscope.report.study_view import StudyView

MOST_LISTED = 12  # Trials named in a message about an ambiguous label


def choose_trial(
    view: StudyView, folder: Path, label: str | None, task: str | None, *, best_lora: bool
) -> tuple[TrialSpec, str]:
    """The trial that a label names; without one, of the recommended arm or the best LoRA arm.

    A label is a trial's id or the beginning of one, or words of its name: ``r=8 lr=0.001`` as the
    report shows it, ``arc_easy r=8 lr=0.001 seed=1`` in full. Of an arm's seeds, the one with the
    highest score on the validation split is taken, which the second value says. Raises UserError:
    no such trial or recommendation, or several; the message lists them.
    """
    if not view.training_tasks:
        found = "a study without arms, which has nothing to export"
        raise UserError(folder, found, "one that trained", "use the folders of its given models")
    if task is not None and task not in view.training_tasks:
        expected = f"--task {' or '.join(view.training_tasks)}"
        raise UserError(folder, f"no training task {task!r}", expected)
    if label is not None:
        trials = _trials_with_label(view.study, folder, label, task)
    else:
        trials = _trials_of_answer(view, folder, task, best_lora=best_lora)
    if len(trials) == 1:
        return trials[0], ""

    def score(spec: TrialSpec) -> float:
        record = view.study.evals.get((spec.trial_id, spec.task, "validation"))
        return record.score if record else float("-inf")

    return max(trials, key=score), f"the seed with the highest validation score of {len(trials)}"


def _trials_with_label(
    study: StudyRecords, folder: Path, label: str, task: str | None
) -> list[TrialSpec]:
    """The seeds of the arm, or the trial, that a label names. Raises UserError: no such trial, or
    several arms."""
    trials = [t.spec for t in study.trials if task in (None, t.spec.task)]
    words = set(label.split())
    by_id = [spec for spec in trials if label and spec.trial_id.startswith(label)]
    exact = [spec for spec in trials if label in (spec.label, spec.arm_label)]
    partial = [spec for spec in trials if words and words <= set(spec.label.split())]
    matches = by_id or exact or partial
    if not matches:
        raise UserError(
            folder,
            f"no trial {label!r}",
            f"an arm's label from the report such as {trials[0].arm_label!r}, or the id of one of "
            f"its {len(trials)} trials",
            f"see them with 'rankscope status {folder}', or give --best",
        )
    if len(matches) == 1 or (not by_id and len({spec.arm for spec in matches}) == 1):
        done = {t.spec.trial_id for t in study.trials if t.status == "done"}
        return [spec for spec in matches if spec.trial_id in done] or matches[:1]
    arms = dict.fromkeys(f"{spec.task} {spec.arm_label}" for spec in matches)
    names = [f"{s.trial_id}  {s.label}" for s in matches] if by_id else list(arms)
    rest = len(names) - MOST_LISTED
    more = [f"and {rest} more"] if rest > 0 else []
    raise UserError(
        folder,
        f"{len(names)} {'trials' if by_id else 'arms'} that match {label!r}",
        "one",
        "give more of the id" if by_id else "give one of these labels",
        faults=[*names[:MOST_LISTED], *more],
    )


def _trials_of_answer(
    view: StudyView, folder: Path, task: str | None, *, best_lora: bool
) -> list[TrialSpec]:
    """The trials of the answer for ``task``, or for the only training task."""
    tasks = view.training_tasks if task is None else (task,)
    if len(tasks) != 1:
        found = f"{len(tasks)} training tasks, each with an answer of its own"
        raise UserError(folder, found, "one", f"give one with --task: {', '.join(tasks)}")
    advice = view.advice(tasks[0])
    arm = view.best_lora(advice.task) if best_lora else advice.chosen
    if arm is None:
        found = "no LoRA arm with scores" if best_lora else f"no recommended arm: {advice.verdict}"
        label = "give an arm's label from the report"
        do = label if best_lora else f"export the best LoRA arm with --best-lora, or {label}"
        raise UserError(f"{folder}: {advice.task}", found, "one", do)
    return [t.spec for t in view.trials(arm) if t.status == "done"]
