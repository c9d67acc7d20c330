"""One frozen linear layer, many adapters: y_i = g_i * (W + s_i B_i A_i) x_i for every adapter i.

Tokens of one adapter are contiguous, so the frozen product runs once over all tokens, whatever the
adapters' ranks, and each adapter adds to its own slice in place. The backward pass is written out,
because autograd would keep a copy of x and of every product for each adapter: here x is kept once
for all of them, and of each adapter only A x, (tokens, r).

Products run in the base's dtype; A, B and their gradients are float32.

    n  tokens of one adapter        r  its rank (twice that for PiSSA, see ``Adapter.factors``)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from rankscope.errors import UserError
from rankscope.models.lora import Adapter
from rankscope.models.quantize import dense_weight


class AdapterSpan(NamedTuple):
    """A span of tokens that belongs to one adapter; ``adapter_name`` None is the bare base."""

    adapter_name: str | None
    start: int
    stop: int


@dataclass(slots=True)
class Share:
    """One adapter's part in one pass of one layer, and what its backward pass needs.

    Attributes:
        a: A', (r, in); b: B', (out, r), in the base's dtype.
        gain: g = m / |W + s B A| of each output, (out,) float32, and 1 / |W + s B A|; DoRA alone.
        mask: inputs that dropout keeps, (n, in) bool; None without dropout.
        hidden: A' x, (n, r).
        before_gain: z in y = g * z, (n, out); DoRA alone.
    """

    adapter: Adapter
    start: int
    stop: int
    is_started: bool
    a: Tensor
    b: Tensor
    gain: tuple[Tensor, Tensor] | None = None
    mask: Tensor | None = None
    hidden: Tensor | None = None
    before_gain: Tensor | None = None

    def hand_over(self) -> tuple[Tensor | None, ...]:
        """Mask, hidden and z, no longer kept here: autograd keeps them, and lets them go where the
        pass is recomputed."""
        kept = (self.mask, self.hidden, self.before_gain)
        self.mask = self.hidden = self.before_gain = None
        return kept

    def of(self, x: Tensor) -> Tensor:
        """The adapter's own tokens of (N, ...), a view."""
        return x[self.start : self.stop]

    def dropped(self, part: Tensor) -> Tensor:
        """(n, in) after dropout; the same on the way back."""
        if self.mask is None:
            return part
        return part * self.mask * (1 / (1 - self.adapter.dropout))

    def gradients(self, grad: Tensor, back: Tensor, inputs: Tensor) -> list[Tensor]:
        """Of A, (r, in), and B, (out, r), float32.

        ``grad`` is that of the adapter's output (n, out); ``back`` is grad B', (n, r).
        """
        hidden = self.hidden
        assert hidden is not None
        if self.is_started:
            # A' = [A, A - A0] and B' = [B - B0, B0]: grad B is the sum of the halves of grad B',
            # and A x is the first half of A' x.
            first, second = back.chunk(2, dim=1)
            back, hidden = first + second, hidden.chunk(2, dim=1)[0]
        scaling = self.adapter.scaling
        return [
            (back.T @ inputs).float().mul_(scaling),
            (grad.T @ hidden).float().mul_(scaling),
        ]


