"""Shards hold one model together on several devices, which takes an extension.

A *shard* is a process with a device of its own. Training runs on all shards in step, each on its
own rows. Everything else runs on shard 0 alone, which announces the work that needs all of them.
The core has one shard, which holds everything. Import this freely: it loads neither torch nor
records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar

from rankscope.errors import UserError
from rankscope.registry import parts

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from rankscope.config.study import StudyConfig
    from rankscope.models.base import Base
    from rankscope.records import TrialSpec

P = ParamSpec("P")
_T = TypeVar("_T")


class Sharding:
    """A way to hold a model on several devices; its module imports torch only inside methods."""

    name: ClassVar[str]

    def check(self, config: StudyConfig, trials: Sequence[TrialSpec], device: torch.device) -> None:
        """Raise UserError if ``train.devices`` asks for more than the code or this machine can
        do."""

    def started(self, size: int, device: torch.device) -> AbstractContextManager[Shards]:
        """Start the other shards on this machine, and yield shard 0."""
        raise NotImplementedError


def sharding() -> Sharding:
    """Return the way of the extension. Raises UserError: there is none."""
    kinds: dict[str, type[Sharding]] = parts(Sharding)
    if kind := next(iter(kinds.values()), None):
        return kind()
    do = "set train.devices: 1, or restore the extension"
    raise UserError("train.devices", expected="'shards', an extension that is not there", do=do)


class Shards:
    """The shards that hold models together, as one of them sees them; here there is one."""

    index = 0
    size = 1
    replicates = False  # Frozen models are whole on every shard

    def hold(
        self, name: str, model: PreTrainedModel | None, tokenizer: Any, record: Any, folder: Path
    ) -> Base:
        """Make a frozen model that all shards hold, from one on the CPU."""
        raise NotImplementedError

    def release(self, name: str) -> None:
        """Let go of the model of this name, if there is one; called on shard 0."""

    def trainable_copy(self, base: Base) -> Base:
        """Make a float32 copy that all shards hold, whose every parameter trains."""
        raise NotImplementedError

    def gathered(self, base: Base) -> PreTrainedModel:
        """Gather a model whole, in float32 on the CPU; called on shard 0."""
        raise NotImplementedError

    @contextmanager
    def in_step(self, value: bool = True) -> Iterator[None]:
        """Run the same code on all shards inside; with False, on shard 0 alone."""
        yield

    def alone(self, function: Callable[P, None]) -> Callable[P, None]:
        """Return the function for shard 0 alone, to be called amid code that all shards run in
        step."""
        return function

    def announce(self, name: str, *args: object) -> None:
        """Let the other shards call their handler ``name`` with these arguments; called on shard
        0."""

    def agreed(self, decide: Callable[[], bool]) -> Callable[[], bool]:
        """Return the decision of shard 0 for all shards, which ask for it at the same points."""
        return decide

    def own(self, passes: Sequence[_T], idle: _T | None) -> Iterator[tuple[_T, float]]:
        """Yield the passes of this shard, with weight 1.

        If others have one more, ``idle`` follows with weight 0, unless it is None.
        """
        return ((each, 1.0) for each in passes)

    def barrier(self) -> None:
        """Wait for all shards."""

    def collect(self, value: _T) -> list[_T]:
        """Return the values of all shards, in their order."""
        return [value]

    def add_up(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all shards."""

    def add_up_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients of parameters that every shard holds whole by their sums."""

    def break_off(self, reason: str) -> None:
        """End all shards at once, to begin again from stored results."""


ONE_SHARD = Shards()


# --- sharded tensors (DTensor, dimension 0), or plain ones on a single device


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """Return this shard's part."""
    shard: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return shard


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor; all shards have to call this."""
    full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return full


def cut_like(values: Tensor, like: Tensor) -> Tensor:
    """Shard a tensor that is whole on every shard like ``like``; return a sharded one as it is."""
    if is_sharded(values) or not is_sharded(like):
        return values
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(values, mesh, placements, src_data_rank=None)
