"""The stored state of a group: whole or absent, and training goes on from it bit for bit."""

from pathlib import Path

import pytest
import torch
from tiny_models import base_of, tiny_llama
from toy_training import full_trial, protocol, stop_after, toy_rows, trial

from rankscope.errors import IntegrityError, Interrupted
from rankscope.hashing import SUMS, sha256_tensors
from rankscope.records import TrialSpec
from rankscope.train.checkpoint import COUNTERS, STATE, GroupCheckpoint
from rankscope.train.loop import GroupResult, train_group
from rankscope.train.trial_state import start_trials

LORA = [
    trial("a", dropout=0.3),
    trial("b", rank=16, lr=1e-3, dropout=0.1, seed=1, targets=("q_proj", "down_proj")),
]
FULL = [full_trial()]
ROWS = toy_rows()
NUM_STEPS = 8  # 20 rows, 6 a step, 2 epochs


def train(trials: list[TrialSpec], folder: Path | None = None, stop_at: int = 0) -> GroupResult:
    return train_group(
        base_of(tiny_llama()),
        trials,
        ROWS,
        protocol(),
        checkpoint=GroupCheckpoint(folder) if folder is not None else None,
        should_stop=stop_after(stop_at),
    )


def everything(result: GroupResult) -> list[object]:
    """Weights by hash, optimizer, generator and every counter."""
    return [
        (state.spec, sha256_tensors(state.tensors()), state.counters()) for state in result.states
    ]


