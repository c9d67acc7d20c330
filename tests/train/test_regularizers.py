"""Replay, KL to the base, early stopping: what each adds to a trial's loss, and to no other's."""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_models import VOCABULARY, base_of, tiny_llama
from toy_training import (
    assert_same_weights,
    full_trial,
    protocol,
    toy_rows,
    training_tolerance,
    trial,
)

from rankscope.data.encode import EncodedRow
from rankscope.data.sampler import ReplaySampler, RowSampler
from rankscope.errors import Interrupted
from rankscope.models.base import Base
from rankscope.models.lora import delta_weight
from rankscope.records import TrialSpec
from rankscope.train.checkpoint import GroupCheckpoint
from rankscope.train.loop import StepCallback, train_group
from rankscope.train.loss import kl_divergences
from rankscope.train.trial_state import EarlyStop, TrialState
from rounding import rounding

ROWS = toy_rows()
GENERAL = toy_rows(7, seed=1)
REPLAY = {"replay": "general", "replay_share": 0.25}
SETTINGS = protocol(warmup_fraction=0)
RELATIVE = training_tolerance(8)
"""Two epochs of four steps."""


def trained(
    trials: list[TrialSpec], after_step: StepCallback | None = None, epochs: int = 2
) -> list[TrialState]:
    result = train_group(
        base_of(tiny_llama()),
        trials,
        ROWS,
        SETTINGS.model_copy(update={"epochs": epochs}),
        replay={"general": GENERAL},
        callbacks=[] if after_step is None else [after_step],
    )
    return list(result.states)


# --- replay ---


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_replayed_rows_are_the_share_of_all_rows_after_every_step(share: float) -> None:
    own = RowSampler(20, 2, 3, seed=0)
    order = ReplaySampler(own, 7, share)
    seen = general = 0
    places: list[int] = []
    for step in range(40):
        seen += sum(map(len, own.step(step)))
        rows = order.step(step)
        general += len(rows)
        places += rows
        # Within the rounding of one row.
        assert abs(general - seen * share / (1 - share)) <= 0.5 + 1e-9
    for start in range(0, len(places) - 7, 7):  # every row once before any comes again
        assert sorted(places[start : start + 7]) == list(range(7))
    again = ReplaySampler(RowSampler(20, 2, 3, seed=0), 7, share)
    assert again.step(17) == order.step(17)  # whatever was asked before
    if share >= 0.25:
        assert ReplaySampler(RowSampler(20, 2, 3, seed=1), 7, share).step(0) != order.step(0)


def test_a_replaying_trial_sees_its_own_rows_as_ever() -> None:
    plain, replaying = trained([trial("a"), trial("b", **REPLAY)])
    # The first step's loss is the untuned model's on the same own rows.
    assert replaying.losses[0].loss == pytest.approx(plain.losses[0].loss, rel=1e-6)
    assert len(replaying.losses) == len(plain.losses) == 8
    assert replaying.num_tokens - replaying.num_replay_tokens == plain.num_tokens
    assert replaying.num_replay_tokens > 0
    assert plain.penalties == []
    # The short last step, of two rows, gets none this time.
    assert [p.step for p in replaying.penalties] == [0, 1, 2, 3, 4, 5, 6]


def test_each_kind_of_row_counts_by_its_rows() -> None:
    """The gradient of one step is (1 - p) of the own rows' and p of the general rows'."""
    spec = trial("a", lr=1e-3)
    settings = protocol(batch_size=3, gradient_accumulation=1, max_steps=1, warmup_fraction=0)
    settings = settings.model_copy(update={"schedule": "constant", "max_grad_norm": 1e9})

    def norm_of(rows: Sequence[EncodedRow], changes: dict[str, object]) -> tuple[float, float]:
        (found,) = train_group(
            base_of(tiny_llama()),
            [spec.model_copy(update=changes)],
            rows,
            settings,
            replay={"general": GENERAL[:1]},
        ).states
        point = found.losses[0]
        return point.grad_norm, point.loss

    own, general = ROWS[:3], GENERAL[:1]
    mixed, _ = norm_of(own, REPLAY)  # three own rows and one general
    slow = gradient(own) * 0.75 + gradient(general) * 0.25
    assert mixed == pytest.approx(float(slow.norm()), rel=1e-4)
    assert norm_of(own, {})[0] == pytest.approx(float(gradient(own).norm()), rel=1e-4)


