"""Where a model's attention heads are: which layers, and which rows and columns of which matrix.

    H  query heads, K  key/value heads, G = H / K query heads to each, D  head dim

Query head h is rows h D to (h + 1) D of q_proj's weight and the same columns of o_proj's; key/value
head k is rows k D to (k + 1) D of k_proj's and v_proj's, and serves query heads k G to (k + 1) G.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from rankscope.errors import UserError
from rankscope.models.multi_lora import MultiLoraLinear

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "attn_qkv", "in_proj")
"""What other architectures call one matrix for queries, keys and values."""


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """One decoder layer's heads."""

    index: int
    """Of the layer, from 0."""
    layer: str
    """Module path of the decoder layer."""
    attention: str
    """Module path of its attention, such as ``model.layers.3.self_attn``."""
    num_heads: int
    """H."""
    num_kv_heads: int
    """K."""
    head_dim: int
    """D."""

    @property
    def group_size(self) -> int:
        """G: query heads to a key/value head."""
        return self.num_heads // self.num_kv_heads

    def projection(self, module: str) -> str:
        """Module path of one of ``PROJECTIONS``."""
        return f"{self.attention}.{module}"

    def heads_of(self, module: str) -> int:
        """How many heads one of ``PROJECTIONS`` is made of."""
        return self.num_heads if module in ("q_proj", "o_proj") else self.num_kv_heads


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """The heads of a model, layer by layer."""

    layers: tuple[AttentionLayer, ...]

    @classmethod
    def of(cls, model: PreTrainedModel) -> "HeadLayout":
        """Find the heads of a model, whatever adapters or methods are on it.

        Raises:
            UserError: a layer without attention of its own, one fused matrix for queries, keys and
                values, or matrices whose sizes are no whole number of heads.
        """
        config = model.config.get_text_config()
        modules = dict(model.named_modules())
        attentions = [n.removesuffix(".o_proj") for n in modules if n.endswith(".o_proj")]
        where = type(model).__name__
        fused = [n for n in modules if n.rpartition(".")[2] in FUSED]
        if fused:
            raise UserError(
                f"heads of {where}: {fused[0]!r} is one matrix for queries, keys and values; "
                f"expected an architecture that has {', '.join(PROJECTIONS)} apart"
            )
        if not attentions:
            raise UserError(f"heads of {where}: no layer has a module named 'o_proj'")
        head_dim = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        found = tuple(
            _attention_layer(index, name, modules, int(head_dim))
            for index, name in enumerate(attentions)
        )
        container = found[0].layer.rpartition(".")[0]
        siblings = [f"{container}.{name}" for name, _ in modules[container].named_children()]
        if siblings != [layer.layer for layer in found]:
            raise UserError(
                f"heads of {where}: {len(siblings)} layers in {container!r}, of which "
                f"{len(found)} have an attention with 'o_proj'; expected it in every layer"
            )
        return cls(found)

    def __iter__(self) -> Iterator[AttentionLayer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def num_heads(self) -> int:
        """Query heads of all layers together."""
        return sum(layer.num_heads for layer in self.layers)


def _attention_layer(
    index: int, attention: str, modules: dict[str, nn.Module], head_dim: int
) -> AttentionLayer:
    """Sizes of one attention, checked."""
    sizes: dict[str, tuple[int, int]] = {}
    for module in PROJECTIONS:
        path = f"{attention}.{module}"
        linear = linear_inside(modules[path]) if path in modules else None
        if linear is None:
            raise UserError(
                f"heads: {path!r} is no linear layer of this model; expected "
                f"{', '.join(PROJECTIONS)} in every attention"
            )
        sizes[module] = (linear.out_features, linear.in_features)
    inner, keys = sizes["o_proj"][1], sizes["k_proj"][0]
    sound = sizes["q_proj"][0] == inner and sizes["v_proj"][0] == keys
    if not sound or inner % head_dim or keys % head_dim or inner % keys:
        raise UserError(
            f"heads: {attention!r} has q_proj, k_proj, v_proj to "
            f"{', '.join(str(sizes[m][0]) for m in PROJECTIONS[:3])} and o_proj from {inner} "
            f"numbers; expected whole heads of {head_dim}, as many queries as o_proj takes in"
        )
    layer = attention.rpartition(".")[0]
    return AttentionLayer(index, layer, attention, inner // head_dim, keys // head_dim, head_dim)


def linear_inside(module: nn.Module) -> nn.Linear | None:
    """The linear layer under what an adapter or a method of PEFT's put in its place."""
    inner: Any = module.linear if isinstance(module, MultiLoraLinear) else module
    if hasattr(inner, "get_base_layer"):
        inner = inner.get_base_layer()
    return inner if isinstance(inner, nn.Linear) else None
