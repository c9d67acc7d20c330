"""``train.kernels`` in a study: asked for in its file, and kept by its workers."""

from pathlib import Path
from typing import Any

import pytest
from pocket_study import changed, results, run_interrupted, small_study

from rankscope.errors import UserError
from rankscope.extensions.kernels.compiled import CACHE
from rankscope.run.executors.local import LocalExecutor
from rankscope.run.plan import plan_sentences
from rankscope.store import Ledger

ARMS = [{"method": "lora", "rank": 2, "lr": 2e-3}]


def study(folder: Path, kernels: str) -> Any:
    train = changed("train", kernels=kernels, max_steps=2)
    scored = {"max_items": 2, "retention": []}
    return small_study(folder, **train, arms=ARMS, seeds=[0], evaluate=scored)


@pytest.mark.usefixtures("minutes")
def test_compiled_functions_have_the_same_bits_however_a_study_runs(tmp_path: Path) -> None:
    """In one process, with interruptions, and in a worker. A later run that computes plainly has a
    note."""
    expected, broken, workers = (tmp_path / name for name in ("whole", "broken", "workers"))
    study(tmp_path, "compiled").run(expected)
    run_interrupted(study(tmp_path, "compiled"), broken, every=8)
    study(tmp_path, "compiled").run(broken)
    (tmp_path / "file").touch()
    with pytest.MonkeyPatch.context() as patch:  # Workers cannot write the cache
        patch.delenv(CACHE, raising=False)
        patch.setenv("RANKSCOPE_CACHE", str(tmp_path / "file"))
        by_file = study(tmp_path, "compiled")
        by_file.run(workers, executor=LocalExecutor(by_file.config, 1))
    for out in (broken, workers):
        assert results(out) == results(expected)
        with Ledger.open(out, write=False) as ledger:
            assert ledger.kernels() == "compiled"
    notes = study(tmp_path, "plain").run(expected).notes
    assert any(note.startswith("train.kernels: plain now, compiled before") for note in notes)


def test_kernels_that_cannot_be_had_leave_no_study(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found 'liger', whose kernels run on a GPU"):
        study(tmp_path, "liger").run(tmp_path / "out")
    assert not (tmp_path / "out" / "study.resolved.yaml").exists()


def test_a_plan_counts_compiling_where_a_run_compiles(tmp_path: Path) -> None:
    """A start takes 5.5 s, 587,904 parameters of 4 bytes at 0.5 GB/s, and 30 s to compile."""
    asked, plainly = study(tmp_path, "compiled"), study(tmp_path, "plain")
    plans = [s.plan(device="h100") for s in (asked, plainly)]
    starts = [plan.stages["starting"] for plan in plans]
    assert starts == pytest.approx([35.504703232, 5.504703232])
    said = "Time is estimated from published figures, not measured; train.kernels: compiled."
    assert said in list(plan_sentences(plans[0]))
    ids = [[trial.trial_id for trial in s.check().trials] for s in (asked, plainly)]
    assert ids[0] == ids[1]  # Kernels are no part of what is trained
