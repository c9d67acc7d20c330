"""A study of ten thousand arms: every verb that reads it answers, or refuses with a limit."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from launcher import Launcher
from synthetic_study import Truth, synthetic_study

from fault_points import Options, Point, last_lines
from rankscope.config.loader import study_values
from rankscope.errors import BAD_INPUT, OK
from rankscope.records import ItemResult, StudyRecords, write_items
from rankscope.store import OUTPUT_FILES, Artifact, Ledger, items_path, weights_path

ARMS = 10_000
SECONDS = 300
"""Longest answer on two cores."""
MEBIBYTES = 4
"""Largest page, and largest file of the recommendation."""
HEAD = """\
name: large
model: pocket
tasks: [pocket_med]
evaluate: {retention: [common_facts], max_items: 20}
train: {max_steps: 10}
seeds: [0]
arms:
"""


def study_files(folder: Path, count: int) -> dict[str, Path]:
    """Files of as many trials: that many arms, one arm's grid, and one arm too many."""
    arms = "".join(
        f"- {{method: lora, rank: {1 + i % 64}, lr: {1e-5 * (1 + i // 64):.6g}}}\n"
        for i in range(count)
    )
    rates = [round(1e-5 * (1 + i), 10) for i in range(count)]
    grid = f"- {{method: lora, rank: 8, lr: {rates}}}\n"
    files = {"arms": arms, "grid": grid, "too many": arms + "- {method: full, lr: [1e-5, 1e-4]}\n"}
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(HEAD + text)
    return {name: folder / f"{name}.yaml" for name in files}


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


def finished(out: Path, count: int) -> None:
    """The folder of a study of ``count`` finished trials, written without waiting for the disk."""
    side = round(count**0.5)
    truth = Truth(
        ranks=tuple(range(1, side + 1)),
        lrs=tuple(1e-5 * (i + 1) for i in range(side)),
        full_lrs=(),
        seeds=(0,),
        cross=(),
        num_items=50,
    )
    wait, os.fsync = os.fsync, lambda fd: None
    try:
        store(synthetic_study(truth), out)
    finally:
        os.fsync = wait


def points(options: Options) -> Iterator[Point]:
    """Every verb on every study; ``options.points`` is the number of arms."""
    count = options.points or ARMS
    files = study_files(options.folder / "files", count)
    out = options.folder / "out"
    finished(out, count)
    commands: list[tuple[int, tuple[object, ...]]] = [
        (code, (verb, files[name]))
        for name, code in (("arms", OK), ("grid", OK), ("too many", BAD_INPUT))
        for verb in ("check", "plan")
        if code == OK or count == ARMS
    ]
    commands += [(OK, (verb, out)) for verb in ("status", "report", "verify")]
    commands += [(OK, ("status", out, "--json")), (OK, ("verify", out, "--quick"))]
    with Launcher(options.folder) as launcher:
        for code, words in commands:
            begun = time.monotonic()
            ran = launcher.run(*words)
            seconds = time.monotonic() - begun
            problem = ""
            if ran.code != code:
                problem = f"exit {ran.code}, expected {code}: {last_lines(ran)}"
            elif seconds > SECONDS:
                problem = f"{seconds:.0f} s, expected at most {SECONDS}"
            what = " ".join(getattr(word, "name", str(word)) for word in words)
            yield Point(what, f"{what}: {seconds:.0f} s", problem)
    for name in OUTPUT_FILES:
        size = (out / name).stat().st_size / 2**20
        problem = "" if size <= MEBIBYTES else f"expected at most {MEBIBYTES} MiB"
        yield Point(f"size of {name}", f"{name}: {size:.1f} MiB", problem)
