"""The posterior of half of the items of kept studies, judged by what their other half measured.

    python evidence/half_items.py [evidence/records/*]

No truth is assumed. A training task and each retention task count by themselves, with one posterior
per half. Ten random halvings count both ways. Items of one subject or passage stay together.

- *Arms*: the share of arms whose change on the other half lies in the 95 % interval, of posterior
  draws plus the other half's own error of its items.
- *Gaps*: the same of differences to the arm that the first half expects to be best.
- *Models* and *model gaps*: both of the very models that both halves score, with the luck of their
  seeds. The interval of an arm includes that luck as an error, so it may be too wide or too narrow.
- *Off* and *bias*: root mean square and mean of expected less measured changes, in points or in
  hundredths of nats per token.
- *Flat*: the share of arms whose posterior could not be fitted, and stands without a prior.

Arms that training broke count in shares alone.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from kept_records import kept_study
from rankscope.advise.arms import Arm, summarize_arms
from rankscope.advise.evidence import SCORED_SPLITS, Measured, Part, measure
from rankscope.advise.net_gains import draw_changes
from rankscope.advise.posterior import Array, broken_arms
from rankscope.advise.retention import net_parts
from rankscope.records import BASE, ItemScores, StudyRecords

RECORDS = Path(__file__).parent / "records"
HALVINGS, FEWEST_ARMS, FEWEST_COUNTED, NUM_WORST = 10, 3, 60, 10
COVERAGE = ["arms", "gaps", "models", "model gaps"]


def half_of(study: StudyRecords, seed: int, *, second: bool) -> StudyRecords:
    """The study with half of the items of every task, or half of its subjects."""
    rng, kept, found = np.random.default_rng(seed), set[tuple[str, ...]](), {}
    for task in [task.name for task in study.tasks]:
        bases = [(s, b) for s in SCORED_SPLITS if (b := study.items.get((BASE, task, s)))]
        named = [(s, *pair) for s, b in bases for pair in zip(b.item_ids, b.subjects, strict=True)]
        items = [(split, item, subject or f"{split} {item}") for split, item, subject in named]
        groups = rng.permutation(sorted({group for *_, group in items}))
        middle = len(groups) // 2
        own = set(groups[middle:] if second else groups[:middle])
        kept |= {(task, split, item) for split, item, group in items if group in own}
    for key, of in study.items.items():
        if rows := [i for i, item in enumerate(of.item_ids) if (*key[1:], item) in kept]:
            ids = tuple(of.item_ids[i] for i in rows)
            subjects = tuple(of.subjects[i] for i in rows)
            found[key] = ItemScores(ids, of.scores[rows], of.gold_logprobs[rows], subjects)
    return replace(study, items=found)


def judged(first: Measured, second: Measured) -> dict[str, Array | bool]:
    """By arm, whether the other half lies in each 95 % interval, and expected less measured."""
    ((found,), failure), seen, other = draw_changes([first]), first.changes, second.changes
    sizes, vectors = np.linalg.eigh(other.item_covariance)
    normal = np.random.default_rng(3).standard_normal(found.draws.shape)
    noise = normal @ (vectors * np.sqrt(np.maximum(sizes, 0.0))).T
    mean, truth = found.draws.mean(axis=0), other.means
    arms, best = found.draws + noise, int(mean.argmax())
    # These models' change on all items is the measured one, less the error of their items.
    models = seen.means - found.on_items + arms

    inside: list[Array] = []
    for draws in (arms, arms - arms[:, [best]], models, models - models[:, [best]]):
        true = truth if len(inside) % 2 == 0 else truth - truth[best]
        low, high = np.quantile(draws, (0.025, 0.975), axis=0)
        inside.append(np.where((low <= true) & (true <= high), 1.0, 0.0))
    inside[1][best] = inside[3][best] = np.nan
    off = np.where(broken_arms(seen.means), np.nan, 100 * (mean - truth))
    return {**dict(zip(COVERAGE, inside, strict=True)), "off": off, "flat": failure is not None}


def halves(study: StudyRecords, arms: dict[str, tuple[Arm, ...]]) -> Iterator[pd.DataFrame]:
    tasks = [(trained, part.task) for trained in arms for part in net_parts(study, trained)]
    for seed in range(HALVINGS):
        both = [half_of(study, seed, second=second) for second in (False, True)]
        for trained, task in tasks:
            trials = [[a.trials for a in summarize_arms(half)[trained]] for half in both]
            one, other = (measure(h, Part(task, 1.0), t) for h, t in zip(both, trials, strict=True))
            if one is None or other is None or one.places != other.places:
                continue
            unit = "points" if study.task(task).score_unit == "accuracy" else "nats"
            role = "trained" if task == trained else "retention"
            about = {"study": study.name, "role": role, "unit": unit}
            for pair in ((one, other), (other, one)) if len(one.places) >= FEWEST_ARMS else ():
                yield pd.DataFrame(about | judged(*pair))


def shown(rows: pd.DataFrame, *by: str) -> pd.DataFrame:
    groups = rows.assign(square=rows["off"] ** 2).groupby(list(by))
    found = (100 * groups[[*COVERAGE, "flat"]].mean()).assign(counted=groups.size())
    return found.assign(off=groups["square"].mean() ** 0.5, bias=groups["off"].mean()).round(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("records", nargs="*", type=Path, default=sorted(RECORDS.iterdir()))
    paths = [path for path in parser.parse_args().records if (path / "study.json").is_file()]
    studies = [kept_study(path) for path in paths]
    rows = pd.concat([frame for study in studies for frame in halves(study, summarize_arms(study))])
    by_study = shown(rows, "study")
    worst = by_study[by_study["counted"] >= FEWEST_COUNTED].nsmallest(NUM_WORST, "arms")
    tables = [shown(rows, "study", "role"), shown(rows, "role", "unit"), shown(rows, "role")]
    for table in (*tables, shown(rows.assign(all=""), "all"), worst):
        print(table.to_string(), end="\n\n")


if __name__ == "__main__":
    main()
