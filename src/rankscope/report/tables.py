"""The tables of a study that go into a paper or a notebook, and onto the page."""

from collections.abc import Callable

import pandas as pd

from rankscope.formatting import CONFIDENCES, NATS
from rankscope.records import ArmSummary, StudyRecords
from rankscope.report.charts.figure import interval_cells
from rankscope.report.study_view import StudyView, change_on
from rankscope.report.table_formats import Cell, table_from_rows


def study_tables(view: StudyView) -> dict[str, pd.DataFrame]:
    """File name -> table; a table may be empty. Scores are those of the test split."""
    return {
        "paper": paper_table(view),
        "arms": arms_table(view),
        "changes": _changes_table(view),
        "comparisons": _comparisons_table(view),
        "answers": _answers_table(view),
        "tasks": tasks_table(view),
        "training": training_table(view),
        "failed": failed_trials_table(view),
        "without-contamination": contamination_table(view),
    }


# --- results --------------------------------------------------------------------------------------


def _answers_table(view: StudyView) -> pd.DataFrame:
    return table_from_rows(
        [
            {
                "task": advice.task,
                "decision": advice.decision.replace("_", " "),
                "confidence": CONFIDENCES[advice.confidence],
                "arm": advice.chosen.label if advice.chosen else None,
                "answer": advice.verdict,
            }
            for advice in view.recommendation.advice
        ]
    )


def paper_table(view: StudyView) -> pd.DataFrame:
    """Rank by training task, each arm at the learning rate chosen for it; the best is bold.

    A study with one training task also shows the change on retention tasks, and the arms' size.
    """
    titles = {task: f"{task}, {view.unit(task).score}" for task in view.training_tasks}
    rows: dict[str, dict[str, Cell]] = {"base": {"arm": "base"}}
    digits = {t: view.unit(task).digits for task, t in titles.items()}
    for task, title in titles.items():
        unit, candidates = view.unit(task), view.advice(task).candidate_labels
        rows["base"] |= interval_cells(title, view.recommendation.base.get(task), unit)
        for arm in [a for a in view.arms(task) if a.label in candidates]:
            name = " ".join(word for word in arm.label.split() if not word.startswith("lr="))
            row = rows.setdefault(name, {"arm": name})
            row |= interval_cells(title, arm.score, unit)
            if len(titles) == 1:
                lost = view.retention_unit(task)
                kept = f"retention change, {lost.difference}"
                digits[kept] = lost.digits
                row |= interval_cells(kept, view.retention_change(arm), lost)
                row["parameters"] = arm.trainable_parameters or None
    return table_from_rows(list(rows.values()) if len(rows) > 1 else [], digits, tuple(digits))


def arms_table(view: StudyView) -> pd.DataFrame:
    """Every arm of every training task: settings, scores with 95 % intervals, cost.

    Accuracies in percent, differences in points; log probabilities in nats per token.
    """
    digits = _digits(view, "score", "gain", "retention change", "net gain")
    rows = [_arm_row(view, arm) for task in view.training_tasks for arm in view.arms(task)]
    return table_from_rows(rows, digits | {"seconds a trial": 1, "peak memory, MB": 0})


def _arm_row(view: StudyView, arm: ArmSummary) -> dict[str, Cell]:
    unit, kept = view.unit(arm.task), view.retention_unit(arm.task)
    return {
        "task": arm.task,
        "arm": arm.label,
        "method": arm.method,
        "rank": arm.rank,
        "alpha": arm.alpha,
        "learning rate": arm.lr,
        "seeds": arm.seeds,
        "failed": arm.failed,
        **interval_cells("score", arm.score, unit),
        **interval_cells("gain", arm.gain, unit),
        "p": arm.gain.p if arm.gain else None,
        "p, Holm": arm.gain.p_holm if arm.gain else None,
        **interval_cells("retention change", view.retention_change(arm), kept),
        **interval_cells("net gain", arm.net_gain, view.net_unit(arm.task)),
        "unit": unit.score,
        "unit of retention": kept.difference,
        "trainable parameters": arm.trainable_parameters or None,
        "seconds a trial": arm.seconds,
        "peak memory, MB": None if arm.peak_memory_bytes is None else arm.peak_memory_bytes / 1e6,
        "recommended": "yes" if arm == view.advice(arm.task).chosen else "no",
    }


def _changes_table(view: StudyView) -> pd.DataFrame:
    """The change of every arm against the base, on every task it was tested on."""
    rows: list[dict[str, Cell]] = [
        {
            "trained on": task,
            "arm": arm.label,
            "tested on": tested.name,
            "role": role_of_tested(view.study, task, tested.name),
            **interval_cells("change", estimate, view.unit(tested.name)),
            "p": estimate.p,
            "items": estimate.n,
            "seeds": estimate.seeds,
            "unit": view.unit(tested.name).difference,
        }
        for task in view.training_tasks
        for arm in view.arms(task)
        for tested in view.study.tasks
        if (estimate := change_on(arm, tested.name)) is not None
    ]
    return table_from_rows(rows, _digits(view, "change"))


