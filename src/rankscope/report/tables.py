"""The tables of a study for a paper, a notebook and the page, in one place.

Files for programs have shares of 1 and nats; ``STUDY_COLUMNS`` says how people read them.
"""

from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd

from rankscope.formatting import CONFIDENCES, NATS, Unit
from rankscope.records import FAILED, ArmSummary, Estimate, ModelScore, StudyRecords
from rankscope.registry import by_name, objects
from rankscope.report.analysis_tables import TableRow
from rankscope.report.columns import PROBABILITY, Column, interval_cells
from rankscope.report.figures import figure_files
from rankscope.report.study_view import StudyView, change_on
from rankscope.report.table_formats import table

_WORDS = {"accuracy": "points", "log_probability": NATS.score}
STUDY_COLUMNS = {
    "lr": Column("learning rate"),
    "score": Column(unit_from="score_unit"),
    "gain": Column(unit_from="score_unit"),
    "change": Column(unit_from="difference_unit"),
    "difference": Column(unit_from="difference_unit"),
    "expected_gain": Column(unit_from="score_unit"),
    "expected_retention_change": Column(unit_from="retention_unit"),
    "expected_net_gain": Column(unit_from="net_unit"),
    "expected_regret": Column(unit_from="net_unit"),
    "p_better": Column("likely better than the base", PROBABILITY),
    "p_within_margin": Column("likely among the best", PROBABILITY),
    "p_best": Column("likely the best", PROBABILITY),
    "retention_change": Column(unit_from="retention_unit"),
    "score_unit": Column("unit", words={"accuracy": "%", "log_probability": NATS.score}),
    "difference_unit": Column("unit", words=_WORDS),
    "net_unit": Column("unit of net gain", words=_WORDS),
    "retention_unit": Column("unit of retention", words=_WORDS),
    "seconds": Column("seconds a run", digits=1),
    "tokens_per_item": Column("tokens read for an item", digits=0),
    "peak_memory_bytes": Column("peak memory, MB", Unit(1e-6, "MB", "MB", 0)),
    "label": Column("run"),
    "failure": Column("reason"),
    "leader": Column("led before"),
    "regret": Column("expected regret", unit_from="regret_unit"),
    "after": Column("expected after", unit_from="regret_unit"),
    "regret_unit": Column("unit of regret", words=_WORDS),
    "trained": Column("trained next"),
    "chance": Column("chance score"),
    "dropped": Column("dropped on reading"),
    "contamination_exact": Column("contamination, exact"),
    "contamination_ngram13": Column("contamination, 13-gram"),
    "sha256": Column("sha256, first digits"),
    "rows": Column("rows used"),
    "rows_dropped": Column("dropped"),
    "rows_truncated": Column("cut"),
    "steps": Column("optimizer steps"),
    "num_tokens": Column("tokens"),
    "num_label_tokens": Column("label tokens"),
    "loss_scale_halvings": Column("halvings of the loss scale"),
}


class ScoreTable(partial[pd.DataFrame]):
    """Makes a table from the view; an extension's figures add it to the files.

    The name of the function that it decorates is the table's.
    """


def study_tables(view: StudyView) -> dict[str, pd.DataFrame]:
    """Return tables by file name; a table may be empty. Scores are those of the test split.

    Raises UserError: two have one name.
    """
    tables = {
        "paper": paper_table(view),
        "arms": arms_table(view),
        "changes": _changes_table(view),
        "comparisons": _comparisons_table(view),
        "given": given_table(view.recommendation.given),
        "answers": _answers_table(view),
        "tasks": tasks_table(view),
        "training": training_table(view),
        "failed": failed_trials_table(view),
        "without-contamination": contamination_table(view),
    }
    added = [(make.func.__name__, make(view)) for make in objects(ScoreTable, figure_files())]
    return by_name("table", [*tables.items(), *added])


def _score_unit(unit: Unit) -> str:
    return "log_probability" if unit == NATS else "accuracy"


