"""How much of a core the driver needs while ten workers run a study of a thousand small units.

    python evidence/campaigns/driver_load.py [--units 1000] [--workers 10] [--seconds 10]

No race. The driver is the real one: it opens units, starts worker processes, verifies what they
seal and commits it. The workers are simulated, since ten real ones would need ten cores: each is a
process that sleeps and then seals results which one real unit had computed before. Fewer seconds a
unit are more work for the driver; a real worker takes about two before it trains. Prints, last, one
line of JSON; the exit code is 1 if a trial has not ended with those results.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SECONDS, FINISHED = "SIMULATED_SECONDS", "SIMULATED_RESULTS"
"""Environment variables of a simulated worker: how long it takes, and the study it copies."""


def simulated_worker(out: Path, unit: str) -> None:
    """Do as ``rankscope work OUT UNIT`` does, from the results of a finished study of one trial."""
    begun = time.monotonic()
    from rankscope.filesystem import replace_text
    from rankscope.hashing import sums_text
    from rankscope.store import Ledger

    folder, finished = out / "units" / unit, Path(os.environ[FINISHED])
    trial_id = "".join(json.loads((folder / "unit.json").read_text("utf-8"))["trial_ids"]) or "base"
    with Ledger.open(finished, write=False) as ledger:
        study = ledger.load()
    (known,) = study.trials
    assert known.train is not None
    own, copied_id = {"trial_id": trial_id}, known.spec.trial_id if trial_id != "base" else "base"
    records = [e.model_copy(update=own) for key, e in study.evals.items() if key[0] == copied_id]
    time.sleep(max(0.0, float(os.environ[SECONDS]) - (time.monotonic() - begun)))
    with Ledger.open(folder, write=True, take_over=True) as ledger:
        with ledger.stage() as staged:
            source = finished / "artifacts" / copied_id
            copied = shutil.copytree(source, staged / trial_id)
            artifacts = ledger.publish(copied, f"artifacts/{trial_id}")
        if trial_id == "base":
            ledger.commit(records, artifacts)
        else:
            ledger.commit([known.train.model_copy(update=own), *records], artifacts)
            ledger.finish_trials([trial_id])
    replace_text(folder / "sealed.sha256", sums_text(folder, ("ledger.sqlite",)))


def processor_seconds() -> float:
    """Processor time of this process so far, all its threads together."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, object]]:
    """Figures by name."""
    sys.path.insert(1, str(Path(__file__).parents[2] / "tests" / "fixtures"))
    from pocket_study import SETTINGS, UNANALYZED, changed, small_study

    from rankscope.progress import ProgressReporter
    from rankscope.run.executors.local import LocalExecutor
    from rankscope.run.workers import starter

    class Meter(ProgressReporter):
        """Marks when units begin and end, in seconds and in processor seconds of the driver."""

        def __init__(self) -> None:
            self.marks: list[tuple[float, float]] = []

        def stage(self, name: str, total: int) -> None:
            if name == "all groups units":
                self.marks.append((time.monotonic(), processor_seconds()))

        def finish(self, detail: str = "") -> None:
            if self.marks:
                self.marks.append((time.monotonic(), processor_seconds()))

    settings = {
        "arms": SETTINGS["arms"][:1],
        "max_group_size": 1,
        **changed("train", max_steps=2),
        **changed("evaluate", max_items=4),
        "analyze": {name: off for name, off in UNANALYZED.items() if name == "spectra"},
    }
    finished = small_study(folder / "one", **settings, seeds=[0]).run(folder / "finished")
    os.environ |= {SECONDS: str(options.seconds), FINISHED: str(folder / "finished")}
    starter.STARTER = ("-P", str(Path(__file__).resolve()), "start")  # type: ignore[assignment]
    meter = Meter()
    study = small_study(folder / "many", **settings, seeds=list(range(options.units)))
    executor = LocalExecutor(study.config, options.workers)
    records = study.run(folder / "out", meter, executor)

    (began, used), (ended, used_then) = meter.marks[0], meter.marks[-1]
    yield "driver_share", round((used_then - used) / (ended - began), 4)
    yield "driver_milliseconds_per_unit", round(1000 * (used_then - used) / options.units, 1)
    yield "seconds", round(ended - began, 1)
    expected = {key[1:]: e.score for key, e in finished.evals.items() if key[0] != "base"}
    yield (
        "parity",
        all(
            trial.status == "done"
            and all(
                records.evals[trial.spec.trial_id, *key].score == expected[key] for key in expected
            )
            for trial in records.trials
        ),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--units", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10.0, help="Of one unit.")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="driver-load-"))
    try:
        figures = dict(measure(options, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({"benchmark": "driver_load", **vars(options), **figures}))
    return 0 if figures["parity"] else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["start"]:
        from rankscope.run.workers.starter import become_worker

        _, out, unit = become_worker()
        simulated_worker(Path(out), unit)
    else:
        sys.exit(main())