class MultiLoraProduct(torch.autograd.Function):
    """W x + bias with every adapter's share, and its gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, linear: nn.Linear, shares: list[Share], *parameters: Tensor
    ) -> Tensor:
        """(N, in) -> (N, out). ``parameters`` are those of ``shares``, in order, for autograd."""
        y: Tensor = linear(x)
        for share in shares:
            inputs = share.dropped(share.of(x))
            share.hidden = inputs @ share.a.T
            if share.gain is None:
                share.of(y).addmm_(share.hidden, share.b.T, alpha=share.adapter.scaling)
            else:
                add_with_gain(share, share.of(y), inputs, linear)
        ctx.save_for_backward(x, *(tensor for share in shares for tensor in share.hand_over()))
        ctx.linear, ctx.shares = linear, shares
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Gradients of x and of every share's A, B and m."""
        (grad,), (x, *saved) = grads, ctx.saved_tensors
        shares: list[Share] = ctx.shares
        weight = dense_weight(ctx.linear) if ctx.needs_input_grad[0] else None
        grad_x = grad @ weight if weight is not None else None
        found: list[Tensor] = []
        for share in shares:
            share.mask, share.hidden, share.before_gain, *saved = saved
            part = share.of(grad)
            inputs = share.dropped(share.of(x))
            gained = part if share.gain is None else part * share.gain[0].to(part.dtype)
            back = gained @ share.b
            found += share.gradients(gained, back, inputs)
            if share.gain is not None:
                assert share.before_gain is not None
                product = part.float() * share.before_gain.float()
                found.append(product.sum(0) * share.gain[1])
            if grad_x is not None and weight is not None:
                target = share.of(grad_x)
                if share.gain is None and share.mask is None:
                    target.addmm_(back, share.a, alpha=share.adapter.scaling)
                else:
                    through = share.adapter.scaling * (back @ share.a)
                    if share.gain is not None:
                        through += (gained - part) @ weight
                    target += share.dropped(through)
            share.hand_over()
        return grad_x, None, None, *found


def add_with_gain(share: Share, y: Tensor, inputs: Tensor, linear: nn.Linear) -> None:
    """Turn y = W x + bias, (n, out), into DoRA's W x + (g - 1) * W x' + g * s B A x' + bias.

    x' is x after dropout, ``inputs``: as in PEFT, dropout leaves the base's own product alone.
    """
    assert share.gain is not None
    assert share.hidden is not None
    plain = F.linear(inputs, dense_weight(linear))
    share.before_gain = plain.addmm(share.hidden, share.b.T, alpha=share.adapter.scaling)
    y += share.before_gain * share.gain[0].to(y.dtype) - plain


class MultiLoraLinear(nn.Module):
    """A frozen linear layer with the adapters of every trial that targets it.

    Which adapters there are and which tokens are whose stands in the :class:`MultiLora` that installed
    the layer.
    """

    def __init__(
        self, linear: nn.Linear, name: str, multi_lora: "MultiLora", is_head: bool
    ) -> None:
        super().__init__()
        self.linear = linear
        self.name = name
        self.is_head = is_head  # the output layer sees the kept positions alone
        self._pack = [multi_lora]  # in a list: the multi_lora is no submodule

    def forward(self, x: Tensor) -> Tensor:
        """(1, N, in) -> (1, N, out); M kept positions in place of N in the output layer."""
        multi_lora = self._pack[0]
        shares: list[Share] = []
        parameters: list[nn.Parameter] = []
        for adapter_name, start, stop in (
            multi_lora.kept_segments if self.is_head else multi_lora.segments
        ):
            adapter = multi_lora.adapters[adapter_name] if adapter_name is not None else None
            if adapter is None or self.name not in adapter.a or start == stop:
                continue
            share = self.share(adapter, start, stop, x)
            if multi_lora.training and adapter.dropout > 0:
                shape = torch.Size((stop - start, x.shape[-1]))
                share.mask = adapter.mask(self.name, shape, x.device, again=multi_lora.recomputing)
            shares.append(share)
            parameters += adapter.of_module(self.name)
        if not shares:
            y: Tensor = self.linear(x)
            return y
        y = MultiLoraProduct.apply(x.squeeze(0), self.linear, shares, *parameters)  # type: ignore[no-untyped-call]
        return y[None]

    def share(self, adapter: Adapter, start: int, stop: int, x: Tensor) -> Share:
        """An adapter's factors in the dtype of x, with its gain where it has one."""
        a, b = adapter.factors(self.name)
        inverse = adapter.inverse_norm(self.name, self.linear)
        gain = None
        if inverse is not None:
            gain = (adapter.magnitude[self.name].detach() * inverse, inverse)
        is_started = self.name in adapter.start
        return Share(adapter, start, stop, is_started, a.to(x.dtype), b.to(x.dtype), gain)