def columns_of(view: StudyView, *names: str) -> dict[str, Column]:
    """Return ``STUDY_COLUMNS``, with the digits of the study's units for columns of mixed units."""
    digits = 4 if any(view.unit(task.name) == NATS for task in view.study.tasks) else 2
    return STUDY_COLUMNS | {name: STUDY_COLUMNS[name]._replace(digits=digits) for name in names}


# --- results --------------------------------------------------------------------------------------


def _answers_table(view: StudyView) -> pd.DataFrame:
    return table(
        [
            {
                "task": advice.task,
                "decision": advice.decision.replace("_", " "),
                "confidence": CONFIDENCES[advice.confidence],
                "arm": advice.chosen.label if advice.chosen else None,
                "p_within_margin": advice.p_within_margin,
                "p_better": advice.p_better,
                "expected_regret": advice.expected_regret,
                "net_unit": _score_unit(view.net_unit(advice.task)),
                "answer": f"{advice.verdict} {advice.summary}",
            }
            for advice in view.recommendation.advice
        ],
        columns_of(view, "expected_regret"),
    )


def paper_table(view: StudyView) -> pd.DataFrame:
    """Return ranks by training task, each arm at its best learning rate; the highest score is bold.

    A study with one training task also shows the change on retention tasks, and the arms' size.
    Programs find the scores on ``x`` in ``x_score``, a name that no other column has.
    """
    tasks = view.training_tasks
    columns = {f"{t}_score": Column(f"{t}, {view.unit(t).score}", view.unit(t)) for t in tasks}
    rows: dict[str, TableRow] = {"base": {"arm": "base"}}
    for task in tasks:
        rows["base"] |= interval_cells(f"{task}_score", view.recommendation.base.get(task))
        for arm in view.candidates(task):
            name = view.spec(arm).label_without("lr")
            row = rows.setdefault(name, {"arm": name})
            row |= interval_cells(f"{task}_score", arm.score)
            if len(tasks) == 1:
                lost = view.retention_unit(task)
                title = f"retention change, {lost.difference}"
                columns["retention_change"] = Column(title, lost)
                row |= interval_cells("retention_change", view.retention_change(arm))
                row["parameters"] = arm.trainable_parameters or (None if arm.trains else 0)
    return table(list(rows.values()) if len(rows) > 1 else [], columns, tuple(columns))


def arms_table(view: StudyView) -> pd.DataFrame:
    """Return the base and every arm of every training task.

    Columns are settings, expected values, measured scores with 95 % intervals, and cost.
    """
    names = ("expected_gain", "expected_retention_change", "expected_net_gain", "expected_regret")
    columns = columns_of(view, *names, "score", "gain", "retention_change")
    rows = []
    for task in view.training_tasks:
        arms = [arm_row(view, arm) for arm in view.arms(task)]
        if arms and (base := view.recommendation.base.get(task)) is not None:
            rows.append(
                dict.fromkeys(arms[0])
                | {"task": task, "arm": "base", "recommended": False}
                | {name: arms[0][name] for name in ("net_unit", "score_unit", "retention_unit")}
                | interval_cells("score", base)
            )
        rows += arms
    return table(rows, columns)


