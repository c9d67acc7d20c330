"""Packs are cut once: whatever memory a later run finds, and after a real shortage of it."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import torch

from pocket_study import SETTINGS, small_study, study_file
from rankscope.inputs import StudyInputs
from rankscope.ledger import Ledger
from rankscope.packing import halve, hand_down, settled
from rankscope.train.checkpoint import PackCheckpoint, PackState

LORA = SETTINGS["arms"][0]


def inputs_with(folder: Path, room_bytes: int, **changes: object) -> StudyInputs:
    """The study as a machine with that much memory free reads it."""
    found = small_study(
        folder, **{"max_pack": None, "arms": [LORA], "seeds": [0, 1, 2, 3]} | changes
    )
    inputs = found.check()
    packing = dataclasses.replace(inputs.packing, room_bytes=room_bytes)
    packs = tuple(packing.packs(inputs.trials, inputs.config))
    return dataclasses.replace(inputs, packing=packing, packs=packs)


def sizes(inputs: StudyInputs) -> list[int]:
    return [len(pack) for pack in inputs.packs]


def test_packs_stay_when_another_amount_of_memory_is_free(tmp_path: Path) -> None:
    tight, wide = inputs_with(tmp_path, 1), inputs_with(tmp_path, 2**40)
    assert (sizes(tight), sizes(wide)) == ([1] * 4, [4])
    for first, second in ((tight, wide), (wide, tight)):
        with Ledger.open(tmp_path / str(sizes(first)), write=True) as ledger:
            assert settled(ledger, first).packs == first.packs
            assert settled(ledger, second).packs == first.packs


def test_new_trials_are_packed_among_themselves_and_changed_settings_cut_anew(
    tmp_path: Path,
) -> None:
    before = inputs_with(tmp_path, 2**40, seeds=[0, 1])
    after = inputs_with(tmp_path, 2**40, seeds=[0, 1, 2, 3])
    with Ledger.open(tmp_path / "out", write=True) as ledger:
        settled(ledger, before)
        grown = settled(ledger, after)
        assert sizes(grown) == [2, 2]
        assert grown.packs[0] == before.packs[0]
        assert sizes(settled(ledger, before)) == [2]  # seeds taken away again
        other = inputs_with(tmp_path, 2**40, max_pack=1)
        assert sizes(settled(ledger, other)) == [1] * 4


def test_halves_take_the_place_of_a_pack_and_its_state(tmp_path: Path) -> None:
    inputs = inputs_with(tmp_path, 2**40)
    (pack,) = inputs.packs
    with Ledger.open(tmp_path / "out", write=True) as ledger:
        settled(ledger, inputs)
        halves = halve(ledger, inputs, pack)
        assert settled(ledger, inputs).packs == halves
        assert halves[0] + halves[1] == pack
    whole, half = PackCheckpoint(tmp_path / "whole"), PackCheckpoint(tmp_path / "half")
    hand_down(whole, halves[0], half)
    assert half.load() is None
    tensors = {f"{t.trial_id}/parameter/0": torch.full((2,), float(i)) for i, t in enumerate(pack)}
    whole.save(PackState(5, tensors, {**{t.trial_id: i for i, t in enumerate(pack)}, "seconds": 9}))
    hand_down(whole, halves[1], half)
    state = half.load()
    assert state is not None
    assert state.step == 5
    assert {n: float(t[0]) for n, t in state.tensors.items()} == {
        f"{pack[i].trial_id}/parameter/0": float(i) for i in (2, 3)
    }
    assert state.meta == {pack[2].trial_id: 2, pack[3].trial_id: 3, "seconds": 9}


LIMITED = """
import json, resource, sys
import psutil, torch
import rankscope.screens
from rankscope.study import Study

class Listener:
    def __init__(self): self.notes = []
    def stage(self, name, total):
        # Training alone is short of memory: the limit is set when it begins, lifted after.
        size = psutil.Process().memory_info().vms + int(sys.argv[3])
        unlimited = resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_AS, (size if "train" in name else unlimited, unlimited))
    def advance(self, done, detail=""): pass
    def finish(self, detail=""): pass
    def note(self, text): self.notes.append(text)

torch.set_num_threads(1)
listener = Listener()
study = Study.load(sys.argv[1]).run(sys.argv[2], listener)
print(json.dumps([[t.status for t in study.trials], listener.notes]))
"""


def limited_run(file: Path, out: Path, more_bytes: int) -> tuple[list[str], list[str]]:
    """Statuses and notes of a run whose training may take so much more address space."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LIMITED, str(file), str(out), str(more_bytes)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    statuses, notes = json.loads(done.stdout.splitlines()[-1])
    return statuses, notes


def test_a_real_shortage_cuts_passes_and_the_study_goes_on(tmp_path: Path) -> None:
    """The kernel refuses memory: passes of 8 x 64 rows do not fit, smaller ones do."""
    train = {**SETTINGS["train"], "batch_size": 64, "gradient_accumulation": 8, "max_steps": 2}
    file = study_file(tmp_path, arms=[LORA], seeds=[0, 1], train={**train, "batch_tokens": 65536})
    needed = small_study(
        tmp_path, arms=[LORA], seeds=[0, 1], train={**train, "batch_tokens": 65536}
    )
    plan = needed.plan().packs[0]
    statuses, notes = limited_run(file, tmp_path / "out", plan.memory_bytes // 2)
    assert statuses == ["done", "done"]
    assert any("forward passes are cut" in note for note in notes)
