"""float16: gradients are scaled by powers of two, which change no result that float16 can hold."""

from pathlib import Path

import pytest
import torch
from tiny_models import base_of, tiny_llama
from toy_training import bits, full_trial, losses, protocol, stop_after, toy_rows, trained, trial

from rankscope.errors import Interrupted
from rankscope.train import trial_state
from rankscope.train.checkpoint import GroupCheckpoint
from rankscope.train.loop import GroupResult, train_group

TRIALS = (trial("a"), trial("b", rank=8, seed=1, dropout=0.1, kl_to_base=0.1))
STEPS = protocol(epochs=None, max_steps=4)


def in_float16(monkeypatch: pytest.MonkeyPatch, scale: float, steps: int = 4) -> GroupResult:
    monkeypatch.setattr(trial_state, "LOSS_SCALE", scale)
    return trained(TRIALS, protocol(epochs=None, max_steps=steps), dtype=torch.float16)


def distance(found: GroupResult, expected: GroupResult) -> float:
    """Largest difference of a trial's weights, relative to their norm."""
    pairs = zip(found.states, expected.states, strict=True)
    flat = [[torch.cat([p.detach().flatten() for p in s.parameters]) for s in of] for of in pairs]
    return max(float((ours - theirs).norm() / theirs.norm()) for ours, theirs in flat)


def test_small_gradients_survive_and_large_ones_repeat_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a scale some gradients are lost; one that is too large is halved until it fits."""
    reference = trained(TRIALS, STEPS)
    found = in_float16(monkeypatch, 2.0**16)
    assert [state.loss_scale for state in found.states] == [2.0**16] * 2
    assert distance(found, reference) < 2e-3
    unscaled = in_float16(monkeypatch, 1.0)
    assert distance(unscaled, reference) > 2 * distance(found, reference)
    halved = in_float16(monkeypatch, 2.0**30)
    assert distance(halved, reference) < 2e-3
    assert max(state.loss_scale for state in halved.states) < 2.0**30
    assert all(point.grad_norm < 10 for s in (*found.states, *halved.states) for point in s.losses)


def test_a_repeated_step_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit as from the scale that fitted; from another one, what float16 rounds differs."""
    halved = in_float16(monkeypatch, 2.0**30, steps=1)
    for place, state in enumerate(halved.states):
        assert state.loss_scale == 2.0 ** (30 - state.loss_scale_halvings) < 2.0**30
        fitted = in_float16(monkeypatch, state.loss_scale, steps=1)
        fitted.states[place].loss_scale_halvings = state.loss_scale_halvings
        assert bits(halved)[place] == bits(fitted)[place]


def test_a_halved_scale_doubles_after_steps_without_overflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By step: the scale that the first step was halved to, and twice that after two more."""
    seen = []
    monkeypatch.setattr(trial_state, "SCALE_PATIENCE", 2)
    monkeypatch.setattr(trial_state, "LOSS_SCALE", 2.0**30)
    trained(
        TRIALS[:1],
        protocol(epochs=None, max_steps=3),
        dtype=torch.float16,
        callbacks=[lambda *of: seen.append((of[2][0].loss_scale, of[2][0].loss_scale_halvings))],
    )
    fitting, halvings = seen[0]
    assert halvings > 0
    assert seen == [(fitting, halvings)] * 2 + [(2 * fitting, halvings)]


def test_the_scale_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = in_float16(monkeypatch, 2.0**30)
    checkpoint = GroupCheckpoint(tmp_path / "checkpoints" / "group")
    options = {"dtype": torch.float16, "checkpoint": checkpoint}
    with pytest.raises(Interrupted):
        trained(TRIALS, STEPS, should_stop=stop_after(2), **options)
    assert bits(trained(TRIALS, STEPS, **options)) == bits(whole)


def test_a_failure_names_float16_if_no_scale_helps() -> None:
    """Logits beyond 65,504, which float32 has."""
    model = tiny_llama()
    model.lm_head.weight.data *= 2.0**20
    base = base_of(model.half())
    (state,) = train_group(base, TRIALS[:1], toy_rows(), STEPS).states
    assert (state.loss_scale, state.loss_scale_halvings) == (1.0, 16)
    assert state.failure is not None
    assert state.failure.startswith("loss not finite at step 1 of 4, the loss scale halved 16 ")
    assert "dtype float32" in state.failure


def test_full_fine_tuning_is_scaled_and_what_no_scale_helps_has_diverged() -> None:
    spec = full_trial()
    expected = losses(trained([spec], STEPS).states[0])
    assert losses(trained([spec], STEPS, dtype=torch.float16).states[0]) == pytest.approx(
        expected, rel=1e-3
    )
    lost, kept = trained((trial("lost", lr=1e6), TRIALS[0]), STEPS, dtype=torch.float16).states
    assert lost.failure is not None
    assert kept.failure is None
    assert (kept.loss_scale, kept.loss_scale_halvings) == (2.0**16, 0)