def gradient(rows: Sequence[EncodedRow]) -> torch.Tensor:
    """Of the mean loss over labeled tokens, by every adapter matrix of ``trial("a")``."""
    from rankscope.models.init_context import new_adapter
    from rankscope.models.multi_lora import target_linears

    model = tiny_llama()
    adapter = new_adapter(model, trial("a", lr=1e-3))
    handles = []
    for name, layer in target_linears(model, adapter.targets).items():
        a, b = adapter.a[name], adapter.b[name]

        def add(_: object, x: tuple[torch.Tensor], y: torch.Tensor, a=a, b=b) -> torch.Tensor:
            return y + adapter.scaling * (x[0] @ a.T) @ b.T

        handles.append(layer.register_forward_hook(add))
    losses = []
    for row in rows:
        logits = model(torch.tensor([row.input_ids])).logits[0]
        for t, labeled in enumerate(row.is_label):
            if labeled:
                losses.append(F.cross_entropy(logits[t - 1], torch.tensor(row.input_ids[t])))
    torch.stack(losses).mean().backward()
    return torch.cat([p.grad.flatten() for p in adapter.parameters() if p.grad is not None])


# --- KL ---


def test_divergences_and_their_gradient_are_kl_divs() -> None:
    generator = torch.Generator().manual_seed(3)
    # 70,000 columns: 29 rows are a block, so 64 rows cross its edge twice.
    logits = 3 * torch.randn(64, 70_000, generator=generator)
    base = 3 * torch.randn(64, 70_000, generator=generator)
    weights = torch.rand(64, generator=generator)
    fast = logits.clone().requires_grad_()
    found = kl_divergences(fast, base)
    (found * weights).sum().backward()
    slow = logits.double().requires_grad_()
    expected = F.kl_div(
        slow.log_softmax(1), base.double().log_softmax(1), reduction="none", log_target=True
    ).sum(1)
    (expected * weights).sum().backward()
    # Each divergence is a sum over 70,000 columns, of terms that partly cancel.
    share, apart = base.double().softmax(1), base.double().log_softmax(1) - slow.log_softmax(1)
    terms = (share * apart).detach().abs().sum(1)
    bound = rounding(70_000) * float((terms / expected.detach()).max())
    assert found.tolist() == pytest.approx(expected.tolist(), rel=bound)
    assert fast.grad is not None
    assert slow.grad is not None
    assert float((fast.grad.double() - slow.grad).norm()) <= bound * float(slow.grad.norm())


@pytest.mark.parametrize("replay", [{}, REPLAY], ids=["own rows", "replayed rows"])
def test_the_recorded_divergence_is_that_of_the_merged_model(replay: dict[str, object]) -> None:
    """Of the weights before the third step, on that step's rows, by a plain forward pass."""
    spec = trial("a", kl_to_base=0.5, lr=1e-2, **replay)
    weights: dict[str, torch.Tensor] = {}

    def look(step: int, base: Base, states: Sequence[TrialState]) -> None:
        adapter = states[0].adapter
        assert adapter is not None
        if step == 2:
            weights.update({name: delta_weight(adapter, name).clone() for name in adapter.a})

    (found,) = trained([spec], look)
    base, tuned = tiny_llama(), tiny_llama()
    for name, delta in weights.items():
        tuned.get_submodule(name).weight.data += delta
    loss_terms = found.loss_terms(2, ROWS)
    rows = loss_terms[-1].rows if replay else loss_terms[0].rows
    assert loss_terms[-1].is_replay == bool(replay)
    apart = []
    for row in rows:
        logits = [m(torch.tensor([row.input_ids])).logits[0].log_softmax(-1) for m in (base, tuned)]
        for t, labeled in enumerate(row.is_label):
            if labeled:
                p, q = logits[0][t - 1], logits[1][t - 1]
                apart.append(float((p.exp() * (p - q)).sum().detach()))
    point = next(p for p in found.penalties if p.step == 2)
    assert point.divergence == pytest.approx(sum(apart) / len(apart), rel=1e-3)
    assert point.divergence > 1e-4


@pytest.mark.parametrize("kind", [trial, full_trial])
def test_kl_holds_the_model_at_the_base(kind: Callable[..., TrialSpec]) -> None:
    weak, strong = (trained([kind("a", kl_to_base=w)], epochs=10)[0] for w in (1e-9, 30.0))
    assert weak.penalties[0].divergence == pytest.approx(0, abs=1e-6)  # B = 0: it is the base
    assert strong.penalties[-1].divergence is not None
    assert weak.penalties[-1].divergence is not None
    assert strong.penalties[-1].divergence < 0.5 * weak.penalties[-1].divergence


# --- neighbors ---

GROUP = [
    trial("plain", rank=2),
    trial("replay", rank=8, **REPLAY),
    trial("kl", kl_to_base=0.5),
    trial("both", rank=2, seed=1, dropout=0.2, kl_to_base=0.5, **REPLAY),
    trial("last", rank=16, seed=1),
]


def test_a_trial_in_a_group_is_what_it_is_alone() -> None:
    for found in trained(GROUP):
        (alone,) = trained([found.spec])
        assert [p.loss for p in found.losses] == pytest.approx(
            [p.loss for p in alone.losses], rel=RELATIVE
        )
        assert_same_weights(found, alone, RELATIVE)
        for p, q in zip(found.penalties, alone.penalties, strict=True):
            assert (p.replay_loss or 0.0) == pytest.approx(q.replay_loss or 0.0, rel=RELATIVE)
            # A small difference of logarithms of about 1 / VOCABULARY, each rounded.
            error = rounding(1) * math.log(VOCABULARY)
            expected = pytest.approx(q.divergence or 0.0, rel=RELATIVE, abs=error)
            assert (p.divergence or 0.0) == expected


