"""One frozen linear layer with many adapters: y_i = g_i * (W + s_i B_i A_i) x_i for adapter i.

Tokens of one adapter are contiguous. So the frozen product runs once over all tokens, whatever the
adapters' ranks, and each adapter adds to its own slice in place. The backward pass is written out,
because autograd would keep a copy of x and of every product for each adapter. Here x is kept once
for all adapters, and A x, (tokens, r), once per adapter.

Products run in the base's dtype; A, B and their gradients are float32. On a GPU the adapters' own
products can be grouped (``grouped_lora.py``); this loop is their reference.

    n  tokens of one adapter        r  its rank (twice that for PiSSA, see ``Adapter.factors``)
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rankscope.errors import UserError
from rankscope.models.grouped_lora import BucketSlice, GroupedLora
from rankscope.models.lora import Adapter
from rankscope.models.methods.lora import LoraMethod
from rankscope.models.parameters import matching_names
from rankscope.models.quantize import dense_weight

if TYPE_CHECKING:
    from rankscope.models.peft_backend.tuner import PeftTuner


class AdapterSpan(NamedTuple):
    """Consecutive tokens of one adapter; ``adapter_name`` None means the bare base."""

    adapter_name: str | None
    start: int
    stop: int


class AdapterSlice:
    """One adapter's part of a pass through one module."""

    def __init__(
        self, adapter: Adapter, module: str, span: AdapterSpan, x: Tensor, group: "MultiLora"
    ) -> None:
        """``module`` is the path of the layer, whose input is ``x``, (1, N, in)."""
        self.adapter, self.module = adapter, module
        self.method = LoraMethod.of(adapter.method)
        self.parameters = adapter.module_parameters(module)
        _, self.start, self.stop = span
        self.a, self.b = group.factors(adapter, module, x.dtype)  # A', (r, in), and B', (out, r)
        self.mask: Tensor | None = None  # Inputs that dropout keeps, (n, in) bool
        if group.training and adapter.dropout > 0:
            shape = torch.Size((self.stop - self.start, x.shape[-1]))
            self.mask = adapter.mask(module, shape, x.device, again=group.is_again)

    def rows(self, x: Tensor) -> Tensor:
        """View the adapter's tokens of (N, ...)."""
        return x[self.start : self.stop]

    def dropped(self, x: Tensor) -> Tensor:
        """Apply the dropout mask to (n, in); the backward pass applies the same mask."""
        if self.mask is None:
            return x
        return x * self.mask * (1 / (1 - self.adapter.dropout))

    def forward(self, x: Tensor, y: Tensor, linear: nn.Linear) -> tuple[Tensor | None, ...]:
        """Change the adapter's rows of y = W x + bias, (N, out), in place, for x, (N, in).

        Returns the tensors that the backward pass needs.
        """
        inputs = self.dropped(self.rows(x))
        saved = (self.mask, *self.method.forward(self, self.rows(y), inputs, linear))
        self.mask = None  # autograd keeps it, and drops it where the layer is computed again
        return saved

    def backward(
        self,
        saved: Sequence[Any],
        grad: Tensor,
        x: Tensor,
        grad_x: Tensor | None,
        weight: Tensor | None,
    ) -> list[Tensor]:
        """Return the gradients of ``parameters``, given the gradient of y, (N, out).

        The adapter's share is added in place to ``grad_x``, (N, in), which holds the base's;
        ``weight`` is W0.
        """
        self.mask, *kept = saved
        above, inputs = self.rows(grad), self.dropped(self.rows(x))
        into = None if grad_x is None else self.rows(grad_x)
        gradients = self.method.backward(self, tuple(kept), above, inputs, into, weight)
        self.mask = None
        return gradients

    def factor_gradients(
        self, grad: Tensor, back: Tensor, inputs: Tensor, hidden: Tensor
    ) -> list[Tensor]:
        """Return the gradients of A, (r, in), and B, (out, r), float32.

        Args:
            grad: gradient of the adapter's output, (n, out).
            back: grad B', (n, r).
            inputs: inputs after dropout, (n, in).
            hidden: A' x, (n, r).
        """
        if self.module in self.adapter.initial_factors:
            # A' = [A, A - A0] and B' = [B - B0, B0]: grad B is the sum of the halves of grad B',
            # and A x is the first half of A' x.
            first, second = back.chunk(2, dim=1)
            back, hidden = first + second, hidden.chunk(2, dim=1)[0]
        scaling = self.adapter.scaling
        of_b = (grad.T @ hidden).float().mul_(scaling)
        return [(back.T @ inputs).float().mul_(scaling), of_b]


