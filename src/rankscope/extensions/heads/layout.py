"""A model's attention heads: the rows or columns of each matrix that belong to each head.

    H  query heads, K  key/value heads, G = H / K query heads per key/value head, D  head dim

Query head h has rows h D to (h + 1) D of q_proj's weight and the same columns of o_proj's.
Key/value head k has rows k D to (k + 1) D of k_proj's and v_proj's, and serves query heads k G to
(k + 1) G.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from rankscope.errors import UserError
from rankscope.evaluate.likelihood import for_adapter
from rankscope.models.attention.varlen import AttentionPlan
from rankscope.models.base import Base, RowBatch
from rankscope.models.multi_lora import MultiLoraLinear

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "attn_qkv", "in_proj")
"""Names that other architectures give to one matrix for queries, keys and values."""


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    index: int  # Number of the layer, from 0
    layer: str  # Module path of the decoder layer
    attention: str  # Module path of its attention, such as ``model.layers.3.self_attn``
    num_heads: int  # H
    num_kv_heads: int  # K
    head_dim: int  # D

    def projection(self, module: str) -> str:
        return f"{self.attention}.{module}"

    def heads_of(self, module: str) -> int:
        return self.num_heads if module in ("q_proj", "o_proj") else self.num_kv_heads


class HeadLayout(tuple[AttentionLayer, ...]):
    """The heads of a model, layer by layer."""

    __slots__ = ()

    @classmethod
    def of(cls, model: PreTrainedModel) -> "HeadLayout":
        """Find the heads of a model, with or without adapters or a PEFT tuner on it."""
        config = model.config.get_text_config()
        modules = dict(model.named_modules())
        attentions = [n.removesuffix(".o_proj") for n in modules if n.endswith(".o_proj")]
        architecture = type(model).__name__
        fused = [n for n in modules if n.rpartition(".")[2] in FUSED]
        if fused:
            raise UserError(
                f"heads of {architecture}",
                f"{fused[0]!r}, one matrix for queries, keys and values",
                f"separate {', '.join(PROJECTIONS)}",
            )
        if not attentions:
            raise UserError(f"heads of {architecture}", "no module 'o_proj'", "one in every layer")
        head_dim = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        layers = tuple(
            _attention_layer(index, name, modules, int(head_dim))
            for index, name in enumerate(attentions)
        )
        container = layers[0].layer.rpartition(".")[0]
        siblings = [f"{container}.{name}" for name, _ in modules[container].named_children()]
        if siblings != [layer.layer for layer in layers]:
            raise UserError(
                f"heads of {architecture}",
                f"{len(layers)} modules 'o_proj' in the {len(siblings)} layers of {container!r}",
                "one in every layer",
            )
        return cls(layers)

    @property
    def num_heads(self) -> int:
        return sum(layer.num_heads for layer in self)


@dataclass(frozen=True, slots=True)
class HeadModel:
    base: Base  # The base, with the adapter or PEFT tuner on it
    layout: HeadLayout  # The heads of the base
    adapter_name: str | None = None  # None for the base, or for its PEFT tuner
    batch_tokens: int = 4096  # Most tokens per forward pass, but at least one item

    def o_proj(self, index: int) -> nn.Module:
        return self.base.model.get_submodule(self.layout[index].projection("o_proj"))

    @contextmanager
    def changed_inputs(self, changes: Mapping[int, Callable[[Tensor], Tensor]]) -> Iterator[None]:
        """Change the inputs of o_proj, z (..., H D), by layer, inside."""
        with ExitStack() as hooks:
            for index, change in changes.items():

                def hook(
                    module: nn.Module,
                    args: tuple[Tensor],
                    change: Callable[[Tensor], Tensor] = change,
                ) -> tuple[Tensor]:
                    return (change(args[0]),)

                hooks.callback(self.o_proj(index).register_forward_pre_hook(hook).remove)
            yield

    def logits(self, batch: RowBatch, plan: AttentionPlan | None = None) -> Tensor:
        return self.base.logits(for_adapter(batch, self.adapter_name), plan=plan)


def _attention_layer(
    index: int, attention: str, modules: dict[str, nn.Module], head_dim: int
) -> AttentionLayer:
    sizes: dict[str, tuple[int, int]] = {}
    for module in PROJECTIONS:
        path = f"{attention}.{module}"
        linear = _inner_linear(modules[path]) if path in modules else None
        if linear is None:
            raise UserError(
                "heads",
                f"no linear layer {path!r}",
                f"{', '.join(PROJECTIONS)} in every attention",
            )
        sizes[module] = (linear.out_features, linear.in_features)
    inner, keys = sizes["o_proj"][1], sizes["k_proj"][0]
    is_consistent = sizes["q_proj"][0] == inner and sizes["v_proj"][0] == keys
    if not is_consistent or inner % head_dim or keys % head_dim or inner % keys:
        raise UserError(
            f"heads: {attention!r}",
            f"q_proj, k_proj, v_proj to {', '.join(str(sizes[m][0]) for m in PROJECTIONS[:3])} "
            f"and o_proj from {inner} numbers",
            f"whole heads of {head_dim}, and as many queries as o_proj's inputs",
        )
    layer = attention.rpartition(".")[0]
    return AttentionLayer(index, layer, attention, inner // head_dim, keys // head_dim, head_dim)


def _inner_linear(module: nn.Module) -> nn.Linear | None:
    """Return the linear layer inside the module that an adapter or a PEFT tuner put in its
    place."""
    inner: Any = module.linear if isinstance(module, MultiLoraLinear) else module
    if hasattr(inner, "get_base_layer"):
        inner = inner.get_base_layer()
    return inner if isinstance(inner, nn.Linear) else None
