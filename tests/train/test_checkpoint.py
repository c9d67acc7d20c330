"""The stored state of a group: whole or absent, and training goes on from it bit for bit."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft_adapters import continued, peft_adapter
from tiny_models import base_of, tiny_llama
from toy_training import (
    DRAWING,
    EVERY_METHOD,
    GENERAL,
    REGULARIZED,
    REPLAY,
    bits,
    full_trial,
    peft_trial,
    protocol,
    score,
    stop_after,
    toy_rows,
    trained,
    trial,
)

from rankscope.errors import IntegrityError, Interrupted
from rankscope.hashing import SUMS
from rankscope.records import TrialSpec
from rankscope.train import checkpoint as checkpoint_module
from rankscope.train.checkpoint import COUNTERS, STATE, GroupCheckpoint
from rankscope.train.loop import GroupResult
from rankscope.train.trial_state import start_trials

ROWS = toy_rows()
NUM_STEPS = 8  # 20 rows, 6 a step, 2 epochs
LORA = (
    trial("a", dropout=0.3),
    trial("b", rank=16, lr=1e-3, dropout=0.1, seed=1, targets=("q_proj", "down_proj")),
)
GROUPS: dict[str, tuple[tuple[TrialSpec, ...], dict[str, Any]]] = {
    "lora": (LORA, {}),
    "full": ((full_trial(),), {}),
    "full in 8 bits": ((full_trial(),), {"optimizer": "adamw8bit"}),
    "every method": (EVERY_METHOD, {}),
    # The optimizer's moments are stored in another order in memory than a bucket's.
    "grouped": (EVERY_METHOD, {"lora_implementation": "grouped_mm"}),
    "one that leaves": ((trial("wild", lr=1e30), trial("b", seed=1, dropout=0.2)), {}),
    **{name: ((peft_trial(**settings),), {}) for name, settings in DRAWING.items()},
    "regularized": ((*REGULARIZED, trial("s", early_stop=2, kl_to_base=0.1, **REPLAY)), {}),
}


def run(name: str, **options: Any) -> GroupResult:
    trials, settings = GROUPS[name]
    settings = {"warmup_fraction": 0, **settings}
    return trained(trials, protocol(**settings), replay=GENERAL, callbacks=[score], **options)


@cache
def undisturbed(name: str) -> list[object]:
    return bits(run(name))


@pytest.mark.parametrize("stop_at", [1, 4, 7])
@pytest.mark.parametrize("name", GROUPS)
def test_stopped_at_any_step_it_ends_with_the_same_bits(
    tmp_path: Path, name: str, stop_at: int
) -> None:
    checkpoint = GroupCheckpoint(tmp_path)
    with pytest.raises(Interrupted, match=f"after step {stop_at} of"):
        run(name, checkpoint=checkpoint, should_stop=stop_after(stop_at))
    assert [path.name for path in tmp_path.iterdir()] == [f"step-{stop_at:09d}"]
    torch.rand(7)  # what other code draws in between must not matter
    assert bits(run(name, checkpoint=checkpoint)) == undisturbed(name)


def test_an_adapter_that_is_continued_resumes_bit_for_bit(tmp_path: Path) -> None:
    """The folder is read again and what was trained since is put in its place."""
    peft_adapter(tmp_path / "stored", use_dora=True)
    group = [trial("fresh"), continued(tmp_path / "stored", method="dora", dropout=0.1)]
    checkpoint = GroupCheckpoint(tmp_path / "checkpoint")
    with pytest.raises(Interrupted):
        trained(group, checkpoint=checkpoint, should_stop=stop_after(5))
    assert bits(trained(group, checkpoint=checkpoint)) == bits(trained(group))


def test_a_stop_while_resuming_trains_no_further_step(tmp_path: Path) -> None:
    """Callbacks return early then, so the next run must find this step to call them for it."""
    checkpoint = GroupCheckpoint(tmp_path)
    with pytest.raises(Interrupted):
        trained(LORA, checkpoint=checkpoint, should_stop=stop_after(4))
    called: list[int] = []
    options: dict[str, Any] = {"callbacks": [lambda step, *_: called.append(step)]}
    with pytest.raises(Interrupted, match=f"at step 4 of {NUM_STEPS}"):
        trained(LORA, checkpoint=checkpoint, should_stop=lambda: True, **options)
    assert called == [4]
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000004"]
    assert bits(trained(LORA, checkpoint=checkpoint)) == bits(trained(LORA))


@pytest.mark.parametrize("spec", [trial("a"), full_trial("b", early_stop=NUM_STEPS)])
def test_a_resumed_trial_keeps_nothing_of_the_file_in_memory(
    tmp_path: Path, spec: TrialSpec
) -> None:
    """Its tensors share the storage of the file: one that stays would keep all of it."""
    checkpoint = GroupCheckpoint(tmp_path)
    options: dict[str, Any] = {"callbacks": [lambda n, _, states: states[0].observe_score(n, 1.0)]}
    with pytest.raises(Interrupted):
        trained([spec], checkpoint=checkpoint, should_stop=stop_after(3), **options)
    stored = checkpoint.load()
    assert stored is not None
    _, tensors, meta = stored
    _, (state,) = start_trials(base_of(tiny_llama()), [spec], ROWS, protocol(), {})
    state.restore({n.split("/", 1)[1]: t for n, t in tensors.items()}, meta[spec.trial_id])
    moments = [tensor for found in state.optimizer.state.values() for tensor in found.values()]
    best = [] if state.early_stop is None else state.early_stop.weights
    assert len(best) == (len(state.parameters) if spec.is_full else 0)
    kept = {t.untyped_storage().data_ptr() for t in (*state.parameters, *moments, *best)}
    assert not kept & {t.untyped_storage().data_ptr() for t in tensors.values()}


@pytest.mark.parametrize(
    ("save_seconds", "saved"),
    [(0.0, [4, 8, 12, 16, 20]), (0.75, [4, 8, 12, 16, 20]), (1.5, [4, 19])],
)
def test_steps_between_two_checkpoints_take_the_interval_or_ten_times_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_seconds: float, saved: list[int]
) -> None:
    """A step takes a second of a clock of its own, and at least 4 lie between two checkpoints."""
    clock, steps = [0.0], []

    class Slow(GroupCheckpoint):
        def _publish(self, aside: Path, step: int, sums: str) -> None:
            clock[0] += save_seconds
            steps.append(step)
            super()._publish(aside, step, sums)

    def progress(*_: object) -> None:
        clock[0] += 1

    time = SimpleNamespace(monotonic=lambda: clock[0])
    monkeypatch.setattr(checkpoint_module, "time", time)
    slow, settings = Slow(tmp_path / "all" / "one"), protocol(max_steps=20, checkpoint_seconds=4.0)
    trained([trial()], settings, checkpoint=slow, progress=progress)
    assert steps == saved


# --- the files ---


@pytest.fixture
def checkpoint(tmp_path: Path) -> GroupCheckpoint:
    return GroupCheckpoint(tmp_path / "group")


def save(checkpoint: GroupCheckpoint, step: int) -> None:
    checkpoint.save(step, {"a/parameter/0": torch.full((3,), float(step))}, {"a": {"n": step}})


def names(checkpoint: GroupCheckpoint) -> list[str]:
    return [path.name for path in checkpoint.folder.iterdir()]


def test_the_newest_state_replaces_the_one_before(checkpoint: GroupCheckpoint) -> None:
    assert checkpoint.load() is None
    for step in (3, 11):
        save(checkpoint, step)
    found = checkpoint.load()
    assert found is not None
    assert (found[0], found[2]) == (11, {"a": {"n": 11}})
    assert torch.equal(found[1]["a/parameter/0"], torch.full((3,), 11.0))
    assert names(checkpoint) == ["step-000000011"]
    checkpoint.remove()
    assert not checkpoint.folder.exists()
    assert checkpoint.load() is None


def test_a_crash_between_writing_and_removing_leaves_the_newer(
    checkpoint: GroupCheckpoint,
) -> None:
    save(checkpoint, 5)
    old, kept = checkpoint.folder / "step-000000005", checkpoint.folder / "kept"
    old.rename(kept)
    save(checkpoint, 9)
    kept.rename(old)
    found = checkpoint.load()
    assert found is not None
    assert found[0] == 9
    for state in (old, checkpoint.folder / "step-000000009"):
        (state / SUMS).unlink()  # as a removal begins
    assert checkpoint.load() is None


def test_a_crash_while_a_state_of_the_same_step_is_saved_leaves_one(
    checkpoint: GroupCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that resumes may be stopped before its next step, and saves that step again."""
    (checkpoint.folder / "aside").mkdir(parents=True)
    (checkpoint.folder / "aside" / STATE).write_bytes(b"half")  # of another crash
    assert checkpoint.load() is None
    save(checkpoint, 5)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save(checkpoint, 5)
    monkeypatch.undo()
    assert checkpoint.load() is not None
    for _ in range(11):
        save(checkpoint, 5)
    assert names(checkpoint) == ["step-000000005.011"]
    assert checkpoint.load() is not None


@pytest.mark.parametrize("name", [STATE, COUNTERS, SUMS])
def test_an_altered_state_is_refused(checkpoint: GroupCheckpoint, name: str) -> None:
    save(checkpoint, 9)
    path = checkpoint.folder / "step-000000009" / name
    content = path.read_bytes()
    for altered in (content[:-1] + bytes([content[-1] ^ 1]), content[:20], b""):
        path.write_bytes(altered)
        with pytest.raises(IntegrityError, match=r"step-000000009: found altered .*remove"):
            checkpoint.load()
    path.write_bytes(content)
    assert checkpoint.load() is not None


def test_counters_come_back_to_the_bit(checkpoint: GroupCheckpoint) -> None:
    losses = [0.1 + 0.2, 5e-324, 1e300, float("inf"), -0.0]
    meta = {"a": {"losses": losses, "n": 2**70, "text": "\u00e9"}, "seconds": 1 / 3}
    checkpoint.save(1, {"a": torch.zeros(1)}, meta)
    found = checkpoint.load()
    assert found is not None
    assert repr(found[2]) == repr(meta)
