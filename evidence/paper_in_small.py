"""Judge the paper in small by the kept records, and write the tables of its page.

    python evidence/paper_in_small.py

studies/paper-in-small/README.md has the verdicts and tables, the study files the rules. Every
number comes from records/; a test compares.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd
from scipy import stats

from claims_board import RECORDS, with_numbers
from claims_judges import (
    OPEN,
    UNTESTABLE,
    Verdict,
    ends,
    interval,
    judged,
    label,
    name_of,
    residuals,
    settled_by,
    smallest as detectable_nats,
)
from claims_records import Arm, Grid, paired_estimate
from posterior_claims import LIKELY, UNLIKELY, results_of
from rankscope.advise.statistics.estimates import Comparison, weighted_estimate
from rankscope.advise.statistics.resampling import ScoreArray
from rankscope.records import Estimate
from rankscope.report.charts.concentration import effective_number, gini

PAGE = RECORDS.parent / "studies" / "paper-in-small" / "README.md"
MAIN = {"paper-in-small-gemma": "Gemma 3 270M", "paper-in-small-qwen": "Qwen2.5-Coder-0.5B"}
MARGIN = {"logprob": 0.02, "among": 0.05}
"""Nats within which two scores are equal, by measure."""
RULE = (
    "Point 11 is judged on the net gain, every other on its tasks. "
    "The margin of net gains is 2 points, or 0.02 nats per token."
)
RECALL, RETENTION = ("medmcqa", "mmlu"), ("mmlu", "arc_easy")


class Study:
    """The kept records of a study of several training tasks."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.whole = Grid(folder)
        grids = {task: Grid(folder, trained_on=task) for task in self.whole.tasks}
        self.grids = {task: grid for task, grid in grids.items() if self._is_whole(grid)}
        first = next(iter(self.grids.values()))
        names = [str(task["name"]) for task in self.whole.about["tasks"]]
        self.scored = tuple(n for n in names if (n, "test", "logprob") in first._tables)
        self.letters = tuple(n for n in self.scored if first.measure(n) == "among")
        self.series = (*first.ranks, None)
        self.has_spectra = (folder / "spectra.parquet").exists()

    @staticmethod
    def _is_whole(grid: Grid) -> bool:
        return bool((grid.trials["status"] == "done").any())

    @property
    def common_rate(self) -> float:
        """The lowest learning rate that all ranks have."""
        first = next(iter(self.grids.values()))
        return min(set.intersection(*(set(first.rates_tried(rank)) for rank in first.ranks)))

    def gain(self, task: str, rank: int | None, other: int | None) -> Estimate:
        """On the training task: ``rank`` less ``other``, both at their best rates."""
        grid = self.grids[task]
        return grid.gain(grid.tuned(rank), grid.tuned(other))

    def margin(self, task: str) -> float:
        return MARGIN[self.grids[task].measure(task)]

    def elsewhere(
        self,
        test: str,
        rank: int | None,
        other: int | str | None,
        measure: str = "",
    ) -> tuple[ScoreArray, ScoreArray]:
        """(N,) scores on ``test``, means over the models trained on other tasks, each at its best
        rate: of ``rank``, and of ``other`` or the base."""
        grids = [grid for task, grid in self.grids.items() if task != test]

        def mean(of: int | None) -> ScoreArray:
            scores = [g.scores(g.tuned(of), test, measure=measure)[0] for g in grids]
            return np.asarray(np.mean(scores, axis=0))

        base = grids[0].base(test, measure=measure)
        return mean(rank), base if other == "base" else mean(other)  # type: ignore[arg-type]

    def over_tests(
        self, tests: Sequence[str], rank: int | None, other: int | str | None, measure: str = ""
    ) -> Estimate:
        """The mean over ``tests`` of what ``elsewhere`` gives, ``rank`` less ``other``."""
        pairs = [self.elsewhere(test, rank, other, measure) for test in tests]
        return weighted_estimate([Comparison(a[None, :], b) for a, b in pairs])


def learned(grid: Grid, *ranks: int | None) -> bool:
    """Whether one of these ranks, at its best rate, gained clear of zero."""
    return any(ends(grid.gain(grid.tuned(rank)))[0] > 0 for rank in ranks)


