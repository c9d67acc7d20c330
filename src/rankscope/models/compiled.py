"""Element-wise work of a frozen model as compiled functions: norms, rotary embeddings and gates.

Between two products PyTorch walks over memory once for each operation, and keeps a float32 copy of
every norm's input. ``torch.compile`` makes one walk of each of these functions, forward and
backward, and keeps their inputs alone. The functions are the model's own: a norm's ``forward``, the
rotary embedding of its attention's module, its activation. Every token has its own arithmetic, so
its numbers depend neither on the tokens beside it nor on the shape that was compiled first. On CUDA
the package liger-kernel has norms and gates written by hand, which are taken where they compute
what a layer does.

    N tokens; H query and K key heads; D head dim
"""

import inspect
import os
import tempfile
import warnings
from collections.abc import Callable
from contextvars import copy_context
from functools import cache, cached_property
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from transformers import PreTrainedModel

from rankscope.config.section import Kernels
from rankscope.errors import UserError, first_line
from rankscope.filesystem import cache_folder

USED = "rankscope_kernels"  # Attribute of a model
CACHE = "TORCHINDUCTOR_CACHE_DIR"
ROTARY = "apply_rotary_pos_emb"  # The function's name in transformers' modules
LIGER_ERROR = 5e-5  # Of values up to 16, in float32; the two kinds of GELU are 5e-4 apart
MOST_GRAPHS = 64
"""Of one function in a process: one for each class of layers, width, and mode of autograd."""


class _Compiled:
    """``function(owner, *tensors)``, and the gradient of its first ``num_inputs`` tensors, which
    all have N tokens first."""

    def __init__(self, function: Callable[..., Any], num_inputs: int) -> None:
        self.function, self.num_inputs = function, num_inputs

        def gradient(grads: Any, owner: Any, *tensors: Tensor) -> Any:
            inputs, rest = tensors[:num_inputs], tensors[num_inputs:]
            return torch.func.vjp(lambda *xs: function(owner, *xs, *rest), *inputs)[1](grads)

        self.gradient = gradient

    def forward(self, *args: Any) -> Any:
        return self._run(self._compiled_function, args)

    def backward(self, *args: Any) -> Any:
        return self._run(self._compiled_gradient, args)

    @cached_property
    def _compiled_function(self) -> Callable[..., Any]:
        return torch.compile(self.function, dynamic=True, fullgraph=True)

    @cached_property
    def _compiled_gradient(self) -> Callable[..., Any]:
        return torch.compile(self.gradient, dynamic=True, fullgraph=True)

    def _run(self, fast: Callable[..., Any], args: Any) -> Any:
        try:
            return fast(*args)
        # The compiler was killed, its disk is full, or it was asked for too many graphs.
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            found = f"a function that cannot be compiled: {first_line(error)}"
            do = "make it work, or set 'plain': results so far are kept"
            raise UserError("train.kernels", found, do=do) from error

    def __call__(self, owner: Any, *tensors: Tensor) -> Any:
        if len(tensors[0]) == 1:  # A dimension of 1 would be compiled for itself
            out = self(owner, *(torch.cat([x, x]) for x in tensors))
            return out[:1] if isinstance(out, Tensor) else tuple(x[:1] for x in out)
        if torch.is_grad_enabled():
            return _WithGradient.apply(self, owner, *tensors)  # type: ignore[no-untyped-call]
        return self.forward(owner, *(x.contiguous() for x in tensors))


