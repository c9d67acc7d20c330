"""Norms and gates of the package liger-kernel, written by hand for GPUs.

Each is used for layers that compute the same, as calls on small inputs show. Other layers get
compiled functions.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rankscope.errors import UserError
from rankscope.extensions.kernels import compiled
from rankscope.extensions.kernels.compiled import GATE, NORM, refusing

LARGEST_ERROR = 5e-5
"""Largest error for values up to 16, in float32; the two kinds of GELU are 5e-4 apart."""


def liger_forwards(model: Any) -> Any:
    check_triton(model.device)
    return compiled.forwards(model, norm_of, gate_of)


def norm_of(layer: Any) -> Callable[..., Any]:
    """Return Liger's norm if it computes the same as a layer, else the compiled one."""
    liger_norm = _functions()[0]

    def norm(offset: float, casting: str) -> Callable[..., Any]:
        def compute(layer: Any, x: Tensor) -> Any:
            eps = getattr(layer, "variance_epsilon", None) or getattr(layer, "eps", 0.0)
            # Not in place: residual sums want the gradient too. By rows, whatever their number.
            return liger_norm.apply(x, layer.weight, eps, offset, casting, False, True)

        return compute

    x = torch.linspace(-3, 2, 2 * len(layer.weight), device=layer.weight.device)
    rows = torch.stack([x, 1e-3 * x]).view(4, -1)  # Of small numbers, eps shows
    low = rows.to(layer.weight.dtype)  # Shows where a layer rounds

    def error(by: Callable[..., Any], x: Tensor) -> float:
        return float((by(layer, x) - NORM.function(layer, x)).abs().max())

    found = (norm(0.0, "llama"), norm(0.0, "gemma"), norm(1.0, "gemma"))
    same = [by for by in found if error(by, rows) < LARGEST_ERROR]
    return min(same, key=lambda by: error(by, low), default=NORM)


def gate_of(mlp: Any) -> Callable[..., Any]:
    """Return Liger's gate if it has the activation, else the compiled one.

    Its backward pass writes over the outputs of the layers below, which those do not keep.
    """
    x = torch.linspace(-4, 4, 64, device=mlp.down_proj.weight.device).view(2, -1)
    expected = GATE.function(mlp, x, x)
    for gate in _functions()[1:]:
        if float((gate.apply(x, x) - expected).abs().max()) < LARGEST_ERROR:
            return lambda _, *parts, gate=gate: gate.apply(*parts)
    return GATE


def _functions() -> tuple[Any, Any, Any]:
    """Return Liger's norm and two gates, as autograd functions."""
    from liger_kernel import ops

    return ops.LigerRMSNormFunction, ops.LigerSiLUMulFunction, ops.LigerGELUMulFunction


@cache
def check_triton(device: torch.device) -> None:
    """Raise UserError if the functions cannot run on a device.

    They are called, because the package may be missing or of another version.
    """
    if device.type != "cuda":
        found, do = "'liger', whose kernels run on a GPU", "set 'compiled' or 'plain'"
        raise UserError("train.kernels", found, f"a kernel of device {device.type}", do)
    with refusing(Exception):  # of Liger, of Triton, of the compiler
        x = torch.ones(2, 64, device=device)
        norm, *gates = _functions()
        norm.apply(x, x[0], 1e-6, 0.0, "llama", False, True)
        for gate in gates:
            gate.apply(x, x)