class Guest(Protocol):
    """A method on the base that is no adapter of a multi_lora, see ``peft_tuner.py``."""

    def remove(self) -> None:
        """Take it off: the base is what it was."""


class MultiLora:
    """The adapters that share one base; installs itself into the model's linear layers.

    Attributes:
        training: dropout is on.
        recomputing: a pass runs for a second time and draws the masks it drew the first time.
        injected_tuner: what is on the base in place of adapters.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.adapters: dict[str, Adapter] = {}
        self.segments: tuple[AdapterSpan, ...] = ()
        self.kept_segments: tuple[AdapterSpan, ...] = ()
        self.training = False
        self.recomputing = False
        self.injected_tuner: Guest | None = None

    def attach(self, adapter: Adapter) -> None:
        """Make an adapter usable in segments named after its adapter_name; one refused changes nothing.

        Raises:
            UserError: it changes a module this model does not have, or of another shape.
        """
        modules = dict(self.model.named_modules())
        unwrapped: dict[str, nn.Linear] = {}
        for name, a in adapter.a.items():
            layer = modules.get(name)
            linear = layer.linear if isinstance(layer, MultiLoraLinear) else layer
            if not isinstance(linear, nn.Linear):
                raise UserError(f"the adapter changes {name!r}, which this model does not have")
            found = (adapter.b[name].shape[0], a.shape[1])
            if found != (linear.out_features, linear.in_features):
                raise UserError(
                    f"the adapter's {name!r} fits a {found} matrix, this model's is "
                    f"{(linear.out_features, linear.in_features)}: it was made for another base"
                )
            if not isinstance(layer, MultiLoraLinear):
                unwrapped[name] = linear
        head = output_layer(self.model)
        for name, linear in unwrapped.items():
            parent, _, leaf = name.rpartition(".")
            setattr(modules[parent], leaf, MultiLoraLinear(linear, name, self, linear is head))
        adapter.weights_changed()  # what it derived from another base's weights
        self.adapters[adapter.name] = adapter

    def detach(self, adapter_name: str) -> None:
        """Forget an adapter; its tokens would see the bare base."""
        del self.adapters[adapter_name]

    def clear(self) -> None:
        """Forget every adapter, and take the injected_tuner off."""
        self.adapters.clear()
        if self.injected_tuner is not None:
            self.injected_tuner.remove()
            self.injected_tuner = None


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear layer by module name, in model order, with adapters unwrapped."""
    found: dict[str, nn.Linear] = {}
    inside = set()
    for name, layer in model.named_modules():
        if isinstance(layer, MultiLoraLinear):
            found[name] = layer.linear
            inside.add(layer.linear)
        elif isinstance(layer, nn.Linear) and layer not in inside:
            found[name] = layer
    return found


def output_layer(model: nn.Module) -> nn.Linear | None:
    """The linear layer that gives the logits, adapters unwrapped; None where there is none."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    head = head.linear if isinstance(head, MultiLoraLinear) else head
    return head if isinstance(head, nn.Linear) else None


def target_linears(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear layers an adapter goes on: full module name -> layer, in model order.

    A target is the last part of a module's name, or a whole dotted name. The output head never
    counts as a target unless named.

    Raises:
        UserError: a target that matches no linear layer.
    """
    linears = linear_layers(model)
    chosen: set[str] = set()
    for target in targets:
        matched = {n for n in linears if n == target or n.endswith("." + target)}
        if not matched:
            candidates = ", ".join(sorted({n.rsplit(".", 1)[-1] for n in linears}))
            raise UserError(
                f"target module {target!r} matches no linear layer of this model; "
                f"expected one of: {candidates}"
            )
        chosen |= matched
    return {name: layer for name, layer in linears.items() if name in chosen}


def unwrap(model: nn.Module) -> None:
    """Put plain linear layers back in place of packed ones."""
    packed = [(n, m) for n, m in model.named_modules() if isinstance(m, MultiLoraLinear)]
    modules = dict(model.named_modules())
    for name, layer in packed:
        parent, _, leaf = name.rpartition(".")
        setattr(modules[parent], leaf, layer.linear)