def arm_row(view: StudyView, arm: ArmSummary) -> TableRow:
    of, expected, measured = arm.expected, view.expected(arm), view.measured(arm)
    cells = {name: interval_cells(name, change) for name, (change, _) in expected.items()}
    cells |= {name: interval_cells(name, change) for name, (change, _) in measured.items()}
    return {
        "task": arm.task,
        "arm": arm.label,
        "method": arm.method,
        "rank": arm.rank,
        "alpha": arm.alpha,
        "lr": arm.lr or None,
        "seeds": arm.seeds,
        "failed": arm.failed,
        **{end: value for name in expected for end, value in cells[name].items()},
        **{name: of and getattr(of, name) for name in ("p_better", "p_within_margin", "p_best")},
        "expected_regret": of and of.regret,
        **{end: value for name in measured for end, value in cells[name].items()},
        "net_unit": _score_unit(view.net_unit(arm.task)),
        "score_unit": _score_unit(view.unit(arm.task)),
        "retention_unit": _score_unit(view.retention_unit(arm.task)),
        "trainable_parameters": arm.trainable_parameters or (None if arm.trains else 0),
        "seconds": arm.seconds,
        "peak_memory_bytes": arm.peak_memory_bytes,
        **({} if arm.trains else {"tokens_per_item": arm.tokens_per_item}),
        "recommended": arm == view.advice(arm.task).chosen,
    }


def _changes_table(view: StudyView) -> pd.DataFrame:
    """Return the change of every arm against the base, on every task it was tested on."""
    rows: list[TableRow] = [
        {
            "trained_on": task,
            "arm": arm.label,
            "tested_on": tested.name,
            "role": role_of_tested(view.study, task, tested.name),
            **change_cells(estimate, view.unit(tested.name)),
        }
        for task in view.training_tasks
        for arm in view.arms(task)
        for tested in view.study.tasks
        if (estimate := change_on(arm, tested.name)) is not None
    ]
    return table(rows, columns_of(view, "change"))


def change_cells(change: Estimate, unit: Unit) -> TableRow:
    return {
        **interval_cells("change", change),
        "items": change.n,
        "seeds": change.seeds,
        "difference_unit": _score_unit(unit),
    }


def given_table(scores: Sequence[ModelScore]) -> pd.DataFrame:
    """Return scores of the base and of given models, with their changes against the base."""
    has_clean = any(score.record.without_contamination for score in scores)
    rows: list[TableRow] = [
        {
            "task": score.record.task,
            "metric": score.record.metric,
            "chance": score.chance,
            "model": score.model + (" (forced)" if score.other_base_forced else ""),
            "score": score.record.score,
            "standard_error": score.record.standard_error,
            "items": score.record.n,
            **({"without_contaminated_rows": clean and clean.score} if has_clean else {}),
            **interval_cells("change", score.change),
            "score_unit": score.score_unit,
        }
        for score in scores
        for clean in [score.record.without_contamination]
    ]
    digits = 2 if all(score.score_unit == "accuracy" for score in scores) else 4
    names = ("score", "standard_error", "without_contaminated_rows", "change")
    of_score = STUDY_COLUMNS["score"]._replace(digits=digits)
    chance = of_score._replace(title="chance score")
    return table(rows, STUDY_COLUMNS | dict.fromkeys(names, of_score) | {"chance": chance})


def role_of_tested(study: StudyRecords, trained: str, tested: str) -> str:
    """Return the role of a tested task for an arm that was trained on another."""
    if trained == tested:
        return "in domain"
    return "retention" if "retention" in study.task(tested).roles else "cross domain"


def _comparisons_table(view: StudyView) -> pd.DataFrame:
    """Compare expected gains and net gains: LoRA with full fine-tuning, and ranks with others."""
    rows: list[TableRow] = [
        {
            "task": advice.task,
            "first": pair.first_label,
            "second": pair.second_label,
            "compared": name,
            **interval_cells("difference", change),
            "p_within_margin": p,
            "difference_unit": _score_unit(unit),
        }
        for advice in view.recommendation.advice
        for pair in advice.comparisons
        for name, change, p, unit in (
            ("gain", pair.gain, pair.p_gain_within_margin, view.unit(advice.task)),
            ("net gain", pair.net, pair.p_within_margin, view.net_unit(advice.task)),
        )
    ]
    return table(rows, columns_of(view, "difference"))


# --- data and trials ------------------------------------------------------------------------------