class _WithGradient(torch.autograd.Function):
    """A compiled function that keeps its inputs alone."""

    @staticmethod
    def forward(ctx: Any, compiled: _Compiled, owner: Any, *tensors: Tensor) -> Any:
        tensors = tuple(x.detach().contiguous() for x in tensors)
        ctx.save_for_backward(*tensors)
        ctx.compiled, ctx.owner = compiled, owner
        # CUDA's backward has a thread of its own, and the compiler's settings are each thread's.
        ctx.settings = copy_context()
        return compiled.forward(owner, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        tensors, above = ctx.saved_tensors, tuple(grad.contiguous() for grad in grads)
        given = above if len(above) > 1 else above[0]
        gradients = ctx.settings.run(ctx.compiled.backward, given, ctx.owner, *tensors)
        return None, None, *gradients, *(len(tensors) - len(gradients)) * [None]


def _norm(layer: Any, x: Tensor) -> Any:
    return type(layer).forward(layer, x)


def _gate(mlp: Any, gate: Tensor, up: Tensor) -> Any:
    return mlp.act_fn(gate) * up


def _rotate(rotary: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    """q (N, H, D) and k (N, K, D) at the positions of ``cos`` and ``sin``, (N, D)."""
    rotated = rotary(*(x.transpose(0, 1)[None] for x in (q, k)), cos[None], sin[None])
    return tuple(x[0].transpose(0, 1).contiguous() for x in rotated)


NORM, GATE, ROTATE = _Compiled(_norm, 1), _Compiled(_gate, 2), _Compiled(_rotate, 2)


# --- the layers that call them


def _norm_by(compute: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, x: Tensor) -> Any:
        if self.weight.requires_grad:  # a PEFT method trains this copy
            return type(self).forward(self, x)
        return compute(self, x.reshape(-1, x.shape[-1])).view(x.shape)

    return forward


def _mlp_by(compute: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, x: Tensor) -> Any:
        gate, up = self.gate_proj(x), self.up_proj(x)
        inner = compute(self, *(part.reshape(-1, part.shape[-1]) for part in (gate, up)))
        return self.down_proj(inner.view(gate.shape))

    return forward


def _attention_forward(cls: type[nn.Module]) -> Callable[..., Any] | None:
    """The class's forward with the compiled rotary embedding; None if it calls none by name."""
    plain: Any = inspect.unwrap(cls.forward)
    rotary: Any = plain.__globals__.get(ROTARY)
    if rotary is None or ROTARY not in plain.__code__.co_names:
        return None

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *rest: Any, **named: Any) -> Any:
        if rest or named or cos.dim() != 3 or not len(q) == len(k) == len(cos) == 1:
            return rotary(q, k, cos, sin, *rest, **named)
        rotated = ROTATE(rotary, *(x[0].transpose(0, 1) for x in (q, k)), cos[0], sin[0])
        return tuple(x.transpose(0, 1)[None] for x in rotated)

    # The function is a global of its module, which other models of this process share.
    names, code = {**plain.__globals__, ROTARY: rotate}, plain.__code__
    made = FunctionType(code, names, plain.__name__, plain.__defaults__, plain.__closure__)
    made.__kwdefaults__ = plain.__kwdefaults__
    return made


def _is_norm(layer: Any) -> bool:
    """Whether it has one weight per feature, and the scale of its input does not matter."""
    names = [name for name, _ in layer.named_parameters()]
    # torch's own LayerNorm is one walk already.
    if isinstance(layer, nn.LayerNorm) or names != ["weight"] or layer.weight.dim() != 1:
        return False
    x = torch.linspace(-3, 2, 2 * len(layer.weight)).view(2, -1).to(layer.weight)
    y, of_larger = layer(x), layer(4 * x)
    return y.shape == x.shape and bool(y.any()) and torch.allclose(y, of_larger, 0.02, 0.02)


def _is_gated(mlp: Any, like: Tensor) -> bool:
    """Whether it computes down(act(gate(x)) * up(x))."""
    if not all(hasattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        return False
    x = torch.linspace(-2, 2, 2 * mlp.down_proj.out_features).view(1, 2, -1).to(like)
    return torch.equal(mlp(x), mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)))


def _liger_norm(layer: Any) -> Callable[..., Any]:
    """Liger's norm if it computes what a layer does, else the compiled one."""
    liger_norm = _liger()[0]

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
        return float((by(layer, x) - _norm(layer, x)).abs().max())

    found = (norm(0.0, "llama"), norm(0.0, "gemma"), norm(1.0, "gemma"))
    same = [by for by in found if error(by, rows) < LIGER_ERROR]
    return min(same, key=lambda by: error(by, low), default=NORM)


