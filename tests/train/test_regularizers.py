"""Replay, KL to the base, early stopping: what each adds to a trial's loss, and to no other's."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from tiny_models import VOCABULARY, delta, tiny_llama
from toy_training import (
    GENERAL,
    REGULARIZED,
    REPLAY,
    assert_same_weights,
    full_trial,
    losses,
    protocol,
    score,
    toy_rows,
    trained as result_of,
    training_tolerance,
    trial,
)

from rankscope.data.encode import EncodedRow
from rankscope.data.sampler import ReplaySampler, RowSampler
from rankscope.models.base import Base
from rankscope.models.init_context import new_adapter
from rankscope.models.multi_lora import target_linears
from rankscope.records import TrialSpec
from rankscope.train.loop import StepCallback
from rankscope.train.loss import kl_divergences
from rankscope.train.trial_state import TrialState, _EarlyStop as EarlyStop
from rounding import rounding

ROWS = toy_rows()
SETTINGS = protocol(warmup_fraction=0)
RELATIVE = training_tolerance(8)
"""Two epochs of four steps."""


def trained(trials: list[TrialSpec], after_step: StepCallback | None = None) -> list[TrialState]:
    callbacks = [] if after_step is None else [after_step]
    return list(result_of(trials, SETTINGS, replay=GENERAL, callbacks=callbacks).states)


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

    def norm_of(rows: Sequence[EncodedRow], changes: dict[str, object]) -> float:
        replayed = spec.model_copy(update=changes)
        (found,) = result_of([replayed], settings, rows, replay={"general": general}).states
        return found.losses[0].grad_norm

    own, general = ROWS[:3], GENERAL["general"][:1]
    slow = gradient(own) * 0.75 + gradient(general) * 0.25  # three own rows and one general
    assert norm_of(own, REPLAY) == pytest.approx(float(slow.norm()), rel=1e-4)
    assert norm_of(own, {}) == pytest.approx(float(gradient(own).norm()), rel=1e-4)


def gradient(rows: Sequence[EncodedRow]) -> torch.Tensor:
    """Of the mean loss over labeled tokens, by every adapter matrix of ``trial("a")``."""
    model = tiny_llama()
    adapter = new_adapter(model, trial("a", lr=1e-3))
    for name, layer in target_linears(model, adapter.targets).items():
        a, b = adapter.a[name], adapter.b[name]

        def add(_: object, x: tuple[torch.Tensor], y: torch.Tensor, a=a, b=b) -> torch.Tensor:
            return y + adapter.scaling * (x[0] @ a.T) @ b.T

        layer.register_forward_hook(add)
    each = []
    for row in rows:
        logits = model(torch.tensor([row.input_ids])).logits[0, row.label_positions]
        targets = torch.tensor([row.input_ids[t + 1] for t in row.label_positions])
        each.append(F.cross_entropy(logits, targets, reduction="none"))
    torch.cat(each).mean().backward()
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
            linears = base.linears()
            weights.update({name: delta(adapter, name, linears[name].weight) for name in adapter.a})

    (found,) = trained([spec], look)
    base, tuned = tiny_llama(), tiny_llama()
    for name, change in weights.items():
        tuned.get_submodule(name).weight.data += change
    loss_terms = found.loss_terms(2)
    rows = loss_terms[-1].rows if replay else loss_terms[0].rows
    assert loss_terms[-1].is_replay == bool(replay)
    apart: list[float] = []
    for row in rows:
        p, q = (
            m(torch.tensor([row.input_ids])).logits[0, row.label_positions].log_softmax(-1)
            for m in (base, tuned)
        )
        apart += (p.exp() * (p - q)).sum(-1).tolist()
    point = next(p for p in found.penalties if p.step == 2)
    assert point.divergence == pytest.approx(sum(apart) / len(apart), rel=1e-3)
    assert point.divergence > 1e-4


# --- neighbors ---


def test_a_trial_in_a_group_is_what_it_is_alone() -> None:
    for found in trained(REGULARIZED):
        (alone,) = trained([found.spec])
        assert losses(found) == pytest.approx(losses(alone), rel=RELATIVE)
        assert_same_weights(found, alone, RELATIVE)
        for p, q in zip(found.penalties, alone.penalties, strict=True):
            assert (p.replay_loss or 0.0) == pytest.approx(q.replay_loss or 0.0, rel=RELATIVE)
            # A small difference of logarithms of about 1 / VOCABULARY, each rounded.
            error = rounding(1) * math.log(VOCABULARY)
            expected = pytest.approx(q.divergence or 0.0, rel=RELATIVE, abs=error)
            assert (p.divergence or 0.0) == expected


# --- early stopping ---


def test_the_first_of_equal_scores_is_kept_and_patience_counts_points() -> None:
    stop = EarlyStop(patience=2)
    parameter = torch.nn.Parameter(torch.zeros(2))
    for step, found in ((5, 0.3), (10, 0.5), (15, 0.5)):
        parameter.data.fill_(step)
        stop.observe(step, found, [parameter])
        stop.observe(step, 9.0, [parameter])  # the same point again changes nothing
        assert stop.stopped_after is None
    parameter.data.fill_(20)
    stop.observe(20, 0.4, [parameter])
    assert (stop.best_step, stop.best_score, stop.stopped_after) == (10, 0.5, 20)
    stop.restore_best([parameter])
    assert parameter.tolist() == [10, 10]


@pytest.mark.parametrize("kind", [trial, full_trial])
def test_a_trial_stops_with_the_weights_of_its_best_point_and_its_neighbors_do_not_notice(
    kind: Callable[..., TrialSpec],
) -> None:
    at: dict[int, list[torch.Tensor]] = {}

    def look(step: int, base: Base, states: Sequence[TrialState]) -> None:
        at[step] = [p.detach().clone() for p in states[0].parameters]
        score(step, base, states)

    stopping = kind("a", early_stop=2)
    neighbors = [] if stopping.is_full else [trial("b", seed=1, rank=8)]
    found, *others = trained([stopping, *neighbors], look)
    assert (found.failure, found.steps_done) == (None, 5)
    assert all(map(torch.equal, found.parameters, at[3]))
    assert not all(map(torch.equal, found.parameters, at[5]))
    for other, spec in zip(others, neighbors, strict=True):
        (alone,) = trained([spec])
        assert other.steps_done == 8
        assert_same_weights(other, alone, RELATIVE)


@pytest.mark.parametrize("kind", [trial, full_trial])
def test_weights_that_no_step_has_moved_are_no_best_ones(kind: Callable[..., TrialSpec]) -> None:
    """Warm-up begins at rate 0, so the first point is the base's, whatever its score."""

    def look(step: int, base: Base, states: Sequence[TrialState]) -> None:
        if states[0].is_active(step - 1):
            states[0].observe_score(step, 1 / step)

    settings = SETTINGS.model_copy(update={"warmup_fraction": 0.5})
    (found,) = result_of([kind("a", early_stop=2)], settings, callbacks=[look]).states
    assert found.failure is None
    assert found.early_stop is not None
    assert found.losses[0].lr == 0
    assert (found.early_stop.best_step, found.steps_done) == (2, 4)
