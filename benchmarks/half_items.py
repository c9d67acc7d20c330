"""The posterior of half of the items of kept studies, judged by what their other half measured.

    python benchmarks/half_items.py [docs/findings/records/*] [--leveled .5 .99]

No truth is assumed. Both halves are of the same trained models, so a seed's luck counts as truth:
the figures compare rules, and are no calibration. What a stopped arm would still gain is
extrapolated in both. Of every task scored in nats, for each share of leveling
(:func:`rankscope.advise.evidence.pooled`; ``as measured``: errors in nats are not pooled):

- expected less measured net gains, the median over arms, in % of the largest gain;
- the root mean square of that, and of the differences to the arm that the first half has best;
- the mean log density of the other half, of arms and of these differences, in margins.

Three random halvings, each both ways; one thread, NumPy alone.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rankscope.advise import evidence as rules
from rankscope.advise.arms import summarize_arms
from rankscope.advise.evidence import measure
from rankscope.advise.posterior import Array, NetGains, lowest_of, posterior
from rankscope.advise.retention import net_scale
from rankscope.records import BASE, ItemScores, StudyRecords
from rankscope.tools.kept_records import kept_study

RECORDS = Path(__file__).parents[1] / "docs" / "findings" / "records"
AS_MEASURED = "as measured"
HALVINGS, FEWEST_ARMS = 3, 4
CURVE = ("item_scores", "gold_logprobs")
POOLED = rules.pooled


def half_of(study: StudyRecords, seed: int, *, second: bool) -> StudyRecords:
    """The study with half of the items of every task."""
    rng, kept = np.random.default_rng(seed), dict[tuple[str, str], set[str]]()
    for (model, task, split), items in study.items.items():
        if model == BASE:
            order = rng.permutation(items.item_ids)
            middle = len(order) // 2
            kept[task, split] = set(order[middle:] if second else order[:middle])
    found = {}
    for key, items in study.items.items():
        own = [i for i, item in enumerate(items.item_ids) if item in kept.get(key[1:], ())]
        if own:
            found[key] = ItemScores(
                tuple(items.item_ids[i] for i in own),
                items.scores[own],
                items.gold_logprobs[own],
                tuple(items.subjects[i] for i in own),
            )
    trials = []
    for trial in study.trials:
        points = []
        for point in trial.curve:  # Its items are the first of the validation split
            base = study.items.get((BASE, point.task, "validation"))
            ids = base.item_ids[: point.n] if base and point.item_scores else ()
            own = [i for i, item in enumerate(ids) if item in kept[point.task, "validation"]]
            halved = {f: tuple(getattr(point, f)[i] for i in own) for f in CURVE}
            points.append(point.model_copy(update={"n": len(own), **halved}))
        trials.append(replace(trial, curve=tuple(points)))
    return replace(study, items=found, trials=tuple(trials))


def halves(study: StudyRecords, task: str) -> Iterator[tuple[NetGains, NetGains]]:
    """What the halves of a study measured, each with the other, on one scale."""
    arms = [arm.trials for arm in summarize_arms(study)[task]]
    parts = net_scale(study, task, arms).parts
    for seed in range(HALVINGS):
        both = [half_of(study, seed, second=second) for second in (False, True)]
        of_arms = [[arm.trials for arm in summarize_arms(half)[task]] for half in both]
        found = [measure(half, parts, own) for half, own in zip(both, of_arms, strict=True)]
        if found[0] and found[1] and found[0][1] == found[1][1]:
            first, second = found[0][0], found[1][0]
            if len(first.means) >= FEWEST_ARMS:
                yield from ((first, second), (second, first))


def unpooled(covariance: Array, n: npt.NDArray[np.intp], share: float) -> Array:
    """Of right-or-wrong items alone errors are pooled."""
    return POOLED(covariance, n, share) if share == 1 else covariance


def log_density(off: Array, variance: Array) -> float:
    return float(np.mean(-(np.log(2 * np.pi * variance) + off**2 / variance) / 2))


def judged(seen: NetGains, fitted: NetGains, other: NetGains, margin: float) -> Array:
    """Median difference, root mean square and that to the best arm, in % of the largest gain; and
    two log densities, of margins.

    Args:
        seen: one half, whose errors are ``fitted``.
        other: the other half, with errors as they were measured.
        margin: on the scale of both.
    """
    lowest = lowest_of(seen.means, margin)
    draws = np.maximum(posterior(fitted, margin).draws, lowest) / margin
    truth = np.maximum(other.means, lowest) / margin
    errors = other.item_covariance / margin**2
    best = int(seen.means.argmax())
    rest = np.delete(np.arange(len(truth)), best)
    off = draws.mean(axis=0) - truth
    gaps = draws[:, rest] - draws[:, [best]]
    gap = gaps.mean(axis=0) - truth[rest] + truth[best]
    of_gap = errors[rest, rest] + errors[best, best] - 2 * errors[rest, best]
    percent = 100 * margin
    return np.array(
        [
            percent * np.median(off),
            percent * np.sqrt(np.mean(off**2)),
            percent * np.sqrt(np.mean(gap**2)),
            log_density(off, draws.var(axis=0) + np.diag(errors)),
            log_density(gap, gaps.var(axis=0) + np.maximum(of_gap, 1e-6)),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("records", nargs="*", type=Path, default=sorted(RECORDS.iterdir()))
    parser.add_argument("--leveled", nargs="*", type=float, default=[rules.LEVELED])
    args = parser.parse_args()
    sums: dict[str, list[Array]] = {}
    for folder in args.records:
        if not (folder / "study.json").is_file():
            continue
        study = kept_study(folder)
        for task, arms in summarize_arms(study).items():
            scale = net_scale(study, task, [arm.trials for arm in arms])
            if scale.name != "shares":
                continue
            margin = study.config.objective.margin_on(scale.name)
            rules.LEVELED, rules.pooled = 0.0, unpooled
            measured = list(halves(study, task))
            ways = {AS_MEASURED: measured}
            for share in args.leveled:
                rules.pooled, rules.LEVELED = POOLED, share
                ways[f"{share:g}"] = list(halves(study, task))
            if not measured:
                continue
            for way, fitted in ways.items():
                found = [
                    judged(seen, own, other, margin)
                    for (seen, other), (own, _) in zip(measured, fitted, strict=True)
                ]
                sums.setdefault(way, []).append(np.mean(found, axis=0))
                print(row(f"{study.name}, {task}", way, sums[way][-1]), flush=True)
    for way, rows in sums.items():
        print(row(f"mean of {len(rows)} tasks", way, np.mean(rows, axis=0)))


def row(name: str, way: str, figures: Array) -> str:
    shares = "".join(f" {figure:6.2f} |" for figure in figures[:3])
    return f"| {name} | {way} |{shares}" + "".join(f" {figure:6.3f} |" for figure in figures[3:])


if __name__ == "__main__":
    main()