@pytest.mark.parametrize("trials", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("stop_at", range(1, NUM_STEPS))
def test_stopped_at_any_step_it_ends_with_the_same_bits(
    tmp_path: Path, trials: list[TrialSpec], stop_at: int
) -> None:
    with pytest.raises(Interrupted, match=f"after step {stop_at} of {NUM_STEPS}"):
        train(trials, tmp_path, stop_at)
    assert [path.name for path in tmp_path.iterdir()] == [f"step-{stop_at:09d}"]
    assert everything(train(trials, tmp_path)) == everything(train(trials))


def test_a_pause_without_a_checkpoint_is_no_end() -> None:
    result = train_group(base_of(tiny_llama()), LORA, ROWS, protocol(), pause_at=3)
    assert result.is_paused
    assert [state.steps_done for state in result.states] == [3, 3]


def test_a_stop_while_resuming_trains_no_further_step(tmp_path: Path) -> None:
    """Callbacks return early then, so the next run must find this step to call them for it."""
    with pytest.raises(Interrupted):
        train(LORA, tmp_path, 4)
    called = []
    with pytest.raises(Interrupted, match=f"at step 4 of {NUM_STEPS}"):
        train_group(
            base_of(tiny_llama()),
            LORA,
            ROWS,
            protocol(),
            checkpoint=GroupCheckpoint(tmp_path),
            callbacks=[lambda step, *_: called.append(step)],
            should_stop=lambda: True,
        )
    assert called == [4]
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000004"]
    assert everything(train(LORA, tmp_path)) == everything(train(LORA))


@pytest.mark.parametrize("spec", [trial("a"), full_trial("b", early_stop=NUM_STEPS)])
def test_a_resumed_trial_keeps_nothing_of_the_file_in_memory(
    tmp_path: Path, spec: TrialSpec
) -> None:
    """Its tensors share the storage of the file: one that stays would keep all of it."""
    checkpoint = GroupCheckpoint(tmp_path)
    train_group(
        base_of(tiny_llama()),
        [spec],
        ROWS,
        protocol(),
        checkpoint=checkpoint,
        callbacks=[lambda step, _, states: states[0].observe_score(step, 1.0)],
        pause_at=3,
    )
    stored = checkpoint.load()
    assert stored is not None
    _, (state,) = start_trials(base_of(tiny_llama()), [spec], ROWS, protocol(), {})
    own = {name.split("/", 1)[1]: tensor for name, tensor in stored[1].items()}
    state.restore(own, stored[2][spec.trial_id])
    moments = [tensor for found in state.optimizer.state.values() for tensor in found.values()]
    best = [] if state.early_stop is None else state.early_stop.weights
    assert len(best) == (len(state.parameters) if spec.is_full else 0)
    kept = {t.untyped_storage().data_ptr() for t in (*state.parameters, *moments, *best)}
    assert not kept & {t.untyped_storage().data_ptr() for t in stored[1].values()}


def test_a_trial_that_left_stays_out_after_resuming(tmp_path: Path) -> None:
    trials = [trial("wild", lr=1e30), trial("b", seed=1, dropout=0.2)]
    with pytest.raises(Interrupted):
        train(trials, tmp_path, 6)
    resumed = train(trials, tmp_path)
    assert resumed.states[0].failure is not None
    assert everything(resumed)[1] == everything(train(trials))[1]
    assert resumed.states[0].failure == train(trials).states[0].failure


# --- the files ---


def save(checkpoint: GroupCheckpoint, step: int) -> None:
    checkpoint.save(step, {"a/parameter/0": torch.full((3,), float(step))}, {"a": {"n": step}})


def test_the_newest_state_replaces_the_one_before(tmp_path: Path) -> None:
    checkpoint = GroupCheckpoint(tmp_path / "group")
    assert checkpoint.load() is None
    for step in (3, 11):
        save(checkpoint, step)
    found = checkpoint.load()
    assert found is not None
    assert (found[0], found[2]) == (11, {"a": {"n": 11}})
    assert torch.equal(found[1]["a/parameter/0"], torch.full((3,), 11.0))
    assert [path.name for path in (tmp_path / "group").iterdir()] == ["step-000000011"]
    checkpoint.remove()
    assert not (tmp_path / "group").exists()
    assert checkpoint.load() is None


def test_a_crash_between_writing_and_removing_leaves_the_newer(tmp_path: Path) -> None:
    checkpoint = GroupCheckpoint(tmp_path)
    save(checkpoint, 5)
    (tmp_path / "step-000000005").rename(tmp_path / "kept")
    save(checkpoint, 9)
    (tmp_path / "kept").rename(tmp_path / "step-000000005")
    found = checkpoint.load()
    assert found is not None
    assert found[0] == 9


def test_a_crash_while_a_state_of_the_same_step_is_saved_leaves_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that resumes may be stopped before its next step, and saves that step again."""
    checkpoint = GroupCheckpoint(tmp_path)
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
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000005.011"]
    assert checkpoint.load() is not None


@pytest.mark.parametrize("name", [STATE, COUNTERS, SUMS])
@pytest.mark.parametrize("change", ["a flipped bit", "cut", "empty"])
def test_an_altered_state_is_refused(tmp_path: Path, name: str, change: str) -> None:
    checkpoint = GroupCheckpoint(tmp_path)
    save(checkpoint, 9)
    path = tmp_path / "step-000000009" / name
    content = path.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    path.write_bytes({"a flipped bit": flipped, "cut": content[:20], "empty": b""}[change])
    with pytest.raises(IntegrityError, match=r"step-000000009: found altered .*remove"):
        checkpoint.load()
    path.write_bytes(content)
    assert checkpoint.load() is not None


def test_a_state_that_was_half_removed_is_none(tmp_path: Path) -> None:
    checkpoint = GroupCheckpoint(tmp_path)
    save(checkpoint, 9)
    (tmp_path / "step-000000009" / SUMS).unlink()
    assert checkpoint.load() is None


def test_counters_come_back_to_the_bit(tmp_path: Path) -> None:
    losses = [0.1 + 0.2, 5e-324, 1e300, float("inf"), -0.0]
    meta = {"a": {"losses": losses, "n": 2**70, "text": "\u00e9"}, "seconds": 1 / 3}
    GroupCheckpoint(tmp_path).save(1, {"a": torch.zeros(1)}, meta)
    found = GroupCheckpoint(tmp_path).load()
    assert found is not None
    assert repr(found[2]) == repr(meta)


def test_what_was_left_half_written_is_no_state(tmp_path: Path) -> None:
    (tmp_path / "aside").mkdir()
    (tmp_path / "aside" / STATE).write_bytes(b"half")
    checkpoint = GroupCheckpoint(tmp_path)
    assert checkpoint.load() is None
    save(checkpoint, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000002"]
