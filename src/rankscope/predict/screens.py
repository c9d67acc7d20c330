"""Curves over rank that finished studies hold, and the small study that is run for them."""

from collections.abc import Collection, Mapping
from pathlib import Path
from statistics import fmean

from rankscope.advise.ranks import CurveModels, curve_models
from rankscope.advise.statistics.matching import align_scores
from rankscope.config.loader import study_values
from rankscope.config.study import StudyConfig
from rankscope.errors import UserError
from rankscope.predict.predictors import ScreenCurve
from rankscope.progress import ProgressReporter
from rankscope.records import BASE, StudyRecords
from rankscope.run.prepared import PreparedStudy
from rankscope.run.study import Study

SHARE = 0.1


def run_subset(
    inputs: PreparedStudy, out: Path, reporter: ProgressReporter | None = None
) -> StudyRecords:
    """Run the study's grid on a tenth of its rows into ``out``, or continue it there."""
    rows = dict[str, int]()  # by task, the most that an arm trains on
    for trial in inputs.trials:
        of_trial = len(inputs.data.rows_of(trial).rows)
        rows[trial.task] = max(of_trial, rows.get(trial.task, 0))
    try:
        return Study(subset_study(inputs.config, rows)).run(out, reporter)
    except UserError as error:
        where = f"predict --screen, on a tenth of the rows: {error.where}"
        raise UserError(where, error.found, error.expected, error.do, error.faults) from error


def subset_study(config: StudyConfig, rows: Mapping[str, int]) -> StudyConfig:
    """The study with a tenth of each task's ``rows`` and of its steps, so the same epochs.

    Arms without a rank, fewer rows, other tasks and all analyses are left out; the adapters of the
    highest rank are also scored truncated.
    """
    values = study_values(config)
    values["name"] = f"{config.name}-subset"
    values["arms"] = [arm for arm in values["arms"] if arm.get("rank")]
    for arm in values["arms"]:
        arm.pop("rows", None)
    for task in values["tasks"]:
        task["max_train_rows"] = max(1, round(SHARE * rows[task["name"]]))
    for length in {"max_steps", "tokens"} & set(values["train"]):
        # A single step would be the first of the warm-up, at rate 0.
        values["train"][length] = max(2, round(SHARE * values["train"][length]))
    values["train"].pop("checkpoint_every", None)
    for key in ("strategy", "rungs", "until", "budget"):  # all ranks are compared: none stops early
        values.pop(key, None)
    values["objective"].pop("max_forgetting", None)  # no other task measures it
    used = {*config.trained_tasks(), *config.replayed_tasks()}
    described = [t for name in ("cross_domain", "retention")
                 for t in values["evaluate"].get(name) or () if t["name"] in used]  # fmt: skip
    kept = {"max_items", "batch_tokens", "max_new_tokens", "too_long"} & set(values["evaluate"])
    values["evaluate"] = {key: values["evaluate"][key] for key in kept}
    ranks = {rank for arm in config.arms for rank in arm.rank}
    values["evaluate"]["cross_domain"] = described
    values["evaluate"]["truncated_ranks"] = sorted(ranks - {max(ranks)})
    values["analyze"] = {name: {"enabled": False} for name in values["analyze"]}
    return StudyConfig.model_validate(values)


def measured_curves(study: StudyRecords, task: str) -> dict[str, ScreenCurve]:
    """Validation scores by rank: ``trained`` at each, ``truncated``, and slices of ``nested``."""
    return {
        kind: curve
        for kind, models in curve_models(study, task).items()
        if len(curve := _validation_curve(study, task, models)) > 1
    }


def _validation_curve(study: StudyRecords, task: str, models: CurveModels) -> ScreenCurve:
    base = study.items.get((BASE, task, "validation"))
    curve = {}
    for rank, by_seed in models.items():
        found = [study.items.get((model, task, "validation")) for model in by_seed.values()]
        known = [scores for scores in found if scores is not None]
        aligned = align_scores(known, [base] if base else [], trained=False)
        if aligned is not None and len(known) == len(found):
            curve[rank] = aligned
    return curve


def rank_scores(study: StudyRecords, task: str) -> dict[int, float]:
    """Rank -> test score as trained, at the learning rate that validation chose."""
    models = curve_models(study, task).get("trained", {})
    scores = {rank: _mean_score(study, task, ids.values()) for rank, ids in models.items()}
    return {rank: score for rank, score in scores.items() if score is not None}


def _mean_score(study: StudyRecords, task: str, models: Collection[str]) -> float | None:
    """None if a model has no score."""
    found = [study.evals.get((model, task, "test")) for model in models]
    scores = [record.score for record in found if record is not None]
    return fmean(scores) if scores and len(scores) == len(found) else None
