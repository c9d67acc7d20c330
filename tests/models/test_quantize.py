"""A base in 4 bits: products, gradients and refusals."""

import bitsandbytes
import pytest
import torch
from torch import nn
from toy_training import trial

from rankscope.config.study import ModelConfig
from rankscope.errors import UserError
from rankscope.models.init_context import new_adapter
from rankscope.models.load import load_base
from rankscope.models.lora import Adapter
from rankscope.models.multi_lora import AdapterSpan, MultiLora
from rankscope.models.quantize import dense_weight, is_quantized


def quantized(linear: nn.Linear) -> nn.Linear:
    """The layer with its weight in NF4, double quantization, as a 4-bit load gives it."""
    layer = bitsandbytes.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=torch.float32
    )
    layer.weight = bitsandbytes.nn.Params4bit(
        linear.weight.data.clone(), requires_grad=False, quant_type="nf4", compress_statistics=True
    )
    return layer.to("cpu")


def test_the_weight_of_a_quantized_layer_is_near_its_own() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(128, 64, bias=False)
    layer = quantized(linear)
    assert dense_weight(linear).data_ptr() == linear.weight.data_ptr()
    assert (is_quantized(linear), is_quantized(layer)) == (False, True)
    dense = dense_weight(layer)
    assert dense.shape == (64, 128)
    # NF4 has 16 levels; the widest gap is 0.3 of a block's largest value, so half of it is 0.15.
    weight = linear.weight.detach()
    error = (dense - weight).abs().max() / weight.abs().max()
    assert 0 < error.item() < 0.16


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_pack_on_a_quantized_layer_is_a_pack_on_its_numbers(method: str) -> None:
    torch.manual_seed(0)
    layer = quantized(nn.Linear(64, 48, bias=False))
    plain = nn.Linear(64, 48, bias=False)
    plain.weight.data = dense_weight(layer)
    plain.weight.requires_grad_(False)
    x = torch.randn(1, 10, 64)
    found = []
    for linear in (layer, plain):
        model = nn.ModuleDict({"q_proj": linear})
        multi_lora = MultiLora(model)
        adapter: Adapter = new_adapter(model, trial("a", method=method, targets=("q_proj",)))
        with torch.no_grad():
            adapter.b["q_proj"].normal_(generator=torch.Generator().manual_seed(1))
        multi_lora.attach(adapter)
        spans = AdapterSpan(None, 0, 4), AdapterSpan("a", 4, 10)
        own = x.clone().requires_grad_()
        with multi_lora.routing(spans, spans):
            y = model["q_proj"](own)
        y.square().sum().backward()
        found.append([y.detach(), own.grad, *(p.grad for p in adapter.parameters())])
    for ours, expected in zip(*found, strict=True):
        assert float((ours - expected).norm()) <= 1e-5 * float(expected.norm())


def test_adapters_on_a_quantized_layer_stay_in_the_loop() -> None:
    for linear, expected in ((quantized(nn.Linear(64, 48, bias=False)), 0), (nn.Linear(64, 48), 1)):
        model = nn.ModuleDict({"q_proj": linear})
        multi_lora = MultiLora(model)
        multi_lora.attach(new_adapter(model, trial("a", targets=("q_proj",))))
        multi_lora.group(torch.float32)
        assert multi_lora.grouped is not None
        assert len(multi_lora.grouped.buckets) == expected


def test_on_a_processor_it_is_refused() -> None:
    with pytest.raises(UserError, match="found a study on 'cpu', expected a CUDA device"):
        load_base(ModelConfig(pocket=True), torch.device("cpu"), torch.float32, quantize="4bit")