def role_of_tested(study: StudyRecords, trained: str, tested: str) -> str:
    """The role of a tested task for an arm that was trained on another."""
    if trained == tested:
        return "in domain"
    return "retention" if "retention" in study.task(tested).roles else "cross domain"


def _comparisons_table(view: StudyView) -> pd.DataFrame:
    """LoRA against full fine-tuning and ranks against each other, on the same items."""
    rows: list[dict[str, Cell]] = [
        {
            "task": advice.task,
            "first": pair.first_label,
            "second": pair.second_label,
            **interval_cells("difference", pair.difference, view.unit(advice.task)),
            "p": pair.difference.p,
            "p, Holm": pair.difference.p_holm,
            "unit": view.unit(advice.task).difference,
        }
        for advice in view.recommendation.advice
        for pair in advice.comparisons
    ]
    return table_from_rows(rows, _digits(view, "difference"))


def _digits(view: StudyView, *titles: str) -> dict[str, int]:
    has_nats = any(view.unit(task.name) == NATS for task in view.study.tasks)
    return dict.fromkeys(titles, 4 if has_nats else 2)


# --- data and trials ------------------------------------------------------------------------------


def failed_trials_table(view: StudyView) -> pd.DataFrame:
    return table_from_rows(
        [
            {
                "trial": t.spec.label,
                "status": t.status,
                "reason": t.failure or "no reason recorded",
                "last step": t.train.losses[-1].step if t.train and t.train.losses else None,
            }
            for t in view.failed()
        ]
    )


def stopped_trials_table(view: StudyView) -> pd.DataFrame:
    """Trials that an adaptive study ended at a rung: where, and behind which arm.

    The difference is that of the net gains on the rung's validation items, with the interval that
    holds over all arms and rungs at once; the projected one is empty unless it decided.
    """
    rows: list[dict[str, Cell]] = []
    for trial in view.study.trials:
        if (stop := trial.stop) is None:
            continue
        unit = view.net_unit(trial.spec.task)
        differences = {
            "difference": stop.difference,
            "difference, low": stop.low,
            "difference, high": stop.high,
            "projected difference": stop.projected_difference,
        }
        rows.append(
            {
                "trial": trial.spec.label,
                "after step": stop.train.steps,
                "of": stop.num_steps,
                "reason": stop.reason,
                "compared with": stop.rival,
                **{title: x and x * unit.scale for title, x in differences.items()},
                "unit": unit.difference,
            }
        )
    return table_from_rows(rows, _digits(view, "difference", "projected difference"))


def tasks_table(view: StudyView) -> pd.DataFrame:
    """The source of each task, its rows per split, and the rows dropped or contaminated."""
    return table_from_rows(
        [
            {
                "task": task.name,
                "role": ", ".join(role.replace("_", " ") for role in task.roles),
                "metric": task.metric,
                "chance score": task.chance,
                **{f"{split} rows": task.rows.get(split) for split in _SPLITS},
                "dropped on reading": task.dropped,
                "contamination, exact": task.contamination.get("exact"),
                "contamination, 13-gram": task.contamination.get("ngram13"),
                "source": task.source,
                "sha256, first digits": task.sha256[:16],
            }
            for task in view.study.tasks
        ]
    )


_SPLITS = ("train", "validation", "test")


def contamination_table(view: StudyView) -> pd.DataFrame:
    """Test scores of tasks with contaminated rows, with and without these rows.

    Scores as recorded: a fraction, or nats per token.
    """
    labels = {trial.spec.trial_id: trial.spec.label for trial in view.study.trials}
    return table_from_rows(
        [
            {
                "task": record.task,
                "model": labels.get(record.trial_id, record.trial_id),
                "score": record.score,
                "items": record.n,
                "without contaminated rows": clean.score,
                "standard error": clean.standard_error,
                "items without": clean.n,
                "contaminated rows": clean.contaminated,
            }
            for record in view.study.evals.values()
            if (clean := record.without_contamination) is not None
        ]
    )


TRAINING_FIELDS = {
    "rows": "rows used",
    "rows_dropped": "dropped",
    "rows_truncated": "cut",
    "steps": "optimizer steps",
    "num_tokens": "tokens",
    "num_label_tokens": "label tokens",
}


def training_table(view: StudyView) -> pd.DataFrame:
    """Rows and tokens used in training, by task.

    The finished trials of a task usually agree; if they differ, the smallest and the largest value
    have a column each.
    """
    trained = {
        task: [t.train for t in view.study.trials if t.spec.task == task and t.train]
        for task in view.training_tasks
    }
    rows: list[dict[str, Cell]] = [
        {"training task": task, "finished trials": len(records)}
        for task, records in trained.items()
    ]
    for field, title in TRAINING_FIELDS.items():
        values = [[int(getattr(record, field)) for record in t] for t in trained.values()]
        columns: dict[str, Callable[[list[int]], int]] = {title: min}
        if any(len(set(of_task)) > 1 for of_task in values):
            columns = {f"{title}, smallest": min, f"{title}, largest": max}
        for row, of_task in zip(rows, values, strict=True):
            row |= {name: pick(of_task) if of_task else None for name, pick in columns.items()}
    return table_from_rows(rows)
