"""The adapters of a group in few products, with ``torch.nn.functional.grouped_mm``.

The loop of ``multi_lora.py`` launches six small products per adapter and layer. Here, adapters of a
layer whose ranks round up to the same multiple of 8 form a bucket. Six products serve all adapters
of a bucket: two forward, two for the gradient of x, two for those of A and B. Both ways compute the
same numbers, up to rounding.

    G  adapters in a bucket     R  its padded rank; PiSSA needs twice the rank
    n  tokens of a run          s  an adapter's scaling

``grouped_mm`` wants rows of a multiple of 16 bytes and int32 offsets. An empty group gives wrong
gradients (PyTorch's issues 172439 and 193633), and rows after the last offset are left undefined.
Neither exists here.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankscope.device import on_device
from rankscope.errors import UserError
from rankscope.models.lora import Adapter
from rankscope.models.methods.lora import LoraMethod
from rankscope.models.quantize import is_quantized

if TYPE_CHECKING:
    from rankscope.models.multi_lora import AdapterSpan

RANK_MULTIPLE = 8  # 16 bytes of bfloat16
MAX_GROUPS = 1023  # The kernel takes fewer than 1,024
FAST_ON = (9, 10)  # Major compute capability; on others the products are a loop that waits
CHECKED_TOKENS = (1, 7, 64, 130)  # Sizes of the groups that a device is checked with


def padded_rank(adapter: Adapter, module: str) -> int:
    rank = len(adapter.a[module])
    if module in adapter.initial_factors:
        rank *= 2
    return -(-rank // RANK_MULTIPLE) * RANK_MULTIPLE


def _has_plain_product(adapter: Adapter) -> bool:
    """Whether the adapter computes s B' A' x and nothing else (no DoRA, no dropout)."""
    method = type(LoraMethod.of(adapter.method))
    is_loras = (method.forward, method.backward) == (LoraMethod.forward, LoraMethod.backward)
    return is_loras and adapter.dropout == 0


class Run:
    """Tokens of adapters that are neighbors in the pass and in their bucket."""

    def __init__(self, rank: int, first: int, start: int) -> None:
        """``rank`` is R, which names the bucket; ``first`` the index of the run's first adapter
        there; ``start`` the run's first token."""
        self.rank, self.first, self.start = rank, first, start
        self.counts: list[int] = []  # Tokens of each adapter, none of them 0

    @property
    def last(self) -> int:
        return self.first + len(self.counts)

    @property
    def stop(self) -> int:
        return self.start + sum(self.counts)

    def goes_on_with(self, rank: int, index: int, start: int) -> bool:
        is_next = (rank, index, start) == (self.rank, self.last, self.stop)
        return is_next and len(self.counts) < MAX_GROUPS


Places = dict[str, tuple[int, int]]  # Adapter name -> (R, index in that bucket), for one module


def _cut_into_runs(
    places: Places, spans: "Sequence[AdapterSpan]"
) -> "tuple[list[Run], tuple[AdapterSpan, ...]]":
    """Return the runs of a pass through one module, and the spans without a bucket there."""
    runs: list[Run] = []
    rest: list[AdapterSpan] = []
    for span in spans:
        name, start, stop = span
        if name is None or name not in places:
            rest.append(span)
        elif start < stop:
            if not runs or not runs[-1].goes_on_with(*places[name], start):
                runs.append(Run(*places[name], start))
            runs[-1].counts.append(stop - start)
    return runs, tuple(rest)


class _Bucket:
    """Adapters of one module with one padded rank, as blocks.

    The adapters' own parameters are views of the blocks, without the padding, which stays zero.
    """

    def __init__(
        self, module: str, rank: int, adapters: Sequence[Adapter], dtype: torch.dtype
    ) -> None:
        self.module = module
        self.adapters = adapters
        first = adapters[0].a[module]
        out_features = len(adapters[0].b[module])
        self.a = first.new_zeros(len(adapters), rank, first.shape[1])  # (G, R, in) float32
        # B is transposed: a view of fewer than R columns then has no gaps in memory, as the fused
        # optimizer demands.
        self.b = first.new_zeros(len(adapters), rank, out_features)  # (G, R, out) float32
        self.a_grad, self.b_grad = torch.zeros_like(self.a), torch.zeros_like(self.b)
        self.a_copy = torch.zeros_like(self.a, dtype=dtype)  # A', in the base's dtype
        self.b_copy = torch.zeros_like(self.b, dtype=dtype)  # s B', likewise
        self.scaling = first.new_ones(len(adapters), rank, 1)  # s
        for i, adapter in enumerate(adapters):
            a, b = adapter.a[module], adapter.b[module]
            self.scaling[i] = adapter.scaling
            for parameter, view in ((a, self.a[i, : len(a)]), (b, self.b[i, : len(a)].T)):
                view.copy_(parameter.data)
                parameter.data = view

    def begin_step(self) -> None:
        """Copy the weights, with s multiplied in before B is rounded, and clear the gradients."""
        self.a_copy.copy_(self.a)
        torch.mul(self.b, self.scaling, out=self.b_copy)
        for i, adapter in enumerate(self.adapters):
            if self.module in adapter.initial_factors:
                a, b = adapter.factors(self.module)
                self.a_copy[i, : len(a)] = a
                self.b_copy[i, : len(a)] = adapter.scaling * b.T
        self.a_grad.zero_()
        self.b_grad.zero_()

    def end_step(self) -> None:
        """Give each parameter its gradient, a view of the block's."""
        self.b_grad.mul_(self.scaling)
        for i, adapter in enumerate(self.adapters):
            a, b = adapter.a[self.module], adapter.b[self.module]
            rank = len(a)
            if self.module in adapter.initial_factors:  # A' = [A, A - A0]: A is in both halves
                self.a_grad[i, :rank] += self.a_grad[i, rank : 2 * rank]
            a.grad, b.grad = self.a_grad[i, :rank], self.b_grad[i, :rank].T

    def release(self) -> None:
        """Give each parameter its own memory again."""
        for adapter in self.adapters:
            for parameter in (adapter.a[self.module], adapter.b[self.module]):
                parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)