def reasoning(study: Study) -> Verdict:
    """1: r = 32 or 64 match full fine-tuning on gsm8k and mathqa; two arms that learned nothing
    are not compared."""
    told, matches, behind, found = [], [], [], []
    for task in ("gsm8k", "mathqa"):
        grid, margin = study.grids[task], study.margin(task)
        ranks = [rank for rank in (32, 64) if rank in grid.ranks]
        arm = grid.best_lora(ranks)
        full = grid.tuned(None)
        difference = grid.gain(arm, full)
        told.append(f"{task} {label(arm)} less {label(full)} {interval(difference)} nats")
        if not learned(grid, arm[0], None):
            told[-1] += " (not judged: neither gain is clear of zero)"
            continue
        found.append(difference)
        matches.append(difference.is_above(-margin))
        behind.append(ends(difference)[1] < -margin)
    return Verdict(
        judged(all(matches), any(behind)) if found else UNTESTABLE,
        "; ".join(told),
        "; ".join(map(detectable_nats, found)),
        settled_by(found[-1], margin) if found else "no arm gained",
    )


def recall(study: Study) -> Verdict:
    """2: recall hardly depends on the rank, gsm8k does."""
    tasks = [task for task in RECALL if task in study.grids]
    low, high = next(iter(study.grids.values())).ranks[0], 128
    pairs = []
    for task in tasks:
        grid = study.grids[task]
        of_high, of_low = (grid.scores(grid.tuned(rank), task) for rank in (high, low))
        pairs.append(Comparison(of_high, of_low))
    flat, rise, margin = weighted_estimate(pairs), study.gain("gsm8k", 32, low), MARGIN["among"]
    is_flat = flat.is_above(-margin) and ends(flat)[1] < margin
    outside = ends(flat)[1] < -margin or ends(flat)[0] > margin
    no_rise = ends(rise)[1] < MARGIN["logprob"]
    verdict = judged(is_flat and ends(rise)[0] > 0 and not no_rise, outside or no_rise)
    has_learned = any(learned(study.grids[task], high, low) for task in tasks)
    return Verdict(
        verdict if has_learned or no_rise else UNTESTABLE,
        f"{' and '.join(tasks)}: r={high} less r={low} {interval(flat)}; gsm8k: r=32 less r={low} "
        f"{interval(rise)} nats",
        f"{detectable_nats(flat)}; {detectable_nats(rise)}",
        f"{settled_by(flat, margin)} of recall"
        if has_learned
        else "no gain on recall is clear of zero",
    )


def keeps_more(study: Study, tests: Sequence[str]) -> Verdict:
    """3 and 4: r = 32 less full fine-tuning on tasks that were not trained, cell by cell.

    A cell is a training task and a test; it is clear at a level divided by the number of cells. So
    one cell of many nats does not decide for all, as it did in a mean over them.
    """
    cells = [
        paired_estimate(grid.scores(grid.tuned(32), test), grid.scores(grid.tuned(None), test))
        for test in tests
        for task, grid in study.grids.items()
        if task != test
    ]
    limit = float(stats.norm.isf(0.025 / len(cells)))
    scaled = [cell.value / (cell.item_error or np.inf) for cell in cells]
    more, less = sum(z > limit for z in scaled), sum(z < -limit for z in scaled)
    means = {rank: study.over_tests(tests, rank, None) for rank in (study.series[0], 32)}
    listed = ", ".join(f"{name_of(r)} less full {interval(e)}" for r, e in means.items())
    kept = judged(bool(more and not less), bool(less and not more))
    return Verdict(
        kept,
        f"r=32 keeps clearly more than full in {more} of {len(cells)} cells, less in {less}; "
        f"means {listed} nats",
        "",
        "cells disagree" if more else "more items: no cell is clear",
    )


def norm_law(study: Study) -> Verdict:
    """5: the norm grows like log r."""
    rate, told, better = study.common_rate, [], []
    for task, grid in study.grids.items():
        norms = np.array([grid.norms((rank, rate))[0] for rank in grid.ranks])
        log_fit, power_fit = residuals(grid.ranks, norms)
        better.append(log_fit < power_fit)
        told.append(f"{task} {log_fit:.1%} and {power_fit:.1%}")
    return Verdict(
        judged(all(better), not any(better)),
        f"residuals of a + b log r and of a r^b at {rate:g}: {', '.join(told)}",
    )


