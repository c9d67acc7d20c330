"""Curves over rank from little training: a subset of the rows, or one adapter truncated."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rankscope.advise.statistics.matching import align_scores, paired_scores
from rankscope.config.loader import study_values
from rankscope.config.study import StudyConfig
from rankscope.errors import UserError
from rankscope.evaluate.evaluator import evaluate_task
from rankscope.models.adapters.folder import load_adapter
from rankscope.models.base import Base
from rankscope.models.lora import Adapter
from rankscope.models.low_rank_update import LowRankUpdate, to_float64
from rankscope.models.methods.lora import LoraMethod
from rankscope.models.methods.rslora import RsLoraMethod
from rankscope.models.scaling import frozen_parameter
from rankscope.predict.predictors import ScreenCurve
from rankscope.progress import ProgressReporter
from rankscope.records import BASE, ItemScores, Split, StudyRecords, TrialRecords
from rankscope.run.prepared import PreparedStudy
from rankscope.run.study import Study
from rankscope.store import Ledger, adapter_path

SHARE = 0.1
PLAIN = frozenset({LoraMethod.name, RsLoraMethod.name})


def run_subset(inputs: PreparedStudy, out: Path, reporter: ProgressReporter | None = None) -> None:
    """Run the study's grid on a tenth of its rows into ``out``, or continue it there."""
    rows = {task: len(encoded.rows) for task, encoded in inputs.rows.items()}
    try:
        Study(subset_study(inputs.config, rows)).run(out, reporter)
    except UserError as error:
        raise UserError(f"predict --screen, on a tenth of the rows: {error}") from error


def subset_study(config: StudyConfig, rows: Mapping[str, int]) -> StudyConfig:
    """The study with a tenth of each task's ``rows`` and of its steps, so the same epochs.

    Arms without a rank, other tasks and all analyses are left out.
    """
    values = study_values(config)
    values["name"] = f"{config.name}-subset"
    values["arms"] = [arm for arm in values["arms"] if arm.get("rank")]
    for task in values["tasks"]:
        task["max_train_rows"] = max(1, round(SHARE * rows[task["name"]]))
    for length in {"max_steps", "tokens"} & set(values["train"]):
        # A single step would be the first of the warm-up, at rate 0.
        values["train"][length] = max(2, round(SHARE * values["train"][length]))
    values["train"].pop("checkpoint_every", None)
    values["evaluate"] |= {"cross_domain": [], "retention": []}
    values["evaluate"] |= {"scales": [], "layer_scales": [], "intruder_scales": []}
    values["analyze"] = {"spectra": {"enabled": False}}
    return StudyConfig.model_validate(values)


def measured_curves(
    inputs: PreparedStudy, base: Base, folder: Path, task: str
) -> dict[str, ScreenCurve]:
    """Validation scores by rank: as trained, of the highest rank truncated, and of nested adapters.

    Names begin with ``subset`` if the study in ``folder`` was trained on fewer rows than ``inputs``
    has.
    """
    with Ledger.open(folder, write=False) as ledger:
        study = ledger.load()
        chosen = chosen_by_rank(study, task)
        curves = {
            name: validation_curve(study, task, methods)
            for name, methods in (("trained", PLAIN), ("nested", frozenset({"nested"})))
        }
        if chosen:
            ranks = sorted({t.rank for t in inputs.trials if t.rank and t.rank <= max(chosen)})
            curves["truncated"] = truncated_curve(inputs, base, ledger, chosen[max(chosen)], ranks)
    trained = [t.train.rows for trials in chosen.values() for t in trials if t.train is not None]
    if trained and max(trained) < len(inputs.rows[task].rows):
        named = {"trained": "subset", "truncated": "subset_truncated"}
        curves = {named[name]: curve for name, curve in curves.items() if name in named}
    return {name: curve for name, curve in curves.items() if len(curve) > 1}


def validation_curve(study: StudyRecords, task: str, methods: frozenset[str]) -> ScreenCurve:
    compared = {
        rank: paired_scores(study, trials, task, "validation")
        for rank, trials in chosen_by_rank(study, task, methods).items()
    }
    return {rank: scores for rank, scores in compared.items() if scores is not None}