class BucketSlice:
    """One run of a pass through one module; the counterpart of ``AdapterSlice``."""

    def __init__(self, bucket: _Bucket, run: Run, offs: Tensor, anchor: nn.Parameter) -> None:
        self.bucket, self.run, self.offs = bucket, run, offs
        self.parameters = [anchor]  # Makes autograd call the backward pass; it gets no gradient

    def rows(self, x: Tensor) -> Tensor:
        """View the run's tokens of (N, ...)."""
        return x[self.run.start : self.run.stop]

    def block(self, x: Tensor) -> Tensor:
        """View the run's adapters of (G, ...)."""
        return x[self.run.first : self.run.last]

    def forward(self, x: Tensor, y: Tensor, linear: nn.Linear) -> tuple[Tensor | None, ...]:
        """Add s B' A' x to the run's rows of y, (N, out), in place, for x, (N, in)."""
        a, b = self.block(self.bucket.a_copy), self.block(self.bucket.b_copy)
        hidden = F.grouped_mm(self.rows(x).contiguous(), a.mT, offs=self.offs)  # (n, R)
        self.rows(y).add_(F.grouped_mm(hidden, b, offs=self.offs))
        return (hidden,)

    def backward(
        self,
        saved: Sequence[Any],
        grad: Tensor,
        x: Tensor,
        grad_x: Tensor | None,
        weight: Tensor | None,
    ) -> list[Tensor | None]:
        """Add to the block's gradients and to ``grad_x``, given the gradient of y, (N, out)."""
        (hidden,) = saved
        a, b = self.block(self.bucket.a_copy), self.block(self.bucket.b_copy)
        inputs, grad = self.rows(x).contiguous(), self.rows(grad).contiguous()
        back = F.grouped_mm(grad, b.mT, offs=self.offs)  # (n, R), s included
        if grad_x is not None:
            self.rows(grad_x).add_(F.grouped_mm(back, a, offs=self.offs))
        # Autograd would make gradients of the whole block, with zeros for all other adapters.
        self.block(self.bucket.a_grad).add_(F.grouped_mm(back.T, inputs, offs=self.offs))
        self.block(self.bucket.b_grad).add_(F.grouped_mm(hidden.T, grad, offs=self.offs))
        return [None]


