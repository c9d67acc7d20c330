"""Element-wise work of a frozen model as compiled functions: norms, rotary embeddings and gates.

Between two products PyTorch walks over memory once for each operation, and keeps a float32 copy of
every norm's input. ``torch.compile`` makes one walk of each of these functions, forward and
backward, and keeps only their inputs. The functions are the model's own: a norm's ``forward``, the
rotary embedding of its attention's module, its activation. Every token has its own arithmetic. Its
numbers depend neither on the tokens beside it nor on the shape that was compiled first.

    N tokens; H query and K key heads; D head dim
"""

import inspect
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import cache, partial
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._inductor import config as inductor_config
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from rankscope.errors import UserError, first_line
from rankscope.filesystem import cache_folder

CACHE = "TORCHINDUCTOR_CACHE_DIR"
ROTARY = "apply_rotary_pos_emb"  # The function's name in transformers' modules
MOST_GRAPHS = 64
"""Graphs of one function in a process: one for each class of layers, width, and mode of
autograd."""


@contextmanager
def refusing(*faults: type[Exception]) -> Iterator[None]:
    """Raise UserError for these faults inside."""
    try:
        yield
    except faults as error:
        found = f"functions that cannot be used: {first_line(error)}"
        do = "set 'plain': results so far are kept, and later ones differ by rounding"
        raise UserError("train.kernels", found, do=do) from error


class CompiledFunction:
    """Runs ``function(owner, *tensors)``, and the gradient of its first ``num_inputs`` tensors.

    All of these have N tokens first.
    """

    def __init__(self, function: Callable[..., Any], num_inputs: int) -> None:
        def gradient(grads: Any, owner: Any, *tensors: Tensor) -> Any:
            inputs, rest = tensors[:num_inputs], tensors[num_inputs:]
            return torch.func.vjp(lambda *xs: function(owner, *xs, *rest), *inputs)[1](grads)

        # The compiler was killed, its disk is full, or it was asked for too many graphs.
        refused = refusing(TorchDynamoException, FailOnRecompileLimitHit)
        by_compiler = partial(torch.compile, dynamic=True, fullgraph=True)
        self.function = function
        self.forward, self.backward = (refused(by_compiler(f)) for f in (function, gradient))

    def __call__(self, owner: Any, *tensors: Tensor) -> Any:
        if len(tensors[0]) == 1:  # A dimension of 1 would be compiled for itself
            out = self(owner, *(torch.cat([x, x]) for x in tensors))
            return out[:1] if isinstance(out, Tensor) else tuple(x[:1] for x in out)
        if torch.is_grad_enabled():
            return _WithGradient.apply(self, owner, *tensors)  # type: ignore[no-untyped-call]
        return self.forward(owner, *(x.contiguous() for x in tensors))


class _WithGradient(torch.autograd.Function):
    """A compiled function that keeps only its inputs."""

    @staticmethod
    def forward(ctx: Any, compiled: CompiledFunction, owner: Any, *tensors: Tensor) -> Any:
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


def _rotate(rotary: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    """Rotate q (N, H, D) and k (N, K, D) by ``cos`` and ``sin`` of their positions, (N, D)."""
    rotated = rotary(*(x.transpose(0, 1)[None] for x in (q, k)), cos[None], sin[None])
    return tuple(x[0].transpose(0, 1).contiguous() for x in rotated)


NORM = CompiledFunction(lambda layer, x: type(layer).forward(layer, x), 1)
GATE = CompiledFunction(lambda mlp, gate, up: mlp.act_fn(gate) * up, 2)
ROTATE = CompiledFunction(_rotate, 2)


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
    """Make the class's forward with the compiled rotary embedding; None if it calls none by
    name."""
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
    """Whether a layer has one weight per feature and returns the same if its input is scaled."""
    names = [name for name, _ in layer.named_parameters()]
    # torch's own LayerNorm is one walk already.
    if isinstance(layer, nn.LayerNorm) or names != ["weight"] or layer.weight.dim() != 1:
        return False
    x = torch.linspace(-3, 2, 2 * len(layer.weight)).view(2, -1).to(layer.weight)
    y, of_larger = layer(x), layer(4 * x)
    return y.shape == x.shape and bool(y.any()) and torch.allclose(y, of_larger, 0.02, 0.02)


def _is_gated(mlp: Any, like: Tensor) -> bool:
    """Whether an MLP computes down(act(gate(x)) * up(x))."""
    if not all(hasattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        return False
    x = torch.linspace(-2, 2, 2 * mlp.down_proj.out_features).view(1, 2, -1).to(like)
    return torch.equal(mlp(x), mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)))


@torch.no_grad()
def forwards(
    model: Any,
    norm_of: Callable[[Any], Callable[..., Any]] = lambda layer: NORM,
    gate_of: Callable[[Any], Callable[..., Any]] = lambda mlp: GATE,
) -> list[tuple[nn.Module, Callable[..., Any]]]:
    """Return the layers of a frozen model that compute otherwise, each with its new ``forward``.

    Functions are compiled when they are first called.
    """
    _configure()
    check_compiler(model.device)
    like = torch.empty(0, dtype=model.dtype, device=model.device)

    def forward_of(layer: Any) -> Callable[..., Any] | None:
        if _is_norm(layer):
            return _norm_by(norm_of(layer))
        if _is_gated(layer, like):
            return _mlp_by(gate_of(layer))
        return _attention_forward(type(layer))

    layers = list(model.modules())
    first = {type(layer): layer for layer in reversed(layers)}
    chosen = {kind: forward_of(layer) for kind, layer in first.items()}
    return [(layer, forward) for layer in layers if (forward := chosen[type(layer)])]


def _configure() -> None:
    # PyTorch names its own folder as it is imported, if the user names none.
    if os.environ.get(CACHE, "") in ("", default_cache_dir()):
        os.environ[CACHE] = str(cache_folder() / "compiled")
    try:
        Path(os.environ[CACHE]).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=os.environ[CACHE]).close()
    except OSError:
        os.environ.pop(CACHE)  # PyTorch takes a folder for temporary files then
    dynamo_config.recompile_limit = MOST_GRAPHS
    inductor_config.compile_threads = 1  # Others are processes that import torch, and stay


@cache
@refusing(Exception)  # of torch, of the compiler, of the file system
def check_compiler(device: torch.device) -> None:
    """Raise UserError if functions cannot be compiled on a device, as a small one shows."""
    torch.compile(lambda x: x.sin() * 2, dynamic=True, fullgraph=True)(
        torch.ones(64, device=device)
    )
