"""Groups are cut once: whatever memory a later run finds, and after a real shortage of it."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from launcher import Launcher
from pocket_study import ROUNDING, SETTINGS, leftovers, small_study, study_file
from safetensors.torch import load_file

from rankscope.errors import Interrupted
from rankscope.progress import ProgressReporter
from rankscope.run.group_ledger import GroupLedger, resolve_groups
from rankscope.run.prepared import PreparedStudy
from rankscope.store import Ledger, weights_path
from rankscope.train.checkpoint import GroupCheckpoint

LORA = SETTINGS["arms"][0]


def inputs_with(folder: Path, room_bytes: int, **changes: object) -> PreparedStudy:
    """The study as a machine with that much memory free reads it."""
    found = small_study(
        folder, **{"max_group_size": None, "arms": [LORA], "seeds": [0, 1, 2, 3]} | changes
    )
    inputs = found.check()
    grouping = dataclasses.replace(inputs.grouping, room_bytes=room_bytes)
    return dataclasses.replace(inputs, grouping=grouping)


def sizes(inputs: PreparedStudy) -> list[int]:
    return [len(group) for group in inputs.groups]


def test_groups_stay_when_another_amount_of_memory_is_free(tmp_path: Path) -> None:
    tight, wide = inputs_with(tmp_path, 1), inputs_with(tmp_path, 2**40)
    assert (sizes(tight), sizes(wide)) == ([1] * 4, [4])
    for first, second in ((tight, wide), (wide, tight)):
        with Ledger.open(tmp_path / str(sizes(first)), write=True) as ledger:
            assert resolve_groups(ledger, first, first.trials) == first.groups
            assert resolve_groups(ledger, second, second.trials) == first.groups


def test_halves_take_the_place_of_a_group_and_its_state(tmp_path: Path) -> None:
    inputs = inputs_with(tmp_path, 2**40)
    (group,) = inputs.groups
    with Ledger.open(tmp_path / "out", write=True) as ledger:
        resolve_groups(ledger, inputs, inputs.trials)
        halves = GroupLedger(ledger, inputs).split(group)
        assert resolve_groups(ledger, inputs, inputs.trials) == halves
        assert halves[0] + halves[1] == group
    whole, half = GroupCheckpoint(tmp_path / "whole"), GroupCheckpoint(tmp_path / "half")
    whole.extract([t.trial_id for t in halves[0]], half)
    assert half.load() is None
    tensors = {f"{t.trial_id}/parameter/0": torch.full((2,), float(i)) for i, t in enumerate(group)}
    counted = {t.trial_id: {"num_tokens": 10 * (i + 1)} for i, t in enumerate(group)}
    whole.save(5, tensors, {**counted, "seconds": 10})
    whole.extract([t.trial_id for t in halves[1]], half)
    state = half.load()
    assert state is not None
    step, tensors, meta = state
    assert step == 5
    assert {n: float(t[0]) for n, t in tensors.items()} == {
        f"{group[i].trial_id}/parameter/0": float(i) for i in (2, 3)
    }
    expected = {group[2].trial_id: {"num_tokens": 30}, group[3].trial_id: {"num_tokens": 40}}
    # Of 10 seconds for 100 tokens, those of 70.
    assert meta == {**expected, "seconds": 7.0}


def test_a_study_that_asks_for_smaller_passes_gets_them(tmp_path: Path) -> None:
    """After a shortage passes hold 512 tokens; the study file may ask for fewer, not for more."""
    inputs = inputs_with(tmp_path, 2**40)
    (group,) = inputs.groups
    with Ledger.open(tmp_path / "out", write=True) as ledger:
        resolve_groups(ledger, inputs, inputs.trials)
        stored = GroupLedger(ledger, inputs).stored()
        budgets = {trial.trial_id: 512 for trial in group}
        ledger.put_groups(stored.model_copy(update={"batch_tokens": budgets}))
        for asked, expected in ((4096, 512), (256, 256)):
            train = {**SETTINGS["train"], "batch_tokens": asked}
            now = small_study(tmp_path, arms=[LORA], seeds=[0, 1, 2, 3], train=train).check()
            assert GroupLedger(ledger, now).batch_tokens(group) == expected


LIMITED = """
import json, resource, sys
import psutil, torch
from rankscope.run.study import Study

