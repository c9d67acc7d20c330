"""DoRA (Liu et al., 2402.09353): LoRA's direction, and a trained length m of each row of W.

W = m (W0 + s B A) / |W0 + s B A|, row by row (eq. 5). The gradient takes the norm as a constant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rankscope.models.methods.lora import LoraMethod

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rankscope.models.init_context import InitContext
    from rankscope.models.lora import Adapter
    from rankscope.models.multi_lora import AdapterSlice


class DoraMethod(LoraMethod):
    """Computes y = g * (W0 + s B A) x + bias with the gain g = m / |W0 + s B A| of each output."""

    name = "dora"
    label = "DoRA"
    summary = "`lora` with a trained length of each row of W (2402.09353)."
    peft_fields = {"use_dora": True}
    has_magnitude = True
    unserved_by = {name: f"{name} does not read DoRA adapters." for name in ("vLLM", "llama.cpp")}
    delta_needs_base = True
    can_be_sharded = False
    delta_is_low_rank = False

    def init_module(
        self, adapter: Adapter, name: str, linear: nn.Linear, context: InitContext
    ) -> None:
        from torch import nn

        from rankscope.models.quantize import dense_weight

        super().init_module(adapter, name, linear, context)
        adapter.magnitude[name] = nn.Parameter(dense_weight(linear).float().norm(dim=1))

    def forward(
        self, part: AdapterSlice, y: Tensor, inputs: Tensor, linear: nn.Linear
    ) -> tuple[Tensor, ...]:
        """Turn y = W x + bias, (n, out), into W x + (g - 1) * W x' + g * s B A x' + bias.

        x' is x after dropout: as in PEFT, dropout leaves the base's own product alone.
        """
        from torch.nn import functional as F

        from rankscope.models.quantize import dense_weight

        adapter, name = part.adapter, part.module
        inverse_norm = adapter.cached(name, lambda: self.inverse_norm(adapter, name, linear))
        gain = adapter.magnitude[name].detach() * inverse_norm
        hidden = inputs @ part.a.T
        plain = F.linear(inputs, dense_weight(linear))
        before_gain = plain.addmm(hidden, part.b.T, alpha=adapter.scaling)
        y += before_gain * gain.to(y.dtype) - plain
        return hidden, before_gain, gain, inverse_norm

    def inverse_norm(self, adapter: Adapter, name: str, linear: nn.Linear) -> Tensor:
        """Return 1 / |W0 + s B A| of each output, (out,) float32, without gradient."""
        from rankscope.models.quantize import dense_weight

        weight = dense_weight(linear).float()
        tuned = weight + super().delta(adapter, name, weight)
        inverse: Tensor = 1 / tuned.norm(dim=1)
        return inverse

    def backward(
        self,
        part: AdapterSlice,
        saved: tuple[Tensor, ...],
        grad: Tensor,
        inputs: Tensor,
        grad_x: Tensor | None,
        weight: Tensor | None,
    ) -> list[Tensor]:
        hidden, before_gain, gain, inverse_norm = saved
        gained = grad * gain.to(grad.dtype)
        back = gained @ part.b
        gradients = part.factor_gradients(gained, back, inputs, hidden)
        gradients.append((grad.float() * before_gain.float()).sum(0) * inverse_norm)
        if grad_x is not None and weight is not None:
            through = part.adapter.scaling * (back @ part.a)
            through += (gained - grad) @ weight
            grad_x += part.dropped(through)
        return gradients

    def delta(self, adapter: Adapter, name: str, weight: Tensor) -> Tensor:
        directed = weight + super().delta(adapter, name, weight)
        gain: Tensor = adapter.magnitude[name].detach().to(weight) / directed.norm(dim=1)
        return gain[:, None] * directed - weight
