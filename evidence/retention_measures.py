"""Which measure says what a model forgot on a multiple-choice task? The rule precedes the figures.

    python evidence/retention_measures.py [evidence/records/*]

Three measures compete: accuracy, log p of the right option per token, and the mean probability of
the whole right option, both among the options.
People lose accuracy, so a measure is judged by how well it foretells accuracy lost on other items.

- A multiple-choice task counts once in every record, trained or not, that scored at least four
  finished models by accuracy. A record that lacks log p of options is left out and counted.
- Its base must be above chance by more than two standard errors.
- The items are those of both splits that the base and every finished model answered.
- They are halved at random ten times, each both ways, with fixed seeds.
- Pearson's correlation over models joins the change against the base by each measure on one half
  and the change of accuracy on the other half.
- A measure equal in all models correlates by 0. A half with accuracy equal in all is left out.
- Accuracy and probability share a unit: the root mean square of these differences is shown, too.
  A task's figures are means over its halvings.

Accuracy stays the measure unless another one's correlation is higher in the median over all tasks
by at least 0.05, as a difference of medians, and higher in at least three quarters of the tasks.
If both pass, the higher median wins. Retention tasks alone, and correlations of each measure with
itself on the other half, decide nothing.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from kept_records import kept_study
from rankscope.records import BASE

Array = npt.NDArray[np.float64]
RECORDS = Path(__file__).parent / "records"
MEASURES = ("accuracy", "log p", "probability")
HALVINGS, FEWEST_MODELS, STEP, SHARE, EQUAL = 10, 4, 0.05, 0.75, 1e-9
HEAD = """| record, task | role | models | items | with accuracy: accuracy | log p | p \
| off, points: accuracy | p | with itself: accuracy | log p | p |"""


def changes(rows: pd.DataFrame, chance: float | None) -> Array | str:
    """Changes against the base, (measures, items, models), or why the task does not count."""
    rows = rows.astype({"score": float, "among": float, "gold_tokens": float})
    rows = rows.assign(logprob=rows["among"] / rows["gold_tokens"], p=np.exp(rows["among"]))
    if rows["model"].nunique() <= FEWEST_MODELS:
        return "fewer than four models"
    if not np.isfinite(rows["among"]).any():
        return "no log p of options"
    values = ["score", "logprob", "p"]
    table = rows.pivot(index=["split", "item"], columns="model", values=values).dropna()
    base = table["score", BASE]
    if chance is None or not base.mean() - chance > 2 * base.std() / np.sqrt(len(base)):
        return "base not above chance"
    found = [table[value].sub(table[value, BASE], axis=0).drop(columns=BASE) for value in values]
    return np.array(found, dtype=np.float64)


def correlation(seen: Array, other: Array) -> float:
    equal = min(np.ptp(seen), np.ptp(other)) < EQUAL
    return 0.0 if equal else float(np.corrcoef(seen, other)[0, 1])


def judged(change: Array) -> Array | str:
    """Three correlations with accuracy, two root mean squares in points, three with itself."""
    found = []
    for seed in range(HALVINGS):
        order = np.random.default_rng(seed).permutation(change.shape[1])
        halves = [change[:, part].mean(axis=1) for part in np.array_split(order, 2)]
        for seen, other in (halves, halves[::-1]):
            if np.ptp(other[0]) > EQUAL:
                off = 100 * np.sqrt(np.mean((seen[[0, 2]] - other[0]) ** 2, axis=1))
                foretold = [correlation(measure, other[0]) for measure in seen]
                itself = [correlation(*pair) for pair in zip(seen, other, strict=True)]
                found.append([*foretold, *off, *itself])
    return np.mean(found, axis=0) if found else "accuracy equal in all models"


def verdict(name: str, found: Array) -> str:
    medians, higher = np.median(found, axis=0), np.mean(found[:, :3] > found[:, :1], axis=0)
    passed = [i for i in (1, 2) if medians[i] - medians[0] >= STEP and higher[i] >= SHARE]
    best = MEASURES[max(passed, key=lambda i: medians[i], default=0)]
    cells = " | ".join([f"{x:.3f}" for x in medians] + [f"{share:.0%}" for share in higher[1:]])
    return f"| median of {len(found)}, {name} | {cells} | {best} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge measures of forgetting by kept records.")
    parser.add_argument("records", nargs="*", type=Path, default=sorted(RECORDS.iterdir()))
    paths = [path for path in parser.parse_args().records if (path / "study.json").is_file()]
    rows, left_out, pairs = list[tuple[str, Array]](), Counter[str](), 0
    print(HEAD)
    for folder in paths:
        study, items = kept_study(folder), pd.read_parquet(folder / "items.parquet")
        done = [BASE, *(trial.spec.trial_id for trial in study.trials if trial.status == "done")]
        for task in study.tasks:
            if task.row_shape == "multiple choice" and task.score_unit == "accuracy":
                own = items[(items["task"] == task.name) & items["model"].isin(done)]
                change = changes(own, task.chance)
                figures = change if isinstance(change, str) else judged(change)
                if isinstance(change, str) or isinstance(figures, str):
                    left_out[str(figures)] += 1
                    continue
                n, models = change.shape[1:]
                pairs += models
                role = "retention" if "retention" in task.roles else "other"
                rows.append((role, figures))
                cells = " | ".join(f"{x:.2f}" for x in figures)
                print(f"| {study.name}, {task.name} | {role} | {models} | {n} | {cells} |")
    print("\n" + verdict("all (decides)", np.array([row for _, row in rows])))
    print(verdict("retention", np.array([row for role, row in rows if role == "retention"])))
    print(f"{pairs} pairs of task and model; left out: {dict(left_out)}")


if __name__ == "__main__":
    main()