def similarity(study: Study) -> Verdict:
    """6: r = 32 keeps more of the leading subspaces than full fine-tuning."""
    told, better = [], []
    for task, grid in study.grids.items():
        arms = grid.tuned(32), grid.tuned(None)
        lora, full = (grid.by_seed(arm, "similarity", "mean")[0] for arm in arms)
        better.append(lora > full)
        told.append(f"{task} {lora:.4f} and {full:.4f}")
    return Verdict(
        judged(all(better), not any(better)), f"kept by r=32 and by full: {', '.join(told)}"
    )


def intruders(study: Study) -> Verdict:
    """7: intruder dimensions fall with the rank."""
    rate, told, falls = study.common_rate, [], []
    for task, grid in study.grids.items():
        ends_of = grid.ranks[0], grid.ranks[-1]
        low, high = (grid.by_seed((rank, rate), "intruders")[0] for rank in ends_of)
        falls.append(low > high)
        told.append(f"{task} {low:.0f} and {high:.0f}")
    return Verdict(
        judged(all(falls), not any(falls)),
        f"of r={ends_of[0]} and r={ends_of[1]} at {rate:g}: {', '.join(told)}",
    )


def few_places(study: Study) -> Verdict:
    """10: the update of r = 32 is in fewer of the matrices that adapters change than full's."""
    told, fewer = [], []
    for task, grid in study.grids.items():
        spread = []
        for arm in (grid.tuned(32), grid.tuned(None)):
            (trial,) = grid.trial_ids(arm)
            of_arm = grid.spectra[grid.spectra["trial"] == trial]
            energies = of_arm["frobenius"].astype(float) ** 2
            layers = energies.groupby(of_arm["matrix"].str.extract(r"\.(\d+)\.", expand=False))
            even = [effective_number(e.tolist()) for e in (energies, layers.sum())]
            spread.append((*even, gini(energies.tolist())))
        fewer.append(spread[0][0] < 0.9 * spread[1][0])
        matrices, per_layer, uneven = zip(*spread, strict=True)
        told.append(
            "{} {:.0f} and {:.0f} (layers {:.0f} and {:.0f}; Gini {:.2f} and {:.2f})".format(
                task, *matrices, *per_layer, *uneven
            )
        )
    return Verdict(
        judged(all(fewer), not any(fewer)),
        f"effective number of {len(energies)} matrices in {len(layers)} layers, r=32 and full: "
        + ", ".join(told),
        "",
        "tasks disagree",
    )


def best_balance(study: Study) -> Verdict:
    """11: r = 32 or 64 is within the margin of the best net gain, by the posterior, on the tasks
    on which an arm gained clear of zero."""
    found = {}
    for task, results in results_of(RECORDS / study.name, is_balance=True).items():
        if results.net is None or not learned(study.grids[task], *study.series):
            continue
        middle = [results.arms[place].summary.rank in (32, 64) for place in results.allowed]
        best, draws = results.net.best, results.net.draws
        found[task] = float((draws[:, middle].max(axis=1) >= best - results.margin).mean())
    if not found:
        return Verdict(UNTESTABLE, "", would_settle="no gain is clear of zero")
    return Verdict(
        judged(min(found.values()) >= LIKELY, min(found.values()) <= UNLIKELY),
        "probability by task: " + ", ".join(f"{t} {p:.3f}" for t, p in found.items()),
        "",
        "more seeds and items",
    )