def test_small_passes_and_recomputed_layers_give_the_same() -> None:
    whole = trained(GROUP)
    for settings in ({"batch_tokens": 64}, {"gradient_checkpointing": True}):
        found = train_group(
            base_of(tiny_llama()),
            GROUP,
            ROWS,
            SETTINGS.model_copy(update=settings),
            replay={"general": GENERAL},
        ).states
        for one, other in zip(found, whole, strict=True):
            assert_same_weights(one, other, RELATIVE)


# --- early stopping ---


def test_the_first_of_equal_scores_is_kept_and_patience_counts_points() -> None:
    stop = EarlyStop(patience=2)
    parameter = torch.nn.Parameter(torch.zeros(2))
    for step, score in ((5, 0.3), (10, 0.5), (15, 0.5)):
        parameter.data.fill_(step)
        stop.observe(step, score, [parameter])
        stop.observe(step, 9.0, [parameter])  # the same point again changes nothing
        assert stop.stopped_after is None
    parameter.data.fill_(20)
    stop.observe(20, 0.4, [parameter])
    assert (stop.best_step, stop.best_score, stop.stopped_after) == (10, 0.5, 20)
    stop.restore_best([parameter])
    assert parameter.tolist() == [10, 10]


SCORES = {2: 0.4, 3: 0.6, 4: 0.5, 5: 0.55, 6: 0.9}
"""Made up; the trial must not come to see the last."""


def told(step: int, base: Base, states: Sequence[TrialState]) -> None:
    """Tells every trial with an early stop a made-up score."""
    for state in states:
        if state.early_stop is not None and step in SCORES and state.is_active(step - 1):
            state.early_stop.observe(step, SCORES[step], state.parameters)


@pytest.mark.parametrize("kind", [trial, full_trial])
def test_a_trial_stops_and_has_the_weights_of_its_best_point(
    kind: Callable[..., TrialSpec],
) -> None:
    at: dict[int, list[torch.Tensor]] = {}

    def look(step: int, base: Base, states: Sequence[TrialState]) -> None:
        at[step] = [p.detach().clone() for p in states[0].parameters]
        told(step, base, states)

    (found,) = trained([kind("a", early_stop=2)], look)
    assert found.failure is None
    assert found.steps_done == 5
    assert all(torch.equal(p, q) for p, q in zip(found.parameters, at[3], strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(found.parameters, at[5], strict=True))


@pytest.mark.parametrize("kind", [trial, full_trial])
def test_weights_that_no_step_has_moved_are_no_best_ones(kind: Callable[..., TrialSpec]) -> None:
    """Warm-up begins at rate 0, so the first point is the base's, whatever its score."""

    def look(step: int, base: Base, states: Sequence[TrialState]) -> None:
        if states[0].is_active(step - 1):
            states[0].observe_score(step, 1 / step)

    settings = SETTINGS.model_copy(update={"warmup_fraction": 0.5})
    result = train_group(
        base_of(tiny_llama()), [kind("a", early_stop=2)], ROWS, settings, callbacks=[look]
    )
    (found,) = result.states
    assert found.failure is None
    assert found.early_stop is not None
    assert found.losses[0].lr == 0
    assert (found.early_stop.best_step, found.steps_done) == (2, 4)


def test_the_neighbors_of_a_trial_that_stops_do_not_notice() -> None:
    stopping, other = trained([trial("a", early_stop=2), trial("b", seed=1, rank=8)], told)
    (alone,) = trained([other.spec])
    assert (stopping.steps_done, other.steps_done) == (5, 8)
    assert_same_weights(other, alone, RELATIVE)


def test_stopped_over_and_over_it_comes_to_the_same_end(tmp_path: Path) -> None:
    """After every step, with everything a checkpoint has to hold."""
    group = [*GROUP, trial("stop", early_stop=2, kl_to_base=0.1, **REPLAY)]
    whole = trained(group, told)
    for _ in range(20):
        asked = itertools.count()  # first before a step, if it resumes
        try:
            result = train_group(
                base_of(tiny_llama()),
                group,
                ROWS,
                SETTINGS,
                replay={"general": GENERAL},
                checkpoint=GroupCheckpoint(tmp_path),
                callbacks=[told],
                should_stop=lambda asked=asked: next(asked) > 0,
            )
        except Interrupted:
            continue
        break
    for one, other in zip(result.states, whole, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(one.parameters, other.parameters, strict=True))
        assert one.counters() == other.counters()
    assert math.isfinite(result.seconds)
