"""The records of a finished study as small files, and the numbers that claims are judged by.

    python evidence/claims_records.py STUDY_FOLDER evidence/records/NAME COMMIT

keeps scores and records (``kept_records.py``), what the analyses found without the vectors
of spectra, and tables of spectra by matrix and of curves.
``evidence/restore_study.py`` makes a study of them again, for ``rankscope report``.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

import rankscope
from kept_records import ABOUT, keep_records, record_table
from rankscope.advise.statistics.estimates import Comparison, weighted_estimate
from rankscope.advise.statistics.resampling import ScoreArray
from rankscope.analyses import all_analyses
from rankscope.extensions.spectra.record import SpectraRecord
from rankscope.records import BASE, AnalysisRecord, Estimate, Split

Arm = tuple[int | None, float]
"""Rank (None: full fine-tuning) and learning rate."""

NUM_DRAWS = 200
TEXT_METRIC = "logprob_per_token"
MATRIX_NUMBERS = ("frobenius", "relative", "effective_rank", "stable_rank", "intruders")


def paired_estimate(tuned: ScoreArray, reference: ScoreArray) -> Estimate:
    """``tuned`` (S, N) minus ``reference``: (N,) for the base, (T, N) for another trained arm."""
    return weighted_estimate([Comparison(tuned, reference)])


def keep(study_folder: Path, out: Path, commit: str) -> None:
    """Write the records of the study in ``study_folder`` to ``out``, with tables of spectra and
    curves, and the commit that the study ran with."""
    records = rankscope.load(study_folder).records
    keep_records(records, out)
    names = {analysis.record_type(): analysis.name for analysis in all_analyses()}
    analyses = [(names[type(r)], rounded(r)) for t in records.trials for r in t.analyses]
    kept = pd.read_parquet(out / "records.parquet")
    pd.concat([kept, record_table(analyses)]).to_parquet(
        out / "records.parquet", compression="zstd", index=False
    )
    matrices = [
        {"trial": trial.spec.trial_id, "matrix": matrix.name, "top_k": matrix.top_k}
        | {name: np.float32(getattr(matrix, name)) for name in MATRIX_NUMBERS}
        | {"similarity": np.float32(np.mean(matrix.similarity_subspace))}
        | {"chance": np.float32(np.mean(matrix.chance_subspace))}
        for trial in records.trials
        if (spectra := trial.analysis(SpectraRecord)) is not None
        for matrix in spectra.matrices
    ]
    write(matrices, out / "spectra.parquet")
    points = [
        {"trial": p.trial_id, "task": p.task, "step": p.step, "score": p.score, "items": p.n}
        for trial in records.trials
        for p in trial.curve
    ]
    write(points, out / "curves.parquet")
    about = json.loads((out / ABOUT).read_text("utf-8")) | {"commit": commit}
    about["name"] = about["config"]["name"] = out.name  # It may have run in another study's folder
    (out / ABOUT).write_text(json.dumps(about, indent=1) + "\n", "utf-8")


def rounded(record: AnalysisRecord) -> AnalysisRecord:
    """Spectra with five significant digits and without their vectors; other records as they are."""
    if not isinstance(record, SpectraRecord):
        return record

    def short(value: Any) -> Any:
        match value:
            case dict():
                return {name: short(inner) for name, inner in value.items()}
            case list():
                is_vector = len(value) != 2 and not any(isinstance(v, dict) for v in value)
                return [] if is_vector else [short(inner) for inner in value]
            case float():
                return float(f"{value:.5g}")
        return value

    return SpectraRecord.model_validate_json(json.dumps(short(record.model_dump(mode="json"))))


def write(rows: list[dict[str, Any]], path: Path) -> None:
    if rows:
        pd.DataFrame(rows).to_parquet(path, compression="zstd", index=False)


@dataclass(frozen=True)
class Grid:
    """The kept records of one study: arms (rank and rate) x seeds x items."""

    folder: Path
    trained_on: str = ""
    """The task whose trials these are, in a study of several."""

    @cached_property
    def about(self) -> dict[str, Any]:
        about: dict[str, Any] = json.loads((self.folder / "study.json").read_text("utf-8"))
        return about

    @cached_property
    def trials(self) -> pd.DataFrame:
        """Its trials, ordered by seed."""
        frame = pd.DataFrame(self.about["trials"]).sort_values("seed")
        if self.trained_on:
            frame = frame[frame["task"] == self.trained_on]
        return frame

    @cached_property
    def items(self) -> pd.DataFrame:
        """Scores by item; ``logprob`` is of the right answer, nats per token."""
        frame = pd.read_parquet(self.folder / "items.parquet")
        return frame.assign(logprob=frame["gold_logprob"].astype(float) / frame["gold_tokens"])

    @cached_property
    def spectra(self) -> pd.DataFrame:
        return pd.read_parquet(self.folder / "spectra.parquet")

    @cached_property
    def task(self) -> str:
        """The training task."""
        return self.trained_on or self.tasks[0]

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """All training tasks."""
        return tuple(str(task["name"]) for task in self.about["tasks"] if task["trained_on"])

    @cached_property
    def retention(self) -> tuple[str, ...]:
        tasks = self.about["tasks"]
        return tuple(str(task["name"]) for task in tasks if "retention" in task["roles"])

    def metric(self, name: str) -> str:
        return str(next(task["metric"] for task in self.about["tasks"] if task["name"] == name))

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({int(rank) for rank in self.trials["rank"].dropna()}))

    @cached_property
    def series(self) -> tuple[int | None, ...]:
        """The ranks, and None if the study has full fine-tuning."""
        return (*self.ranks, *([None] if self.rates_tried(None) else []))

    def rates_tried(self, rank: int | None) -> tuple[float, ...]:
        """Learning rates of a rank, ascending."""
        return tuple(sorted({float(lr) for lr in self.of_rank(rank)["lr"]}))

    def rates(self, rank: int | None) -> tuple[float, ...]:
        """The rates at which every seed finished, ascending; at the others some diverged."""
        done = self.of_rank(rank).groupby("lr")["status"].agg(lambda s: (s == "done").all())
        return tuple(sorted(float(lr) for lr in done[done].index))

    @cached_property
    def diverged(self) -> tuple[tuple[Arm, int], ...]:
        """Arms with seeds that did not finish, and how many."""
        arms = [(r, lr) for r in self.series for lr in self.rates_tried(r)]
        failed = set(self.trials[self.trials["status"] != "done"]["trial"])
        counted = [(arm, len(failed.intersection(self.trial_ids(arm)))) for arm in arms]
        return tuple((arm, count) for arm, count in counted if count)

    def of_rank(self, rank: int | None) -> pd.DataFrame:
        ranks = self.trials["rank"]
        return self.trials[ranks.isna() if rank is None else ranks == rank]

    def trial_ids(self, arm: Arm) -> list[str]:
        of_rank = self.of_rank(arm[0])
        return [str(trial) for trial in of_rank[np.isclose(of_rank["lr"], arm[1])]["trial"]]

    @cached_property
    def _tables(self) -> dict[tuple[str, str, str], pd.DataFrame]:
        """By task, split and measure: one row per model, one column per item."""
        return {
            (str(task), str(split), measure): part.pivot(
                index="model", columns="item", values=measure
            ).astype(float)
            for (task, split), part in self.items.groupby(["task", "split"])
            for measure in ("score", "logprob", "among")
            if measure in part
        }

    def measure(self, task: str) -> str:
        """``among`` for answers out of several offered, if the records have it."""
        offered = self._tables.get((task, "test", "among"))
        return "logprob" if offered is None or offered.isna().all(axis=None) else "among"

    def scores(self, arm: Arm, task: str, split: Split = "test", measure: str = "") -> ScoreArray:
        """(S, N) scores of an arm, by default as ``measure`` says."""
        table = self._tables[task, split, measure or self.measure(task)]
        return np.asarray(table.loc[self.trial_ids(arm)].to_numpy())

    def base(self, task: str, split: Split = "test", measure: str = "") -> ScoreArray:
        """(N,) scores of the untuned model."""
        table = self._tables[task, split, measure or self.measure(task)]
        return np.asarray(table.loc[BASE].to_numpy())

    def tuned(self, rank: int | None) -> Arm:
        """The rank with its best rate by the training task's validation items."""
        arms = [(rank, lr) for lr in self.rates(rank)]
        return max(arms, key=lambda arm: self.scores(arm, self.task, "validation").mean())

    def best_lora(self, ranks: Sequence[int] = ()) -> Arm:
        """The best arm over ``ranks``, or all, and their rates, by validation items."""
        arms = [self.tuned(rank) for rank in ranks or self.ranks]
        return max(arms, key=lambda arm: self.scores(arm, self.task, "validation").mean())

    def gain(self, arm: Arm, other: Arm | None = None) -> Estimate:
        """Training task: ``arm`` minus the base or minus ``other``, nats per token."""
        against = self.base(self.task) if other is None else self.scores(other, self.task)
        return paired_estimate(self.scores(arm, self.task), against)

    def validation_gain(self, arm: Arm) -> float:
        base = self.base(self.task, "validation")
        return float((self.scores(arm, self.task, "validation") - base).mean())

    def retained(self, arm: Arm, other: Arm | None = None) -> Estimate:
        """Change of held-out text, nats per token: minus the base or ``other``; negative is
        forgotten."""
        against = self.base(self.text) if other is None else self.scores(other, self.text)
        return paired_estimate(self.scores(arm, self.text), against)

    @cached_property
    def text(self) -> str:
        """The task of held-out text."""
        (task,) = (name for name in self.retention if self.metric(name) == TEXT_METRIC)
        return task

    def by_seed(self, arm: Arm, number: str, how: str = "sum") -> ScoreArray:
        """(S,) a number of the spectra, over all matrices of each trial of an arm."""
        wanted = self.trial_ids(arm)
        by_trial = self.spectra.groupby("trial")[number].agg(how)
        return np.asarray(by_trial.loc[wanted].to_numpy(), dtype=np.float64)

    def norms(self, arm: Arm) -> ScoreArray:
        """(S,) |dW|_F over all matrices together."""
        squares = (self.spectra["frobenius"].astype(float) ** 2).groupby(self.spectra["trial"])
        sums = squares.sum().loc[self.trial_ids(arm)]
        return np.asarray(np.sqrt(sums), dtype=np.float64)

    def crossed(self, statistic: Callable[[Mapping[Arm, float]], float]) -> Estimate:
        """A function of the arms' mean scores on the training task, with an interval.

        All validation and test items count: nothing is chosen by it. As in
        ``rankscope.advise.statistics``, items and seeds have a share each, and half-widths add in
        squares: items by bootstrap, seeds by the statistic of each seed, with Student's t.
        """
        arms = [(rank, lr) for rank in self.series for lr in self.rates(rank)]
        splits: tuple[Split, ...] = ("validation", "test")
        tables = np.stack(
            [np.hstack([self.scores(arm, self.task, split) for split in splits]) for arm in arms]
        )  # (arms, S, N)

        def of(means: ScoreArray) -> float:
            return statistic(dict(zip(arms, means.tolist(), strict=True)))

        _, num_seeds, num_items = tables.shape
        by_item = tables.mean(axis=1)
        draws = np.random.default_rng(0).integers(num_items, size=(NUM_DRAWS, num_items))
        item_error = float(np.std([of(by_item[:, draw].mean(axis=1)) for draw in draws]))
        seeds = [of(tables[:, seed].mean(axis=1)) for seed in range(num_seeds)]
        seed_error = float(np.std(seeds, ddof=1)) / math.sqrt(num_seeds)
        value = of(by_item.mean(axis=1))
        half = math.hypot(
            stats.norm.ppf(0.975) * item_error, stats.t.ppf(0.975, num_seeds - 1) * seed_error
        )
        return Estimate(
            value=value,
            low=value - half,
            high=value + half,
            n=num_items,
            seeds=num_seeds,
            item_error=item_error,
            seed_error=seed_error,
        )


def best_rate(scores: Mapping[float, float]) -> float:
    """The rate at the top of the parabola through the best rate and its neighbors, in log rate.

    The best rate itself if it is at an end of the list.
    """
    rates = sorted(scores)
    top = max(range(len(rates)), key=lambda i: scores[rates[i]])
    if top in (0, len(rates) - 1):
        return rates[top]
    around = rates[top - 1 : top + 2]
    (x0, x1, x2), (y0, y1, y2) = map(math.log, around), (scores[rate] for rate in around)
    rise, fall = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    # Newton's form of the parabola; where its slope is zero.
    return math.exp((x0 + x1) / 2 - rise * (x2 - x0) / (2 * (fall - rise)))


if __name__ == "__main__":
    keep(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
