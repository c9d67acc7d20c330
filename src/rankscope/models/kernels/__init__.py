"""Ways to compute norms, rotary embeddings and gates of a frozen model, by ``train.kernels``.

The core has the model's own operations. A subclass of :class:`Kernels` in an extension computes
them otherwise; its module imports torch only inside methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from types import MethodType
from typing import TYPE_CHECKING, Any, ClassVar

from rankscope.registry import parts

if TYPE_CHECKING:
    from torch import nn

USED = "rankscope_kernels"  # Attribute of a model


class Kernels:
    """The model's own operations."""

    name: ClassVar[str] = "plain"
    start_seconds: ClassVar[float] = 0.0  # Until a new process has them, on two idle cores

    def forwards(self, model: nn.Module) -> Iterable[tuple[nn.Module, Callable[..., Any]]]:
        """Return the layers of a model that compute otherwise, each with its new ``forward``.

        Raises UserError: they cannot run on its device.
        """
        return ()


PLAIN = Kernels.name


@cache
def all_kernels() -> dict[str, type[Kernels]]:
    """Return all kernels by name; ``plain``, the default, is first."""
    return {PLAIN: Kernels, **parts(Kernels)}


def use_kernels(model: nn.Module, name: str) -> None:
    """Let a frozen model without adapters compute its element-wise parts by these kernels.

    Its weights and their names stay. Raises UserError: they cannot run on its device.
    """
    for layer in model.modules():
        if isinstance(vars(layer).get("forward"), MethodType):
            del layer.forward
    for layer, forward in all_kernels()[name]().forwards(model):
        layer.forward = MethodType(forward, layer)
    vars(model)[USED] = name


def kernels_of(model: nn.Module) -> str:
    """Return the name that :func:`use_kernels` was last called with."""
    name: str = vars(model).get(USED, PLAIN)
    return name