class Listener:
    def __init__(self): self.limit, self.notes = None, []
    def stage(self, name, total):
        # One kind of stage is short of memory: the limit holds while such a stage runs.
        if name.startswith("group") and f" {sys.argv[3]}" in name:
            self.limit = self.limit or psutil.Process().memory_info().vms + int(sys.argv[4])
            resource.setrlimit(resource.RLIMIT_AS, (self.limit, resource.RLIM_INFINITY))
    def advance(self, done, detail="", **values): pass
    def finish(self, detail=""):
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    def note(self, text): self.notes.append(text)

torch.set_num_threads(1)
listener = Listener()
study = Study.load(sys.argv[1]).run(sys.argv[2], listener)
print(json.dumps([[t.status for t in study.trials], listener.notes]))
"""


def limited_run(
    launcher: Launcher, file: Path, out: Path, stage: Literal["train", "evaluate"], more_bytes: int
) -> tuple[list[str], list[str]]:
    """Statuses and notes of a run of which one kind of stage may take so much more address space
    than the process has when the first such stage begins."""
    launcher.start(file, out, stage, more_bytes, code=LIMITED)
    assert launcher.ended() == 0, launcher.said()[-2000:]
    statuses, notes = json.loads(launcher.said().splitlines()[-1])
    return statuses, notes


def train_settings(**changes: object) -> dict[str, object]:
    """Two optimizer steps, and no state stored between them."""
    return {**SETTINGS["train"], "max_steps": 2, "checkpoint_seconds": 600, **changes}


def stored_adapters(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors of every trained trial, by its label."""
    with Ledger.open(out, write=False) as ledger:
        trials = [t.spec for t in ledger.load().trials if t.train is not None]
    return {
        spec.label: load_file(out / weights_path(spec) / "adapter_model.safetensors")
        for spec in trials
    }