def like_full(grid: Grid) -> Verdict:
    """12: item by item r = 128 changes what full fine-tuning changes, as nearly as one seed of it
    does what another does; r = 4 does not."""

    def changes(rank: int | None) -> list[ScoreArray]:
        return [*(grid.scores(grid.tuned(rank), grid.task) - grid.base(grid.task))]

    def mean(pairs: Iterable[tuple[ScoreArray, ScoreArray]]) -> float:
        return float(np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs]))

    full = changes(None)
    ceiling = mean(combinations(full, 2))
    alike = {rank: mean(product(changes(rank), full)) for rank in grid.ranks}
    low, high = alike[grid.ranks[0]], alike[grid.ranks[-1]]
    listed = ", ".join(f"r={rank} {value:.2f}" for rank, value in alike.items())
    return Verdict(
        judged(high >= 0.9 * ceiling > low, high < 0.9 * ceiling or low >= 0.9 * ceiling),
        f"correlation with full: {listed}; between seeds of full {ceiling:.2f}",
    )


POINTS: list[tuple[str, Callable[[Study], Verdict], bool]] = [
    ("r = 32 to 64 match or beat full fine-tuning on reasoning", reasoning, False),
    ("Recall hardly depends on the rank, reasoning does", recall, False),
    (
        "LoRA keeps more on other domains than full fine-tuning",
        lambda study: keeps_more(study, [t for t in study.letters if t != "arc_easy"]),
        False,
    ),
    (
        "LoRA keeps more of held-out MMLU and ARC-easy than full fine-tuning",
        lambda study: keeps_more(study, RETENTION),
        False,
    ),
    ("The norm of the update grows like log r", norm_law, True),
    ("LoRA keeps the leading singular vectors, full fine-tuning does not", similarity, True),
    ("Intruder dimensions fall with the rank", intruders, True),
]
"""What the paper reports, the judge, and whether the judge reads spectra."""
LATER: dict[int, tuple[str, Callable[[Study], Verdict]]] = {
    10: ("LoRA changes few places, full fine-tuning all", few_places),
    11: ("r = 32 to 64 is the best balance of adaptation and stability", best_balance),
}
"""Points whose rules were written after the studies had been read for the others, by number."""


def verdicts_table(
    studies: Sequence[Study], more: Sequence[tuple[int, str, str, Verdict]] = ()
) -> list[str]:
    rows = [
        RULE,
        "",
        "| # | reported by the paper, or asked | model | verdict | measured | detectable |",
    ]
    rows.append("|---|---|---|---|---|---|")
    answers = [
        (number, point, MAIN[study.name], judge(study))
        for number, (point, judge, reads_spectra) in enumerate(POINTS, 1)
        for study in studies
        if study.has_spectra or not reads_spectra
    ]
    answers += more
    for number, (point, judge) in LATER.items():
        answers += [(number, point, MAIN[study.name], judge(study)) for study in studies]
    if (RECORDS / "maths-grid").exists():
        like = like_full(Grid(RECORDS / "maths-grid"))
        contrast = "Very high ranks behave like full fine-tuning, low ones do not"
        answers.append((12, contrast, "SmolLM2-135M", like))
    asked = ""
    for number, point, model, verdict in answers:
        is_open = verdict.verdict in (OPEN, UNTESTABLE)
        settled = f": {verdict.would_settle}" if is_open and verdict.would_settle else ""
        shown, asked = "the same" if point == asked else point, point
        rows.append(
            f"| {number} | {shown} | {model} | **{verdict.verdict}**{settled} | "
            f"{verdict.measured} | {verdict.detectable} |"
        )
    return rows


def base_table(study: Study) -> list[str]:
    rows = ["| task | accuracy | nats | items |", "|---|---|---|---|"]
    grid = next(iter(study.grids.values()))
    for test in study.scored:
        nats = grid.base(test)
        right = grid.base(test, measure="score")
        accuracy = f"{100 * right.mean():.0f} %" if test in study.letters else "-"
        rows.append(f"| {test} | {accuracy} | {nats.mean():.3f} | {len(nats)} |")
    return rows


def scores_table(study: Study) -> list[str]:
    """Gain of every arm on the task that it was trained on."""
    grids = study.grids
    rows = [f"| arm | {' | '.join(grids)} |", "|---" * (len(grids) + 1) + "|"]
    first = next(iter(grids.values()))
    for arm in ((rank, lr) for rank in study.series for lr in first.rates_tried(rank)):
        cells = []
        for task, grid in grids.items():
            if arm[1] not in grid.rates(arm[0]):
                cells.append("diverged")
                continue
            nats = interval(grid.gain(arm))
            cell = f"**{nats}**" if arm == grid.tuned(arm[0]) else nats
            if task in study.letters:
                points = accuracy_gain(grid, arm, task)
                cell += f"; {points}"
            cells.append(cell)
        rows.append(f"| {label(arm)} | {' | '.join(cells)} |")
    return rows


