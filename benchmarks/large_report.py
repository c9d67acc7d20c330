"""How long the answer and the report of a large study take, and how large the page is.

    python benchmarks/large_report.py [--items 500] [--ledger]

No race: a simulated study of more than a thousand trials (tests/fixtures/synthetic_study.py),
decided and written as ``rankscope report`` does it. With ``--ledger`` it is stored
first and read back as a study on disk is; storing is not timed. Prints, last, one line of JSON.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))

from synthetic_study import Truth, synthetic_study

from rankscope.advise.recommend import recommend
from rankscope.config.loader import study_values
from rankscope.filesystem import replace_text
from rankscope.records import ItemResult, StudyRecords, write_items
from rankscope.report.study_page import render_study
from rankscope.report.study_view import StudyView
from rankscope.run.outputs import write_outputs
from rankscope.store import Artifact, Ledger, items_path, weights_path

RANKS = (2, 4, 8, 16, 32, 64, 128, 256)
LRS = tuple(1e-5 * 2**i for i in range(8))
TASKS = ("a", "b", "c", "d")
SEEDS = (0, 1, 2, 3)
STEPS = (10, 20, 40)


def store(study: StudyRecords, out: Path) -> None:
    """The study as a finished run leaves it, with empty files for weights."""
    with Ledger.open(out, write=True) as ledger:
        ledger.put_study(
            study.name, study_values(study.config), study.model, study.tasks, study.provenance
        )
        ledger.put_trials([trial.spec for trial in study.trials])
        ledger.commit([trial.train for trial in study.trials if trial.train is not None])
        ledger.commit([record for trial in study.trials for record in trial.analyses])
        ledger.commit([point for trial in study.trials for point in trial.curve])
        artifacts: list[Artifact] = []
        for spec in (trial.spec for trial in study.trials if trial.train is not None):
            with ledger.stage() as folder:
                (folder / "weights").touch()
                artifacts += ledger.publish(folder, weights_path(spec))
        for key, scores in study.items.items():
            rows = zip(scores.item_ids, scores.subjects, scores.scores, strict=True)
            with ledger.stage() as folder:
                write_items(
                    folder / "items.parquet",
                    [
                        ItemResult(
                            item_id=item,
                            subject=subject,
                            score=float(score),
                            gold="A",
                            prediction="B",
                            gold_logprob=None,
                        )
                        for item, subject, score in rows
                    ],
                )
                artifacts += ledger.publish(folder / "items.parquet", items_path(*key))
        ledger.commit(list(study.evals.values()), artifacts)
        ledger.finish_trials([t.spec.trial_id for t in study.trials if t.train is not None])


def from_ledger(study: StudyRecords, folder: Path) -> dict[str, float]:
    """Seconds of the whole of ``rankscope report`` on the stored study, and bytes of the page."""
    out = folder / "study"
    store(study, out)
    begun = time.perf_counter()
    write_outputs(out)
    return {
        "report_seconds": time.perf_counter() - begun,
        "page_bytes": (out / "report.html").stat().st_size,
    }


def from_memory(study: StudyRecords, folder: Path) -> dict[str, float]:
    """The same without reading: deciding and writing apart."""
    begun = time.perf_counter()
    made = recommend(study)
    decided = time.perf_counter()
    replace_text(folder / "report.html", render_study(StudyView(study, made)))
    return {
        "decide_seconds": decided - begun,
        "write_seconds": time.perf_counter() - decided,
        "page_bytes": (folder / "report.html").stat().st_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--items", type=int, default=500, help="Items per task and split.")
    parser.add_argument("--ledger", action="store_true", help="Store it and read it back.")
    asked = parser.parse_args()
    truth = Truth(
        ranks=RANKS, lrs=LRS, tasks=TASKS, seeds=SEEDS, num_items=asked.items, curve_steps=STEPS
    )
    study = synthetic_study(truth)
    measure = from_ledger if asked.ledger else from_memory
    with tempfile.TemporaryDirectory() as folder:
        found = measure(study, Path(folder))
    counts = {"trials": len(study.trials), "evaluations": len(study.evals), "items": asked.items}
    print(json.dumps({**counts, **{key: round(value, 2) for key, value in found.items()}}))


if __name__ == "__main__":
    main()