class ShortUntilSplit(ProgressReporter):
    """Memory runs out in the middle of training, until the group is cut."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.trains = False

    def stage(self, name: str, total: int) -> None:
        self.trains = " train" in name

    def advance(self, done: int, detail: str = "", **values: float | None) -> None:
        if self.trains and done and not any("split in two" in note for note in self.notes):
            raise MemoryError

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_group_that_does_not_fit_is_halved_and_every_trial_trained(tmp_path: Path) -> None:
    settings = {
        "arms": [LORA],
        "seeds": [0, 1, 2, 3],
        "max_group_size": None,
        "train": train_settings(gradient_accumulation=1),
        "evaluate": {"max_items": 8, "retention": ["pocket_cloze"]},
    }
    whole, reporter = small_study(tmp_path, **settings), ShortUntilSplit()
    (group,) = whole.check().groups
    whole.run(tmp_path / "whole")
    records = small_study(tmp_path, **settings).run(tmp_path / "out", reporter)
    assert [trial.status for trial in records.trials] == ["done"] * 4
    assert [note for note in reporter.notes if "split in two" in note] == [
        "not enough memory to train 4 trials together: the group is split in two"
    ]
    with Ledger.open(tmp_path / "out", write=False) as ledger:
        stored = ledger.groups()
    ids = [trial.trial_id for trial in group]
    assert [list(of_group) for of_group in stored.groups] == [ids[:2], ids[2:]]
    expected, found = stored_adapters(tmp_path / "whole"), stored_adapters(tmp_path / "out")
    assert found.keys() == expected.keys()
    for label, tensors in expected.items():
        for name, tensor in tensors.items():
            assert float((found[label][name] - tensor).norm()) <= ROUNDING * float(tensor.norm())
    assert leftovers(tmp_path / "out") == []


def test_a_trial_that_does_not_fit_alone_is_out_of_memory_and_the_others_end(
    launcher: Launcher, tmp_path: Path
) -> None:
    """Rank 4,096 takes 268 MB, whatever its passes; rank 2 a hundred kB."""
    file = study_file(
        tmp_path, arms=[{**LORA, "rank": [2, 4096]}], max_group_size=None, train=train_settings(),
        evaluate={"max_items": 8, "retention": ["pocket_cloze"]},
    )  # fmt: skip
    statuses, notes = limited_run(launcher, file, tmp_path / "out", "train", 80 * 10**6)
    assert statuses == ["done", "done", "oom", "oom"]
    assert any("forward passes get fewer tokens" in note for note in notes)  # before it is given up
    with Ledger.open(tmp_path / "out", write=False) as ledger:
        failures = [t.failure for t in ledger.load().trials]
    assert failures[:2] == [None, None]
    assert all(str(failure).startswith("out of memory: ") for failure in failures[2:])
    assert leftovers(tmp_path / "out") == []


class StopsBeforeScoring(ProgressReporter):
    """Presses Ctrl-C twice when a group is trained."""

    def stage(self, name: str, total: int) -> None:
        if name.startswith("group") and name.endswith(" evaluate"):
            raise KeyboardInterrupt


def test_a_trial_whose_scoring_does_not_fit_is_out_of_memory_and_the_others_end(
    launcher: Launcher, tmp_path: Path
) -> None:
    """Rank 16,384 takes 64 kB of A x per token while it is scored, rank 2 eight bytes."""
    settings = {
        "arms": [{**LORA, "rank": [2, 16384], "targets": ["q_proj"]}],
        "seeds": [0],
        "max_group_size": None,
        "train": train_settings(),
        "evaluate": {"max_items": 200, "batch_tokens": 8192, "retention": ["pocket_cloze"]},
    }
    with pytest.raises(Interrupted):
        small_study(tmp_path, **settings).run(tmp_path / "out", StopsBeforeScoring())
    file = study_file(tmp_path, **settings)
    statuses, notes = limited_run(launcher, file, tmp_path / "out", "evaluate", 40 * 10**6)
    assert statuses == ["done", "oom"]
    assert any("not enough memory to score 2 trials" in note for note in notes)
    with Ledger.open(tmp_path / "out", write=False) as ledger:
        records, stored = ledger.load(), ledger.groups()
    small, wide = records.trials
    # A process that the system kills instead is not followed by one that scores both together.
    assert stored.groups == ((small.spec.trial_id,), (wide.spec.trial_id,))
    assert str(wide.failure).startswith("scoring ran out of memory: ")
    scored = {key[1:] for key in records.evals if key[0] == small.spec.trial_id}
    assert len(scored) == 4
    assert len([key for key in records.evals if key[0] == wide.spec.trial_id]) < 4


def test_new_trials_are_packed_among_themselves_and_changed_settings_cut_anew(
    tmp_path: Path,
) -> None:
    before = inputs_with(tmp_path, 2**40, seeds=[0, 1])
    after = inputs_with(tmp_path, 2**40, seeds=[0, 1, 2, 3])
    with Ledger.open(tmp_path / "out", write=True) as ledger:
        resolve_groups(ledger, before, before.trials)
        grown = resolve_groups(ledger, after, after.trials)
        assert [len(group) for group in grown] == [2, 2]
        assert grown[0] == before.groups[0]
        (again,) = resolve_groups(ledger, before, before.trials)  # seeds taken away again
        assert len(again) == 2
        other = inputs_with(tmp_path, 2**40, max_group_size=1)
        assert [len(group) for group in resolve_groups(ledger, other, other.trials)] == [1] * 4