def _liger_gate(mlp: Any) -> Callable[..., Any]:
    """Liger's gate if it has the activation, else the compiled one. Its backward pass writes over
    what the layers below returned, which they do not keep."""

    def gate(function: Any) -> Callable[..., Any]:
        return lambda _, *parts: function.apply(*parts)

    x = torch.linspace(-4, 4, 64, device=mlp.down_proj.weight.device).view(2, -1)
    expected = _gate(mlp, x, x)
    found = map(gate, _liger()[1:])
    same = (by for by in found if float((by(mlp, x, x) - expected).abs().max()) < LIGER_ERROR)
    return next(same, GATE)


def _liger() -> tuple[Any, Any, Any]:
    """Its norm and two gates, as autograd functions."""
    from liger_kernel import ops

    return ops.LigerRMSNormFunction, ops.LigerSiLUMulFunction, ops.LigerGELUMulFunction


@torch.no_grad()
def use_kernels(model: PreTrainedModel, kernels: Kernels) -> None:
    """Let a frozen model without adapters compute its element-wise parts as ``train.kernels`` says.
    Its weights and their names stay; functions are compiled when they are first called."""
    compute_plainly(model)
    if kernels == "plain":
        return
    _configure()
    by_liger = kernels == "liger"
    like = torch.empty(0, dtype=model.dtype, device=model.device)
    chosen: dict[type[nn.Module], Callable[..., Any] | None] = {}
    for layer in model.modules():
        kind = type(layer)
        if kind not in chosen:
            if _is_norm(layer):
                chosen[kind] = _norm_by(_liger_norm(layer) if by_liger else NORM)
            elif _is_gated(layer, like):
                chosen[kind] = _mlp_by(_liger_gate(layer) if by_liger else GATE)
            else:
                chosen[kind] = _attention_forward(kind)
        if (forward := chosen[kind]) is not None:
            layer.forward = MethodType(forward, layer)
    vars(model)[USED] = kernels


def compute_plainly(model: nn.Module) -> None:
    """Undo :func:`use_kernels`."""
    vars(model).pop(USED, None)
    for layer in model.modules():
        if isinstance(vars(layer).get("forward"), MethodType):
            del layer.forward


def kernels_of(model: nn.Module) -> Kernels:
    """What :func:`use_kernels` was last called with."""
    kernels: Kernels = vars(model).get(USED, "plain")
    return kernels


def _configure() -> None:
    import torch._dynamo
    import torch._inductor.config
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    stated = os.environ.get(CACHE, "")  # By PyTorch itself, as it was imported, if not by the user
    is_default = stated in ("", default_cache_dir())
    folder = cache_folder() / "compiled" if is_default else Path(stated)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        os.environ[CACHE] = str(folder)
    except OSError:
        os.environ.pop(CACHE, None)  # PyTorch takes a folder for temporary files then
    torch._dynamo.config.recompile_limit = MOST_GRAPHS
    torch._inductor.config.compile_threads = 1  # Others are processes that import torch, and stay


def why_not(kernels: Kernels, device: torch.device) -> str:
    """What keeps ``train.kernels`` from being used on a device; '' if nothing does."""
    reason = "" if kernels == "plain" else _why_not_compiled(device)
    if reason or kernels != "liger":
        return reason
    return "Liger's kernels run on a GPU" if device.type != "cuda" else _why_no_liger(device)


@cache
def _why_no_liger(device: torch.device) -> str:
    """By calling its functions: it may be missing, or of another version."""
    x = torch.ones(2, 64, device=device)
    try:
        norm, *gates = _liger()
        norm.apply(x, x[0], 1e-6, 0.0, "llama", False, True)
        for gate in gates:
            gate.apply(x, x)
    except Exception as error:  # of Liger, of Triton, of the compiler
        return first_line(error)
    return ""


@cache
def _why_not_compiled(device: torch.device) -> str:
    """What keeps functions from being compiled on a device, by compiling a small one; '' if
    nothing does."""
    _configure()
    try:
        with warnings.catch_warnings(), torch._inductor.config.patch(force_disable_caches=True):
            warnings.simplefilter("ignore")  # torch's own, of caches that are off
            double = torch.compile(lambda x: x.sin() * 2, dynamic=True, fullgraph=True)
            double(torch.ones(64, device=device))
    except Exception as error:  # of torch, of the compiler, of the file system
        return first_line(error)
    return ""
