"""Units on two devices: a dead shard costs no more than the steps since the last checkpoint."""

import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from pocket_study import ROUNDING, SETTINGS, leftovers, small_study
from safetensors.torch import load_file

from rankscope.records import BASE
from rankscope.run.executors.local import LocalExecutor
from rankscope.run.prepare import prepare
from rankscope.store import snapshot_path, weights_path

STUDY: dict[str, Any] = {
    "arms": SETTINGS["arms"][2:],
    "seeds": [0],
    "evaluate": {"max_items": 8, "retention": ["pocket_cloze"]},
    "device": "cpu",
}


class ShardKiller(LocalExecutor):
    """Kills shard 1 of its unit once there is a checkpoint."""

    has_killed = False

    def submit(self, folder: Path) -> Any:
        if folder.name != BASE:
            threading.Thread(target=self.kill, args=(folder,), daemon=True).start()
        return super().submit(folder)

    def kill(self, folder: Path) -> None:
        while not list(folder.glob("checkpoints/*/step-*/SHA256SUMS")):
            time.sleep(0.02)
        for process in psutil.Process().children(recursive=True):
            if any("follow()" in word for word in process.cmdline()):
                process.kill()
                self.has_killed = True


@pytest.mark.usefixtures("minutes")
@pytest.mark.parametrize("replicates", [False, True], ids=["cut", "replicated"])
def test_a_unit_whose_shard_was_killed_continues_from_its_checkpoint(
    tmp_path: Path, replicates: bool
) -> None:
    """With the frozen base cut, where memory is just enough for that, and whole on both."""
    train = {**SETTINGS["train"], "evaluate_every": 3, "evaluate_items": 4, "checkpoint_every": 6}
    two = small_study(tmp_path, **STUDY, train={**train, "devices": 2})
    if not replicates:
        prepared = prepare(two.config)
        prepared.grouping.model.replicates = False
        peaks = [
            prepared.grouping.memory(g, two.config.train).total_bytes for g in [prepared.trials]
        ]
        two = small_study(tmp_path, **STUDY, train={**train, "devices": 2}, memory_limit=max(peaks))
    killer = ShardKiller(two.config)
    found = two.run(tmp_path / "out", executor=killer)
    assert killer.has_killed
    expected = small_study(tmp_path, **STUDY, train=train).run(tmp_path / "alone")
    assert [trial.status for trial in found.trials] == ["done"]
    ours, theirs = (run.trials[0].train for run in (found, expected))
    assert ours.steps == theirs.steps == 8
    for a, b in zip(ours.losses, theirs.losses, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=ROUNDING)
    for place in (weights_path, partial(snapshot_path, step=6)):
        a = stored(tmp_path / "out" / place(found.trials[0].spec))
        b = stored(tmp_path / "alone" / place(expected.trials[0].spec))
        assert float((a - b).norm() / b.norm()) < ROUNDING
    assert [p.step for p in found.trials[0].curve] == [p.step for p in expected.trials[0].curve]
    assert leftovers(tmp_path / "out") == []


def stored(folder: Path) -> torch.Tensor:
    """The weights of a model, in one row."""
    tensors = load_file(folder / "model.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])
