"""Grouped products against the loop over adapters, which ``test_multi_lora.py`` tests."""

import random
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from tiny_models import base_of, tiny_llama
from torch import Tensor, nn
from toy_training import (
    ATTENTION,
    EVERY_METHOD,
    MLP,
    losses,
    protocol,
    toy_rows,
    trained,
    training_tolerance,
    trial,
)

from rankscope.errors import UserError
from rankscope.models import grouped_lora
from rankscope.models.grouped_lora import (
    _cut_into_runs as cut_into_runs,
    choose_lora_implementation,
    computes_groups_right,
)
from rankscope.models.lora import Adapter
from rankscope.models.multi_lora import AdapterSpan, MultiLora
from rankscope.train.loop import GroupResult, train_group
from rankscope.train.memory import _grouped_bytes as grouped_bytes
from rounding import rounding


def hostile_grouped_mm(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
    """Grouped products in float32, rounded once, of what Hopper's kernel accepts and nothing else.

    Rows after the last offset are NaN, where the kernel leaves whatever was in memory.
    """
    assert a.dtype == b.dtype == torch.bfloat16
    assert offs.dtype == torch.int32
    assert offs.ndim == 1
    assert offs.device == a.device
    ends = offs.tolist()
    assert 0 < len(ends) < 1024
    assert all(before < after for before, after in pairwise([0, *ends])), "an empty group"
    for x in (a, b):
        check_alignment(x)
    bounds = list(pairwise([0, *ends]))
    if b.ndim == 3:  # tokens x weights
        assert b.shape[:2] == (len(ends), a.shape[1])
        assert ends[-1] <= len(a)
        out = torch.full((len(a), b.shape[2]), torch.nan)
        for (start, stop), weight in zip(bounds, b.float(), strict=True):
            out[start:stop] = a[start:stop].float() @ weight
    else:  # the gradient of weights: sums over tokens
        assert a.shape[1] == len(b)
        assert ends[-1] <= len(b)
        out = torch.stack([a[:, s:e].float() @ b[s:e].float() for s, e in bounds])
    return out.to(a.dtype)


def check_alignment(x: Tensor) -> None:
    """One of the last two dimensions is contiguous, and everything begins at 16 bytes."""
    rows, columns = x.stride()[-2:]
    assert 1 in (rows, columns), f"strides {x.stride()}"
    wide = [s for s in x.stride() if s != 1]
    assert all(s * x.itemsize % 16 == 0 for s in wide), f"strides {x.stride()}"
    assert x.storage_offset() * x.itemsize % 16 == 0, f"offset {x.storage_offset()}"


CPU = torch.device("cpu")
IN, OUT = 40, 24
BF16_LOSS = 1e-3
"""Largest relative difference of a loss, as in ``train/test_parity.py``."""
ROUNDED = 8
"""Numbers that are rounded to the dtype on the way to any result: W x, A', B', A' x, B' A' x, their
sum; backward as many."""


class World:
    """One layer with adapters of many ranks, and a pass through it, drawn from a seed."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        rng, draws = random.Random(seed), torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draws)

        linear = nn.Linear(IN, OUT, dtype=dtype).requires_grad_(False)
        linear.weight.copy_(draw(OUT, IN))
        self.model = nn.Sequential(linear)
        self.multi_lora = MultiLora(self.model)
        self.dtype = dtype
        for i in range(rng.randint(1, 9)):
            rank = rng.choice((1, 2, 3, 4, 8, 9, 16, 64, 255, 256, rng.randint(1, 256)))
            starts = rng.random() < 0.25
            self.multi_lora.attach(
                Adapter(
                    name=str(i), rank=rank, alpha=1.0, scaling=rng.choice((0.3, 1.0, 2.0)),
                    targets=("0",),
                    method="pissa" if starts else rng.choice(("lora", "rslora", "lora+")),
                    a={"0": nn.Parameter(draw(rank, IN))}, b={"0": nn.Parameter(draw(OUT, rank))},
                    initial_factors={"0": (draw(rank, IN), draw(OUT, rank))} if starts else {},
                )
            )  # fmt: skip
        names = [*self.multi_lora.adapters]
        if rng.random() < 0.5:
            rng.shuffle(names)
        else:  # as the loop of training orders them
            self.multi_lora.group(dtype)
            names.sort(key=self.multi_lora.place)
            self.multi_lora.ungroup()
        spans: list[AdapterSpan] = []
        for name in [*names, None, rng.choice(names)]:
            start = spans[-1].stop if spans else 0
            spans.append(AdapterSpan(name, start, start + rng.choice((0, 1, 2, 7, 8, 33))))
        spans.append(AdapterSpan(None, spans[-1].stop, spans[-1].stop + 1))
        self.spans = tuple(spans)
        self.multi_lora.training = True
        tokens = spans[-1].stop
        self.x, self.grad = draw(1, tokens, IN).to(dtype), draw(1, tokens, OUT).to(dtype)

    def results(self) -> dict[str, Tensor]:
        """Output and every gradient of two equal passes."""
        adapters = self.multi_lora.adapters
        for adapter in adapters.values():
            for parameter in adapter.parameters():
                parameter.grad = None
        with self.multi_lora.optimizer_step():
            for _ in range(2):
                x = self.x.clone().requires_grad_()
                with self.multi_lora.routing(self.spans, ()):
                    y = self.model(x)
                y.backward(self.grad)
        assert x.grad is not None
        found = {"y": y.detach()[0], "x": x.grad[0]}
        for name, adapter in adapters.items():
            for letter, parameter in (("A", adapter.a["0"]), ("B", adapter.b["0"])):
                none = torch.zeros_like(parameter)
                found[f"{letter} {name}"] = none if parameter.grad is None else parameter.grad
        return found

    def grouped(self) -> dict[str, Tensor]:
        """The same, grouped."""
        self.multi_lora.group(self.dtype)
        try:
            return self.results()
        finally:
            self.multi_lora.ungroup()

    def gap(self) -> float:
        """Largest distance between groups and loop, of a result over its norm."""
        expected, found = self.results(), self.grouped()
        return max(
            float((found[key] - part).norm() / (part.norm() + 1e-30))
            for key, part in expected.items()
        )


def counted_products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of groups of each product from now on, by the strict kernel."""
    calls: list[int] = []

    def counted(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
        calls.append(len(offs))
        return hostile_grouped_mm(a, b, offs=offs)

    monkeypatch.setattr(F, "grouped_mm", counted)
    return calls


def test_groups_give_what_the_loop_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 by torch's own kernel, and by the strict one."""
    for seed in range(25):
        assert World(seed, torch.float32).gap() <= rounding(2 * (256 + IN))
        assert World(seed, torch.bfloat16).gap() <= ROUNDED * torch.finfo(torch.bfloat16).eps / 2
        with monkeypatch.context() as patch:
            patch.setattr(F, "grouped_mm", hostile_grouped_mm)
            gap = World(seed, torch.bfloat16).gap()
            assert gap <= ROUNDED * torch.finfo(torch.bfloat16).eps / 2


def test_the_estimate_counts_what_the_buckets_hold() -> None:
    for seed in range(10):
        world = World(seed, torch.bfloat16)
        adapters = world.multi_lora.adapters.values()
        own = sum(2 * p.nbytes for adapter in adapters for p in adapter.parameters())
        world.multi_lora.group(torch.bfloat16)
        assert world.multi_lora.grouped is not None
        held = sum(
            block.nbytes
            for x in world.multi_lora.grouped.buckets
            for block in (x.a, x.b, x.a_grad, x.b_grad, x.a_copy, x.b_copy)
        )
        assert held - own == sum(grouped_bytes(adapter, torch.bfloat16) for adapter in adapters)


def test_runs_are_neighbors_in_the_pass_and_in_the_bucket() -> None:
    places = {"a": (8, 0), "b": (8, 1), "c": (8, 2), "d": (16, 0)}

    def cut(*spans: tuple[str | None, int, int]) -> tuple[list[object], object]:
        runs, rest = cut_into_runs(places, [AdapterSpan(*span) for span in spans])
        return [(run.rank, run.first, run.start, run.counts) for run in runs], rest

    rest = (None, 9, 10), ("x", 10, 11)
    spans = [("a", 0, 3), ("b", 3, 5), ("c", 5, 5), ("d", 5, 9), *rest, ("b", 11, 12)]
    assert cut(*spans) == ([(8, 0, 0, [3, 2]), (16, 0, 5, [4]), (8, 1, 11, [1])], rest)
    # c has no tokens, and a gap in the bucket or in the pass ends a run.
    assert cut(("a", 0, 3), ("c", 3, 5)) == ([(8, 0, 0, [3]), (8, 2, 3, [2])], ())
    assert cut(("a", 0, 3), ("b", 4, 5)) == ([(8, 0, 0, [3]), (8, 1, 4, [1])], ())


def test_a_product_has_fewer_than_1024_groups() -> None:
    places = {str(i): (8, i) for i in range(2100)}
    runs, _ = cut_into_runs(places, [AdapterSpan(str(i), i, i + 1) for i in range(2100)])
    assert [len(run.counts) for run in runs] == [1023, 1023, 54]


def test_products_do_not_grow_with_the_number_of_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six per bucket and matrix, where a loop needs 54 x 14 x 6 = 4,536; the gradient of the first
    layer's input, which q, k and v share, is not needed."""
    choose_lora_implementation("grouped_mm", CPU, torch.bfloat16)  # once, and remembered
    calls = counted_products(monkeypatch)
    base = base_of(tiny_llama().bfloat16())
    ranks = [8, 1, 16, 24, 30, 64, 40, 3, 13]
    group = [
        trial(str(i), rank=ranks[i % 9], seed=i, targets=(*ATTENTION, *MLP)) for i in range(54)
    ]
    one_pass = protocol(
        max_steps=1, batch_size=1, gradient_accumulation=1, batch_tokens=10**6,
        warmup_fraction=0.0, lora_implementation="grouped_mm",
    )  # fmt: skip
    train_group(base, group, toy_rows(5), one_pass)
    assert len(calls) == 6 * (6 * 14 - 3) == 486
    assert sum(calls) == 54 * (6 * 14 - 3)


# --- training

GROUP = (
    *EVERY_METHOD,
    trial("wild", rank=2, lr=1e30, seed=9),
    trial("kl", rank=8, lr=1e-3, seed=10, kl_to_base=0.5),
)
"""``wild`` leaves when its loss is not finite. In the tiny model q_proj is 64 x 64, k_proj 32 x 64;
lm_head has 300 outputs, which are not whole 16 bytes."""


def trained_by(
    implementation: str, dtype: torch.dtype = torch.float32, **settings: object
) -> GroupResult:
    settings = {"epochs": 0.5, "lora_implementation": implementation, **settings}
    return trained(GROUP, protocol(**settings), toy_rows(50), dtype)


def gaps(found: GroupResult, expected: GroupResult) -> tuple[float, float]:
    """Largest relative difference of a loss, and of a parameter by its norm."""
    apart, weights = [], []
    for ours, theirs in zip(found.states, expected.states, strict=True):
        assert ours.failure == theirs.failure
        assert (ours.failure is None) == (ours.spec.trial_id != "wild")
        if ours.failure is None:
            pairs = zip(losses(ours), losses(theirs), strict=True)
            apart += [abs(a - b) / b for a, b in pairs]
            for a, b in zip(ours.parameters, theirs.parameters, strict=True):
                assert a.is_contiguous()
                weights.append(float((a - b).detach().norm() / b.detach().norm()))
    return max(apart), max(weights)


@pytest.fixture(scope="module")
def by_loop() -> GroupResult:
    return trained_by("loop")


@pytest.mark.parametrize(
    "settings", [{}, {"batch_tokens": 64}, {"gradient_checkpointing": True}], ids=str
)
def test_a_group_trains_as_in_the_loop(by_loop: GroupResult, settings: dict[str, object]) -> None:
    """Methods, ranks and targets mixed; some of them are left to the loop."""
    assert max(gaps(trained_by("grouped_mm", **settings), by_loop)) <= training_tolerance(25)


def test_a_group_trains_in_bfloat16_as_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted_products(monkeypatch)
    found, expected = (
        trained_by(name, torch.bfloat16, epochs=0.25, warmup_fraction=0.0)
        for name in ("grouped_mm", "loop")
    )
    loss, _ = gaps(found, expected)
    assert loss < BF16_LOSS
    assert max(calls) >= 3  # one, wild and lora+ share a bucket


def test_scoring_during_training_uses_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """As scoring after it does."""
    world = World(3, torch.float32)
    world.multi_lora.group(torch.float32)
    monkeypatch.delattr(F, "grouped_mm")
    with world.multi_lora.routing(world.spans, ()):
        with world.multi_lora.dropout_off(), torch.inference_mode():
            world.model(world.x)
        with pytest.raises(AttributeError, match="grouped_mm"):
            world.model(world.x)


# --- which implementation a device gets


@pytest.mark.parametrize(
    ("wanted", "device", "capability", "dtype", "is_right", "chosen"),
    [
        ("auto", "cuda", (9, 0), torch.bfloat16, True, "grouped_mm"),
        ("loop", "cuda", (9, 0), torch.bfloat16, True, "loop"),
        ("auto", "cuda", (9, 0), torch.float32, True, "loop"),
        ("grouped_mm", "cuda", (9, 0), torch.float32, True, "needs bfloat16 on CUDA"),
        ("auto", "cuda", (8, 6), torch.bfloat16, True, "loop"),
        ("grouped_mm", "cuda", (8, 6), torch.bfloat16, True, r"capability 9\.x or 10\.x"),
        ("auto", "cuda", (10, 0), torch.bfloat16, False, "loop"),
        ("auto", "cuda", (12, 0), torch.bfloat16, True, "loop"),
        ("grouped_mm", "cuda", (10, 0), torch.bfloat16, False, "wrong numbers"),
        ("auto", "cpu", (9, 0), torch.bfloat16, True, "loop"),
        ("grouped_mm", "cpu", (9, 0), torch.float32, True, "grouped_mm"),
        ("auto", "mps", (9, 0), torch.float32, True, "loop"),
        ("grouped_mm", "mps", (9, 0), torch.float32, True, "needs bfloat16 on CUDA"),
    ],
)
def test_groups_are_chosen_on_hopper_in_bfloat16_alone(
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    device: str,
    capability: tuple[int, int],
    dtype: torch.dtype,
    is_right: bool,
    chosen: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(grouped_lora, "computes_groups_right", lambda *_: is_right)
    place = torch.device(device)
    if chosen not in ("loop", "grouped_mm"):
        with pytest.raises(UserError, match=chosen):
            choose_lora_implementation(wanted, place, dtype)
        return
    assert choose_lora_implementation(wanted, place, dtype) == chosen


def test_a_wrong_kernel_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    check = computes_groups_right.__wrapped__
    assert check(CPU, torch.float32)
    assert check(CPU, torch.bfloat16)
    right = F.grouped_mm

    def shifted(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
        return right(a, b, offs=(offs // 8 * 8).clamp(min=1))

    def ragged_sums(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
        return right(a, b, offs=offs) if b.ndim == 3 else shifted(a, b, offs=offs)

    def unsupported(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
        raise RuntimeError("no kernel for this device")

    for wrong in (shifted, ragged_sums, unsupported):
        monkeypatch.setattr(F, "grouped_mm", wrong)
        assert not check(CPU, torch.bfloat16)