class _MultiLoraProduct(torch.autograd.Function):
    """Computes W x + bias with every adapter's slice, and its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        linear: nn.Linear,
        slices: Sequence[AdapterSlice | BucketSlice],
        *parameters: Tensor,
    ) -> Tensor:
        """Compute (N, in) -> (N, out). ``parameters`` are those of ``slices``, in order, for
        autograd."""
        y: Tensor = linear(x)
        saved = [part.forward(x, y, linear) for part in slices]
        ctx.save_for_backward(x, *(tensor for tensors in saved for tensor in tensors))
        ctx.linear, ctx.slices, ctx.counts = linear, slices, [len(tensors) for tensors in saved]
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,), (x, *saved) = grads, ctx.saved_tensors
        weight = dense_weight(ctx.linear) if ctx.needs_input_grad[0] else None
        grad_x = None if weight is None else grad @ weight
        parameter_grads: list[Tensor | None] = []
        for part, count in zip(ctx.slices, ctx.counts, strict=True):
            kept, saved = saved[:count], saved[count:]
            parameter_grads += part.backward(kept, grad, x, grad_x, weight)
        return grad_x, None, None, *parameter_grads


class MultiLoraLinear(nn.Module):
    """A frozen linear layer with every adapter that targets it."""

    def __init__(
        self, linear: nn.Linear, name: str, multi_lora: "MultiLora", is_head: bool
    ) -> None:
        super().__init__()
        self.linear = linear
        self.name = name
        self.is_head = is_head  # the output layer sees the kept positions alone
        self._multi_lora = [multi_lora]  # in a list: not a submodule

    @property
    def weight(self) -> Tensor:
        """Refuses access: state spaces read it instead of calling the layer, which skips the
        adapter."""
        found = "a model that multiplies by its weight without calling it"
        do = "leave it out of the arm's targets, or choose another model"
        raise UserError(f"target module {self.name!r}", found, "a layer that is called", do)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (1, N, in) -> (1, N, out); the output layer sees M kept positions in place of
        N."""
        multi_lora = self._multi_lora[0]
        spans = multi_lora.kept_spans if self.is_head else multi_lora.spans
        slices: list[AdapterSlice | BucketSlice] = []
        if multi_lora.training and multi_lora.grouped is not None:
            grouped, spans = multi_lora.grouped.slices(self.name, spans, x.device)
            slices += grouped
        for span in spans:
            adapter = multi_lora.adapters.get(span.adapter_name or "")
            if adapter is not None and self.name in adapter.a and span.start < span.stop:
                slices.append(AdapterSlice(adapter, self.name, span, x, multi_lora))
        if not slices:
            y: Tensor = self.linear(x)
            return y
        parameters = [p for part in slices for p in part.parameters]
        flat = x.flatten(0, -2)
        y = _MultiLoraProduct.apply(flat, self.linear, slices, *parameters)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], -1)