class GroupedLora:
    def __init__(
        self, adapters: Sequence[Adapter], linears: Mapping[str, nn.Linear], dtype: torch.dtype
    ) -> None:

        def place_in_pass(adapter: Adapter) -> tuple[bool, int, tuple[str, ...]]:
            """Sort key that makes neighbors share buckets."""
            largest = max(padded_rank(adapter, module) for module in adapter.a)
            return not _has_plain_product(adapter), largest, adapter.targets

        ordered = sorted(adapters, key=place_in_pass)
        self.order = {adapter.name: i for i, adapter in enumerate(ordered)}  # In a pass
        # By module: the buckets by R, their places, and a number that modules with equal places
        # share, and with it their runs.
        self._modules: dict[str, tuple[dict[int, _Bucket], Places, int]] = {}
        self._anchor = nn.Parameter(torch.empty(0))
        self._runs: dict[Any, Any] = {}
        layouts: dict[tuple[tuple[str, tuple[int, int]], ...], int] = {}
        for name, linear in linears.items():
            members: dict[int, list[Adapter]] = defaultdict(list)
            # ``grouped_mm`` takes rows of whole 16 bytes, and a base in 4 bits has no such rows.
            sizes = (linear.in_features, linear.out_features)
            fits = all(n % RANK_MULTIPLE == 0 for n in sizes) and not is_quantized(linear)
            for adapter in ordered if fits else ():
                if name in adapter.a and _has_plain_product(adapter):
                    members[padded_rank(adapter, name)].append(adapter)
            places = {
                adapter.name: (rank, i)
                for rank, inside in members.items()
                for i, adapter in enumerate(inside)
            }
            buckets = {rank: _Bucket(name, rank, own, dtype) for rank, own in members.items()}
            layout = layouts.setdefault(tuple(places.items()), len(layouts))
            self._modules[name] = (buckets, places, layout)

    @property
    def buckets(self) -> list[_Bucket]:
        return [bucket for own, _, _ in self._modules.values() for bucket in own.values()]

    @torch.no_grad()
    def begin_step(self) -> None:
        """Prepare the passes of an optimizer step."""
        self._runs.clear()
        for bucket in self.buckets:
            bucket.begin_step()

    @torch.no_grad()
    def end_step(self) -> None:
        """End the passes of an optimizer step: parameters get their gradients."""
        for bucket in self.buckets:
            bucket.end_step()

    def release(self) -> None:
        for bucket in self.buckets:
            bucket.release()

    def slices(
        self, name: str, spans: "tuple[AdapterSpan, ...]", device: torch.device
    ) -> "tuple[list[BucketSlice], tuple[AdapterSpan, ...]]":
        """Return the part of a module's pass that its buckets compute, and the spans left to the
        loop."""
        buckets, places, layout = self._modules[name]
        key = (layout, spans)
        if key not in self._runs:  # once per pass, not per layer
            runs, rest = _cut_into_runs(places, spans)
            # Where each adapter's tokens end, counted from the run's first token, (G,).
            ends = [on_device(torch.tensor(r.counts).cumsum(0).int(), device) for r in runs]
            self._runs[key] = list(zip(runs, ends, strict=True)), rest
        located, rest = self._runs[key]
        slices = [BucketSlice(buckets[run.rank], run, offs, self._anchor) for run, offs in located]
        return slices, rest


# --- choice between two ways to compute the adapters' products. ``loop`` is the reference and runs
# everywhere; ``grouped_mm`` is fast in bfloat16 on CUDA of compute capability 9.x and 10.x. Other
# GPUs run it as a loop that waits for the device. A processor computes the same, slowly, which
# serves its tests.


def choose_lora_implementation(
    wanted: str, device: torch.device, dtype: torch.dtype
) -> Literal["loop", "grouped_mm"]:
    """Resolve ``train.lora_implementation`` for a device.

    Raises UserError: the chosen one cannot run there.
    """
    on_cuda = device.type == "cuda"
    if wanted == "loop" or (wanted == "auto" and not on_cuda):
        return "loop"
    is_fast = on_cuda and dtype == torch.bfloat16 and torch.version.hip is None
    is_fast = is_fast and torch.cuda.get_device_capability(device)[0] in FAST_ON
    obstacle = "it needs bfloat16 on CUDA of compute capability 9.x or 10.x, or a CPU"
    if is_fast or device.type == "cpu":
        obstacle = "torch.nn.functional.grouped_mm fails or gives wrong numbers on this device"
        if computes_groups_right(device, dtype):
            return "grouped_mm"
    if wanted == "grouped_mm":
        raise UserError(
            "train.lora_implementation", f"'grouped_mm', but {obstacle}", do="use 'auto' or 'loop'"
        )
    return "loop"


@cache
def computes_groups_right(device: torch.device, dtype: torch.dtype) -> bool:
    """Check the three kinds of grouped product that training needs against single products.

    The groups have uneven sizes. Rounding to bfloat16 changes a number by up to 2^-9 of it.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    x, block = draw(sum(CHECKED_TOKENS), 64), draw(len(CHECKED_TOKENS), 8, 64)
    offs = torch.tensor(CHECKED_TOKENS).cumsum(0).to(device, torch.int32)
    try:
        hidden = F.grouped_mm(x, block.mT, offs=offs)
        y, sums = F.grouped_mm(hidden, block, offs=offs), F.grouped_mm(hidden.T, x, offs=offs)
    except RuntimeError:
        return False
    rows = [part.float() for part in x.split(CHECKED_TOKENS)]
    inner = [part.float() for part in hidden.split(CHECKED_TOKENS)]
    expected = (
        torch.cat([row @ a.T for row, a in zip(rows, block.float(), strict=True)]),
        torch.cat([row @ a for row, a in zip(inner, block.float(), strict=True)]),
        torch.stack([part.T @ row for part, row in zip(inner, rows, strict=True)]),
    )
    pairs = zip((hidden, y, sums), expected, strict=True)
    gaps = [float((found.float() - right).norm() / right.norm()) for found, right in pairs]
    return all(gap < 2**-8 for gap in gaps)
