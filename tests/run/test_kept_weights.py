"""Weights kept by step are those of that step, and come out of the study like any others."""

from pathlib import Path

import pytest
from pocket_study import SETTINGS, changed, small_study
from safetensors.torch import load_file

from rankscope.errors import UserError
from rankscope.records import StudyRecords
from rankscope.run.machines import MACHINES
from rankscope.run.plan import make_plan
from rankscope.run.study import Study
from rankscope.store import Ledger, find_problems, snapshot_path, weights_path
from rankscope.tools.export import ExportRequest, export_trial

KEPT = (3, 6)
"""Of eight steps, every third but the last, whose weights are the trial's own."""
STEADY = {"schedule": "constant", "warmup_fraction": 0.0}
"""Then the first three of eight steps are those of a training of three."""


def keeping(folder: Path, **train: object) -> Study:
    return small_study(folder, seeds=[0], **changed("train", **STEADY, **train))


def contents(folder: Path) -> dict[str, bytes]:
    """Files of weights and configuration, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyRecords]:
    folder = tmp_path_factory.mktemp("kept")
    return folder / "out", keeping(folder, checkpoint_every=3).run(folder / "out")


def test_they_are_the_weights_of_a_training_of_so_many_steps(
    kept: tuple[Path, StudyRecords], tmp_path: Path
) -> None:
    out, study = kept
    shorter = keeping(tmp_path, max_steps=3).run(tmp_path / "out")
    for trial, other in zip(study.trials, shorter.trials, strict=True):
        found, expected = (
            out / snapshot_path(trial.spec, 3),
            tmp_path / "out" / weights_path(other.spec),
        )
        for file in sorted(path.name for path in expected.glob("*.safetensors")):
            tensors, same = load_file(found / file), load_file(expected / file)
            assert tensors.keys() == same.keys()
            assert all(tensors[name].equal(same[name]) for name in same)


def test_each_is_stored_once_and_verified(kept: tuple[Path, StudyRecords]) -> None:
    out, study = kept
    with Ledger.open(out, write=False) as ledger:
        assert find_problems(ledger.out) == []
        for trial in study.trials:
            steps = {
                int(Path(a.path).parts[3])
                for a in ledger.artifacts(f"artifacts/{trial.spec.trial_id}/steps")
            }
            assert steps == set(KEPT)


def test_export_copies_those_of_a_step(kept: tuple[Path, StudyRecords], tmp_path: Path) -> None:
    out, study = kept
    last = SETTINGS["train"]["max_steps"]
    for i, trial in enumerate((study.trials[0], study.trials[-1])):
        for step, place in ((6, snapshot_path(trial.spec, 6)), (last, weights_path(trial.spec))):
            target = tmp_path / f"{i}-{step}"
            assert (
                export_trial(out, target, ExportRequest(label=trial.spec.trial_id, step=step)).spec
                == trial.spec
            )
            # Card, tokenizer and the base's name are written anew.
            written = {name: text for name, text in contents(target).items() if "token" not in name}
            stored = contents(out / place)
            for files in (written, stored):
                files.pop("adapter_config.json", None)
            assert written == {n: text for n, text in stored.items() if "token" not in n}
    with pytest.raises(UserError, match=r"no weights of step 4, expected one of 3, 6, 8"):
        export_trial(
            out, tmp_path / "none", ExportRequest(label=study.trials[0].spec.trial_id, step=4)
        )
    assert not (tmp_path / "none").exists()


def test_the_plan_counts_their_bytes(tmp_path: Path) -> None:
    without = make_plan(keeping(tmp_path).check(), MACHINES["h100"])
    with_them = make_plan(keeping(tmp_path, checkpoint_every=3).check(), MACHINES["h100"])
    assert with_them.disk_bytes == without.disk_bytes * (1 + len(KEPT))