class MultiLora:
    """The adapters that share one base; it replaces the linear layers that they change."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.adapters: dict[str, Adapter] = {}
        self.spans: tuple[AdapterSpan, ...] = ()  # See :meth:`routing`
        self.kept_spans: tuple[AdapterSpan, ...] = ()
        self.is_again = False  # Gradient checkpointing repeats a pass, with its masks
        self.training = False  # Dropout is on
        self.injected_tuner: PeftTuner | None = None  # A PEFT method, on a copy of a base
        self.fixed: dict[tuple[str, str], tuple[Tensor, Tensor]] | None = None
        """Copies (A', B') by adapter and module, see :meth:`fixed_weights`."""
        self.grouped: GroupedLora | None = None  # Computes the products in training; None: a loop

    @contextmanager
    def routing(
        self,
        spans: tuple[AdapterSpan, ...],
        kept_spans: tuple[AdapterSpan, ...],
        *,
        again: bool = False,
    ) -> Iterator[None]:
        """Give each adapter its own tokens in all passes inside.

        Args:
            kept_spans: the same spans among the positions that the output layer sees.
            again: the pass repeats an earlier one, with its dropout.
        """
        before = self.spans, self.kept_spans, self.is_again
        self.spans, self.kept_spans, self.is_again = spans, kept_spans, again
        try:
            yield
        finally:
            self.spans, self.kept_spans, self.is_again = before

    def same_routing(self) -> AbstractContextManager[None]:
        """Return the current routing, for a later repetition of the pass."""
        return self.routing(self.spans, self.kept_spans, again=True)

    def factors(self, adapter: Adapter, module: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return (A', B') of a module in the dtype of its products; kept while weights are
        fixed."""
        key = (adapter.name, module)
        kept = None if self.fixed is None else self.fixed.get(key)
        if kept is None:
            a, b = adapter.factors(module)
            kept = a.to(dtype), b.to(dtype)
            if self.fixed is not None:
                self.fixed[key] = kept
        return kept

    @contextmanager
    def fixed_weights(self) -> Iterator[None]:
        """Promise that no weight changes inside: each pass reuses the copies of the first."""
        before, self.fixed = self.fixed, {}
        try:
            yield
        finally:
            self.fixed = before

    def attach(self, adapter: Adapter) -> None:
        """Make an adapter of this model available under its name."""
        modules = dict(self.model.named_modules())
        head = output_layer(self.model)
        for name in adapter.a:
            linear = modules[name]
            if isinstance(linear, nn.Linear):
                _replace_module(modules, name, MultiLoraLinear(linear, name, self, linear is head))
        adapter.drop_cached_weights()  # drops what it derived from another base's weights
        self.adapters[adapter.name] = adapter

    def detach(self, adapter_name: str) -> None:
        del self.adapters[adapter_name]

    def group(self, dtype: torch.dtype) -> None:
        """Group the adapters' products in training from now on, in ``dtype``."""
        adapters = tuple(self.adapters.values())
        self.grouped = GroupedLora(adapters, linear_layers(self.model), dtype)

    def ungroup(self) -> None:
        if self.grouped is not None:
            self.grouped.release()
            self.grouped = None

    def place(self, adapter_name: str | None) -> int:
        """Return the order of an adapter's rows among those of the others; 0 if it does not
        matter."""
        if self.grouped is None or adapter_name is None:
            return 0
        return self.grouped.order[adapter_name]

    @contextmanager
    def optimizer_step(self) -> Iterator[None]:
        """Surround all passes of an optimizer step; at its end the parameters have their
        gradients."""
        if self.grouped is not None:
            self.grouped.begin_step()
        yield
        if self.grouped is not None:
            self.grouped.end_step()

    @contextmanager
    def dropout_off(self) -> Iterator[None]:
        """Make adapters compute as in inference inside."""
        was_training, self.training = self.training, False
        try:
            yield
        finally:
            self.training = was_training

    def clear(self) -> None:
        """Restore the model, its output layer included, whose adapters would need whole logits."""
        self.adapters.clear()
        self.grouped = None
        unwrap(self.model)


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return every linear layer of the base by module name, in model order."""
    linears: dict[str, nn.Linear] = {}
    wrapped = set()
    for name, layer in model.named_modules():
        if isinstance(layer, MultiLoraLinear):
            linears[name] = layer.linear
            wrapped.add(layer.linear)
        elif isinstance(layer, nn.Linear) and layer not in wrapped:
            linears[name] = layer
    return linears


def output_layer(model: nn.Module) -> nn.Linear | None:
    """Return the base's linear layer that gives the logits, if there is one."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    head = head.linear if isinstance(head, MultiLoraLinear) else head
    return head if isinstance(head, nn.Linear) else None


def target_linears(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Linear]:
    """Return the linear layers that ``targets`` name, by module name, in model order.

    A target is the last part of a module's name, or a whole name; the output head only by name.
    """
    linears = linear_layers(model)
    chosen = matching_names(linears, targets, linears)
    return {name: layer for name, layer in linears.items() if name in chosen}


def unwrap(model: nn.Module) -> None:
    modules = dict(model.named_modules())
    for name, layer in modules.items():
        if isinstance(layer, MultiLoraLinear):
            _replace_module(modules, name, layer.linear)


def _replace_module(modules: dict[str, nn.Module], name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(modules[parent], leaf, module)
