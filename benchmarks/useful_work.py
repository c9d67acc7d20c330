"""How much arithmetic training needs, and how fast the machine multiplies matrices.

Model-FLOP utilization is useful operations / seconds / the fastest rate measured here. Useful is
what no implementation can leave out: padding, logits without a label, recomputation, element-wise
work and copies are not.
"""

import time
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from race import Rows, Setting, Times
from rankscope.data.encode import EncodedRow
from rankscope.models.multi_lora import linear_layers, output_layer, target_linears

SECONDS_PER_SHAPE = 0.5
SQUARE = {"cpu": 2048, "cuda": 8192}
"""Side of the square product. On a processor 1024 to 4096 were equally fast, a GPU wants more."""
NUM_TOKENS = 2048
"""Tokens in products of the model's own shapes."""


def useful_flops(
    model: PreTrainedModel, rank: int, targets: Iterable[str], rows: Iterable[EncodedRow]
) -> int:
    """Floating-point operations to train one adapter on the rows once.

    Per token: 2 forward and 2 backward (the gradient of its input) for each weight of a frozen
    matrix, 6 for each of A and B (their own gradient as well). The output layer counts at labeled
    positions alone. Attention of a row of T tokens: two products forward and four backward, over
    the T (T + 1) / 2 pairs that causality leaves.
    """
    linears = linear_layers(model)
    head = output_layer(model)
    frozen = sum(layer.weight.numel() for layer in linears.values() if layer is not head)
    adapted = target_linears(model, list(targets)).values()
    adapter = sum(rank * (layer.in_features + layer.out_features) for layer in adapted)
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = config.num_hidden_layers * config.num_attention_heads * head_dim
    total = 0
    for row in rows:
        tokens, labels = len(row.input_ids), sum(row.is_label)
        total += (4 * frozen + 6 * adapter) * tokens
        total += 6 * width * tokens * (tokens + 1)
        total += 4 * (head.weight.numel() if head is not None else 0) * labels
    return total


def product_rate(shapes: Iterable[tuple[int, int, int]], setting: Setting) -> float:
    """Operations per second of y = x W^T over (tokens, in, out) shapes, each at its best."""
    device, dtype = setting.torch_device(), setting.torch_dtype()
    operations = 0.0
    seconds = 0.0
    for tokens, width, out in shapes:
        x = torch.randn(tokens, width, device=device).to(dtype)
        weight = torch.randn(out, width, device=device).to(dtype)
        operations += 2 * tokens * width * out
        seconds += best_seconds(x, weight)
    return operations / seconds


def best_seconds(x: torch.Tensor, weight: torch.Tensor) -> float:
    """The quickest of as many products as fit into the time, five at least."""
    best = float("inf")
    begun = time.perf_counter()
    count = 0
    while count < 5 or time.perf_counter() - begun < SECONDS_PER_SHAPE:
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        start = time.perf_counter()
        F.linear(x, weight)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        best = min(best, time.perf_counter() - start)
        count += 1
    return best


def measure(rows: Rows) -> Times:
    """The side that only counts: useful operations of the timed steps, and product rates."""
    setting = rows.setting
    model = AutoModelForCausalLM.from_pretrained(setting.model, dtype=setting.torch_dtype())
    work = 0
    for spec in setting.specs():
        assert spec.rank is not None
        work += useful_flops(model, spec.rank, spec.targets, rows.timed(spec))
    decoder = {
        (NUM_TOKENS, layer.in_features, layer.out_features)
        for layer in linear_layers(model).values()
        if layer is not output_layer(model)
    }
    side = SQUARE.get(setting.torch_device().type, SQUARE["cpu"])
    return Times(
        notes={
            "useful_flops": work,
            "square_gflops": product_rate([(side, side, side)], setting) / 1e9,
            "own_gflops": product_rate(sorted(decoder), setting) / 1e9,
        }
    )
