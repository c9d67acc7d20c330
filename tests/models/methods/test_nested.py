"""Nested LoRA: P by hand numbers, training against plain PyTorch, slices in plain PEFT."""

from functools import cache
from pathlib import Path

import pytest
import torch
from architectures import alone
from peft import PeftModel
from tiny_models import IDS, assert_close, base_of, logits_of, tiny_llama
from torch import Tensor, nn
from toy_training import ATTENTION, plain_losses, protocol, toy_rows, training_tolerance, trial

from rankscope.models.base import Base
from rankscope.models.init_context import new_adapter
from rankscope.models.lora import Adapter
from rankscope.models.methods import get_method
from rankscope.models.methods.nested import NestedMethod
from rankscope.records import TrialSpec
from rankscope.train.loop import train_group

STEPS = 12
PROTOCOL = protocol(max_steps=STEPS)
ROWS = toy_rows()
RELATIVE = training_tolerance(STEPS)
RANKS = ((2, 8.0), (3, 3.0), (8, 16.0))
"""Scalings 4, 1 and 2."""


def slice_of_run(rank: int, **changes: object) -> TrialSpec:
    alpha = dict(RANKS)[rank]
    name = f"n{rank}"
    return trial(name, method="nested", rank=rank, alpha=alpha, nested=RANKS, **changes)


NEIGHBORS = (trial("l", rank=4), trial("d", method="dora", rank=8, dropout=0.1, seed=1))


@cache
def trained() -> tuple[Base, dict[str, Adapter], list[float]]:
    """The run's largest trial between two neighbors: base, adapters, losses."""
    base = base_of(tiny_llama())
    specs = [NEIGHBORS[0], slice_of_run(8, targets=(*ATTENTION, "down_proj")), NEIGHBORS[1]]
    result = train_group(base, specs, ROWS, PROTOCOL)
    assert all(state.failure is None for state in result.states)
    adapters = {s.spec.trial_id: s.adapter for s in result.states if s.adapter is not None}
    return base, adapters, [point.loss for point in result.states[1].losses]


@pytest.mark.parametrize(
    ("ranks", "p"),
    [
        (((1, 2.0), (2, 4.0), (4, 8.0)), [6, 4, 2, 2]),  # s = 2 at each rank
        (((1, 4.0), (2, 4.0), (4, 4.0)), [7, 3, 1, 1]),  # s = 4, 2, 1
        (((4, 8.0),), [2, 2, 2, 2]),  # one rank: plain LoRA
    ],
)
def test_p_adds_the_scalings_of_the_slices_that_have_a_component(
    ranks: tuple[tuple[int, float], ...], p: list[float]
) -> None:
    spec = trial(method="nested", rank=4, alpha=ranks[-1][1], nested=ranks)
    assert NestedMethod().diagonal(spec).tolist() == p


class SlowNested(nn.Module):
    """W x + the update of every slice, each computed by itself from the same A and B."""

    def __init__(self, linear: nn.Linear, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.linear, self.a, self.b = linear, nn.Parameter(a.clone()), nn.Parameter(b.clone())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        for rank, alpha in RANKS:
            y = y + alpha / rank * (x @ self.a[:rank].T @ self.b[:, :rank].T)
        return y


def test_training_equals_plain_pytorch() -> None:
    _, adapters, losses = trained()
    spec = slice_of_run(8, targets=(*ATTENTION, "down_proj"))
    model = tiny_llama().requires_grad_(False)
    start = new_adapter(model, spec)
    modules = dict(model.named_modules())
    layers = {n: SlowNested(modules[n], start.a[n].data, start.b[n].data) for n in start.a}
    for name, layer in layers.items():
        parent, _, leaf = name.rpartition(".")
        setattr(modules[parent], leaf, layer)
    rates = {p: spec.lr for layer in layers.values() for p in (layer.a, layer.b)}
    slow = plain_losses(spec, model, rates, ROWS, PROTOCOL)
    assert losses == pytest.approx(slow, rel=RELATIVE)
    for name, layer in layers.items():
        assert_close(adapters["n8"].a[name], layer.a, RELATIVE)
        assert_close(adapters["n8"].b[name], layer.b, RELATIVE)


@pytest.mark.parametrize("rank", [2, 3, 8])
def test_a_slice_is_an_ordinary_adapter(rank: int, tmp_path: Path) -> None:
    base, adapters, _ = trained()
    spec, whole = slice_of_run(rank), adapters["n8"]
    get_method("nested").save(whole, spec, base.record, tmp_path)
    fresh = base_of(tiny_llama())
    get_method("nested").load(fresh, spec, tmp_path)
    stored = fresh.multi_lora.adapters[f"n{rank}"]
    assert (stored.rank, stored.scaling, stored.method) == (rank, spec.scaling, "lora")
    for name in whole.a:
        assert torch.equal(stored.a[name], whole.a[name][:rank])
        assert torch.equal(stored.b[name], whole.b[name][:, :rank])
    ours = logits_of(fresh, f"n{rank}")
    assert_close(alone(PeftModel.from_pretrained(tiny_llama(), str(tmp_path)).eval(), IDS), ours)
    if rank == 8:  # what learning curves score while it trains: without P
        with base.multi_lora.dropout_off():
            assert_close(logits_of(base, "n8"), ours)