def accuracy_gain(grid: Grid, arm: Arm, task: str) -> str:
    gained = paired_estimate(
        grid.scores(arm, task, measure="score"), grid.base(task, measure="score")
    )
    low, high = ends(gained)
    return f"{100 * gained.value:+.0f} [{100 * low:+.0f}, {100 * high:+.0f}] points"


def matrix_table(study: Study, rank: int | None) -> list[str]:
    """Trained (rows) by tested (columns): change against the base, tuned arms."""
    rows = [f"| {name_of(rank)}, trained on | {' | '.join(study.scored)} |"]
    rows.append("|---" * (len(study.scored) + 1) + "|")
    for task, grid in study.grids.items():
        arm, cells = grid.tuned(rank), []
        for test in study.scored:
            change = interval(paired_estimate(grid.scores(arm, test), grid.base(test)), 2)
            cells.append(f"**{change}**" if test == task else change)
        rows.append(f"| {task}, {arm[1]:g} | {' | '.join(cells)} |")
    return rows


def retention_table(study: Study) -> list[str]:
    """Change of the retention tasks, means over the models trained on other tasks."""
    columns = [f"{test}, {unit}" for test in RETENTION for unit in ("nats", "points")]
    rows = [f"| tuned arm | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for rank in study.series:
        cells = []
        for test in RETENTION:
            cells.append(interval(study.over_tests([test], rank, "base")))
            points = study.over_tests([test], rank, "base", "score")
            low, high = ends(points)
            cells.append(f"{100 * points.value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]")
        rows.append(f"| {name_of(rank)} | {' | '.join(cells)} |")
    return rows


def spectra_table(study: Study) -> list[str]:
    """Means over the training tasks, by arm."""
    rows = [
        "| arm | norm of the update | leading subspaces kept | intruders |",
        "|---|---|---|---|",
    ]
    first = next(iter(study.grids.values()))
    for arm in ((rank, lr) for rank in study.series for lr in first.rates_tried(rank)):
        grids = [grid for grid in study.grids.values() if arm[1] in grid.rates(arm[0])]
        if not grids:
            continue
        norm = np.mean([grid.norms(arm)[0] for grid in grids])
        kept = np.mean([grid.by_seed(arm, "similarity", "mean")[0] for grid in grids])
        count = np.mean([grid.by_seed(arm, "intruders")[0] for grid in grids])
        rows.append(f"| {label(arm)} | {norm:.2f} | {kept:.4f} | {count:.1f} |")
    return rows


def high_ranks(study: Study, more: Study) -> tuple[Verdict, list[str]]:
    """8: ranks 256 and 512 add nothing to r = 128. Also a table of gains."""
    ranks = (*study.grids["gsm8k"].ranks, *more.grids["gsm8k"].ranks)
    rows = [f"| | {' | '.join(map(name_of, ranks))} |", "|---" * (len(ranks) + 1) + "|"]
    told, above, not_above, found = [], [], [], []
    for task, grid in more.grids.items():
        main, margin = study.grids[task], more.margin(task)
        of_128 = main.scores(main.tuned(128), task)
        cells = []
        for rank in ranks:
            owner = main if rank in main.ranks else grid
            arm = owner.tuned(rank)
            cells.append(f"{interval(owner.gain(arm))} at {arm[1]:g}")
            if owner is grid:
                difference = paired_estimate(grid.scores(arm, task), of_128)
                found.append(difference)
                told.append(f"{task}, {label(arm)} {interval(difference)}")
                above.append(ends(difference)[0] > margin)
                not_above.append(ends(difference)[1] < margin)
        rows.append(f"| {task} | {' | '.join(cells)} |")
    verdict = Verdict(
        judged(all(not_above), any(above)),
        f"less r=128: {'; '.join(told)} nats",
        "; ".join(map(detectable_nats, found)),
        f"on medmcqa {settled_by(found[-1], MARGIN['among'])}",
    )
    return verdict, rows


def high_less_full(study: Study, *more: Study) -> Verdict:
    """8 again: ranks 256 and 512 gain nothing over full fine-tuning, on gsm8k and mmlu."""
    told, above, not_above, found = [], [], [], []
    grids = {task: grid for of in more for task, grid in of.grids.items()}
    for task, grid in ((task, grids[task]) for task in ("gsm8k", "mmlu")):
        main, margin = study.grids[task], study.margin(task)
        of_full = main.scores(main.tuned(None), task)
        for arm in map(grid.tuned, grid.ranks):
            difference = paired_estimate(grid.scores(arm, task), of_full)
            told.append(f"{task}, {label(arm)} {interval(difference)}")
            if not (learned(main, None) or learned(grid, *grid.ranks)):
                told[-1] += " (not judged: no gain is clear of zero)"
                continue
            found.append(difference)
            above.append(ends(difference)[0] > margin)
            not_above.append(ends(difference)[1] < margin)
    return Verdict(
        judged(all(not_above), any(above)) if found else UNTESTABLE,
        f"less full: {'; '.join(told)} nats",
        "; ".join(map(detectable_nats, found)),
        "more items",
    )


def alpha_table(grid: Grid) -> list[str]:
    """Rank and alpha in all combinations, at one learning rate."""
    rows = ["| r | alpha | gain | norm of the update | leading subspaces kept | intruders |"]
    rows.append("|---" * 6 + "|")
    table = grid._tables[grid.task, "test", grid.measure(grid.task)]
    spectra = grid.spectra.groupby("trial")
    for trial in grid.trials.sort_values(["rank", "alpha"]).itertuples():
        gain = paired_estimate(table.loc[[trial.trial]].to_numpy(), grid.base(grid.task))
        of_trial = spectra.get_group(trial.trial)
        norm = np.sqrt((of_trial["frobenius"].astype(float) ** 2).sum())
        rows.append(
            f"| {trial.rank:.0f} | {trial.alpha:g} | {interval(gain)} | {norm:.2f} | "
            f"{of_trial['similarity'].mean():.4f} | {of_trial['intruders'].sum():.0f} |"
        )
    return rows


def same_again(costs: ScoreArray, errors: ScoreArray) -> float:
    """Spearman's correlation that two measurements of the same costs would have, about: what was
    measured stands for the true costs. ``errors`` are standard errors of tuned less base costs,
    of which each is taken to have half the variance."""
    noise = np.random.default_rng(0).normal(0, errors / np.sqrt(2), (2, 50, *errors.shape))
    pairs = zip(*(costs + noise), strict=True)
    return fmean(float(stats.spearmanr(a.ravel(), b.ravel()).statistic) for a, b in pairs)


def heads(folder: Path) -> tuple[Verdict, list[str]]:
    """9: removing a head costs on a second task what it costs on the task that was trained. Also a
    table of costs."""
    grid, rows = Grid(folder), pd.read_parquet(folder / "records.parquet")
    names = dict(zip(grid.trials["trial"], grid.trials["arm"], strict=True))
    bodies = [json.loads(body) for body in rows.loc[rows["kind"] == "heads", "body"]]
    lines = ["| model | task | all heads of a layer, mean cost | layer of the highest cost | "]
    lines[0] += "head of the highest cost | correlation of the tasks over heads |"
    lines.append("|---" * 6 + "|")
    correlations, corrected = {}, []
    models = [("base", bodies[0], "base")] + [(names[b["trial_id"]], b, "tuned") for b in bodies]
    for model, body, which in models:
        by_task = {a["task"]: -np.array(a[f"{which}_gold_change"]) for a in body["ablations"]}
        layers = {a["task"]: -np.array(a[f"{which}_layer_gold_change"]) for a in body["ablations"]}
        first, second = by_task.values()
        same = float(stats.spearmanr(first.ravel(), second.ravel()).statistic)
        correlations[model] = same
        if which == "tuned":
            errors = [np.array(a["gold_difference_error"]) for a in body["ablations"]]
            again = map(same_again, (first, second), errors)
            corrected.append(min(1.0, same / math.sqrt(math.prod(again))))
        for task, costs in by_task.items():
            layer, head = np.unravel_index(costs.argmax(), costs.shape)
            lines.append(
                f"| {model} | {task} | {layers[task].mean():+.3f} | {layers[task].argmax()}: "
                f"{layers[task].max():+.3f} | {layer}.{head}: {costs.max():+.3f} | {same:.2f} |"
            )
    tuned = [value for model, value in correlations.items() if model != "base"]
    listed = ", ".join(f"{model} {value:.2f}" for model, value in correlations.items())
    verdict = judged(min(tuned) > 0.5, max(corrected) < 0.5)
    _, second_task = by_task
    told = f"Spearman's correlation with {second_task}: {listed}; errors of costs taken off: "
    told += ", ".join(f"{value:.2f}" for value in corrected)
    return Verdict(verdict, told, "", "models differ, or costs' errors may explain it"), lines


def extras(records: Path, study: Study) -> tuple[list[tuple[int, str, str, Verdict]], list[str]]:
    """Numbered verdicts with their model, and tables, of the studies of one point each."""
    verdicts, lines, gemma, smollm2 = [], [], MAIN[study.name], "SmolLM2-135M"
    if (folder := records / f"{study.name}-high-rank").exists():
        verdict, rows = high_ranks(study, Study(folder))
        verdicts.append((8, "Ranks of 256 and 512 add nothing", gemma, verdict))
        lines += ["", "### High ranks", "", *rows]
        if (mmlu := records / f"{study.name}-high-rank-mmlu").exists():
            less_full = high_less_full(study, Study(folder), Study(mmlu))
            verdicts.append((8, "Ranks of 256 and 512 gain nothing over full", gemma, less_full))
    asked = "A head removed costs alike on the trained task and on another"
    for name, model, trained in (
        (f"{study.name}-heads", gemma, "medmcqa"),
        (f"{study.name}-heads-tuned", gemma, "gsm8k"),
        ("paper-in-small-smollm2-heads", smollm2, "arc_easy"),
    ):
        if (folder := records / name).exists():
            verdict, rows = heads(folder)
            verdict = replace(verdict, measured=f"after {trained}, {verdict.measured}")
            verdicts.append((9, asked, model, verdict))
            lines += ["", f"### Heads, {model}, after training on {trained}", "", *rows]
    if (folder := records / f"{study.name}-alpha").exists():
        lines += ["", "### Alpha apart from the rank, medmcqa", "", *alpha_table(Grid(folder))]
    return verdicts, lines


def cost(study: Study) -> str:
    about, file = study.whole.about, study.name.removeprefix("paper-in-small-")
    trials, machine = about["trials"], about["provenance"]
    done = sum(trial["status"] == "done" for trial in trials)
    return (
        f"[{file}.yaml]({file}.yaml): {done} of {len(trials)} "
        f"trials, {about['seconds'] / 60:.0f} minutes of a busy core ({machine['processor']}), "
        f"commit {about['commit']}."
    )


def numbers(records: Path = RECORDS) -> dict[Path, str]:
    """The generated part of the page."""
    studies = [Study(records / name) for name in MAIN if (records / name).exists()]
    more, tables = extras(records, studies[0])
    lines: list[str] = []
    for study in studies:
        lines += ["", f"## {MAIN[study.name]}", "", cost(study)]
        for title, table in (
            ("The base", base_table(study)),
            ("Gain on the task that was trained", scores_table(study)),
            ("Retention", retention_table(study)),
            *([("Weights", spectra_table(study))] if study.has_spectra else []),
        ):
            lines += ["", f"### {title}", "", *table]
        lines += ["", "### Trained by tested", ""]
        for rank in (32, None):
            lines += [*matrix_table(study, rank), ""]
        lines.pop()
        if study is studies[0]:
            lines += tables
    return {PAGE: "\n".join([*verdicts_table(studies, more), *lines])}


def with_tables(page: str, text: str) -> str:
    """The page with its tables as the records give them."""
    return with_numbers(page, text, Path(__file__).name)


if __name__ == "__main__":
    for page, text in numbers().items():
        page.write_text(with_tables(page.read_text("utf-8"), text), "utf-8")