def truncated_curve(
    inputs: PreparedStudy,
    base: Base,
    ledger: Ledger,
    trials: Sequence[TrialRecords],
    ranks: Sequence[int],
) -> ScreenCurve:
    """Validation scores of trained adapters, the seeds of one arm, truncated to each rank."""
    task = inputs.tasks[trials[0].spec.task]
    scores: dict[int, list[ItemScores]] = {rank: [] for rank in ranks}
    reference: list[ItemScores] = []
    for trial in trials:
        folder = ledger.checked_path(adapter_path(trial.spec.trial_id))
        adapter = load_adapter(folder, trial.spec.trial_id, base.record).to(base.device)
        names: dict[str | None, str] = {} if reference else {None: BASE}
        try:
            for rank in ranks:
                truncated = truncated_adapter(adapter, rank, str(rank))
                base.multi_lora.attach(truncated)
                names[truncated.name] = truncated.name
            evaluations = evaluate_task(
                base, inputs.encoder, task, "validation", names, inputs.config.evaluate
            )
        finally:
            base.multi_lora.clear()
        for name, (_, items) in evaluations.items():
            found = ItemScores(
                tuple(i.item_id for i in items),
                np.array([i.score for i in items]),
                np.full(len(items), np.nan),
                tuple(i.subject for i in items),
            )
            (reference if name is None else scores[int(name)]).append(found)
    compared = {rank: align_scores(s, reference, trained=False) for rank, s in scores.items()}
    return {rank: scores for rank, scores in compared.items() if scores is not None}


def truncated_adapter(adapter: Adapter, rank: int, adapter_name: str) -> Adapter:
    """A LoRA adapter truncated to ``rank`` with the least error in B A, ready to score."""
    parts = {
        name: LowRankUpdate(to_float64(a), to_float64(adapter.b[name])).truncated(rank)
        for name, a in adapter.a.items()
    }
    a = {name: frozen_parameter(part.A, part.A.device) for name, part in parts.items()}
    b = {name: frozen_parameter(part.B, part.B.device) for name, part in parts.items()}
    return replace(adapter, name=adapter_name, rank=rank, a=a, b=b)


def chosen_by_rank(
    study: StudyRecords, task: str, methods: frozenset[str] = PLAIN
) -> dict[int, list[TrialRecords]]:
    """By rank of plain LoRA, the trials at the learning rate with the best validation score.

    Arms that differ from the study's first one in more than rank and learning rate are left out, so
    that the curve over ranks shows only the rank.
    """
    chosen: dict[int, tuple[float, list[TrialRecords]]] = {}
    for (rank, _), trials in trials_by_point(study, task, methods).items():
        score = mean_score(study, trials, task, "validation")
        if score is not None and (rank not in chosen or score > chosen[rank][0]):
            chosen[rank] = (score, trials)
    return {rank: chosen[rank][1] for rank in sorted(chosen)}


def trials_by_point(
    study: StudyRecords, task: str, methods: frozenset[str] = PLAIN
) -> dict[tuple[int, float], list[TrialRecords]]:
    """Finished trials by rank and learning rate, of arms that differ in nothing else."""
    trials = [
        t
        for t in study.trials
        if t.spec.task == task
        and t.status == "done"
        and t.spec.method in methods
        and not t.spec.mitigations
    ]
    points: dict[tuple[int, float], list[TrialRecords]] = {}
    for trial in trials:
        if trial.spec.rank and _curve_settings(trial) == _curve_settings(trials[0]):
            points.setdefault((trial.spec.rank, trial.spec.lr), []).append(trial)
    return points


def _curve_settings(trial: TrialRecords) -> tuple[object, ...]:
    spec = trial.spec
    ratio = None if not (spec.alpha and spec.rank) else spec.alpha / spec.rank
    return spec.method, ratio, spec.targets, spec.dropout, *spec.overrides.items()


def mean_score(
    study: StudyRecords, trials: Sequence[TrialRecords], task: str, split: Split
) -> float | None:
    records = [study.evals.get((t.spec.trial_id, task, split)) for t in trials]
    scores = [record.score for record in records if record is not None]
    return float(np.mean(scores)) if scores and len(scores) == len(trials) else None