def failed_trials_table(view: StudyView) -> pd.DataFrame:
    rows: list[TableRow] = [
        {
            "label": t.spec.label,
            "status": t.status,
            "failure": t.failure or "no reason recorded",
            "last_step": t.train.losses[-1].step if t.train and t.train.losses else None,
        }
        for t in view.study.trials
        if t.status in FAILED
    ]
    return table(rows, STUDY_COLUMNS)


def rounds_table(view: StudyView) -> pd.DataFrame:
    """Return the trials that a search trained in each round, and its expectation."""
    left_out = {t.spec.trial_id for t in view.study.trials if t.status == "skipped"}
    rows: list[TableRow] = [
        {
            "round": of.number,
            "task": of.task or None,
            "minutes": of.seconds / 60,
            "leader": of.leader or None,
            "regret": of.regret,
            "after": of.after,
            "regret_unit": _score_unit(view.net_unit(of.task)) if of.task else None,
            "trained": ", ".join(labels),
        }
        for of in view.study.rounds
        if (
            labels := [t for i, t in zip(of.trial_ids, of.labels, strict=True) if i not in left_out]
        )
    ]
    return table(rows, columns_of(view, "regret", "after"))


def tasks_table(view: StudyView) -> pd.DataFrame:
    """Return the source of each task, its rows per split, and the rows dropped or contaminated."""
    rows: list[TableRow] = [
        {
            "task": task.name,
            "role": ", ".join(role.replace("_", " ") for role in task.roles),
            "metric": task.metric,
            "chance": task.chance,
            **{f"{split}_rows": task.rows.get(split) for split in _SPLITS},
            "dropped": task.dropped,
            "contamination_exact": task.contamination.get("exact"),
            "contamination_ngram13": task.contamination.get("ngram13"),
            "source": task.source,
            "sha256": task.sha256[:16],
        }
        for task in view.study.tasks
    ]
    return table(rows, STUDY_COLUMNS)


_SPLITS = ("train", "validation", "test")


def contamination_table(view: StudyView) -> pd.DataFrame:
    """Return test scores of tasks with contaminated rows, with and without these rows.

    Scores are as recorded: a fraction, or nats per token.
    """
    labels: dict[object, str] = {t.spec.trial_id: t.spec.label for t in view.study.trials}
    return table(
        [
            {
                "task": record.task,
                "model": labels.get(model, str(model)),
                "score": record.score,
                "items": record.n,
                "without_contaminated_rows": clean.score,
                "standard_error": clean.standard_error,
                "items_without": clean.n,
                "contaminated_rows": clean.contaminated,
            }
            for (model, _, _), record in view.study.evals.items()
            if (clean := record.without_contamination) is not None
        ]
    )


TRAINING_FIELDS = (
    *("rows", "rows_dropped", "rows_truncated"),
    *("steps", "num_tokens", "num_label_tokens"),
)


def training_table(view: StudyView) -> pd.DataFrame:
    """Return rows and tokens used in training, by task.

    The finished trials of a task usually agree. If they differ, the smallest and the largest value
    have one column each.
    """
    trials = [trial for trial in view.study.trials if trial.spec.prompt is None]
    trained = {
        task: [t.train for t in trials if t.spec.task == task and t.train]
        for task in view.training_tasks
    }
    rows: list[TableRow] = [
        {"training_task": task, "finished_trials": len(records)}
        for task, records in trained.items()
    ]
    is_scaled = view.study.model.dtype == "float16"
    for name in (*TRAINING_FIELDS, *(["loss_scale_halvings"] if is_scaled else [])):
        values = [[int(getattr(record, name)) for record in t] for t in trained.values()]
        columns: dict[str, Callable[[list[int]], int]] = {name: min}
        if any(len(set(of_task)) > 1 for of_task in values):
            columns = {f"{name}_smallest": min, f"{name}_largest": max}
        for row, of_task in zip(rows, values, strict=True):
            row |= {n: pick(of_task) if of_task else None for n, pick in columns.items()}
    return table(rows, STUDY_COLUMNS)
