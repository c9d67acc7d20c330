"""Liger's kernels against PyTorch's own operations, on a CPU: no race, and no figure of speed.

    pip install liger-kernel
    python benchmarks/liger_parity.py

Triton's interpreter runs the kernels. It lacks three things that they use, which it gets here:
numbers as tensors, and two functions of CUDA's library. Prints one line of JSON with the largest
relative differences (2-norms): of three architectures' logits and gradients of the embeddings, and
of the gradients of a group of adapters; and exits with 1 where one is more than rounding.
"""

import os
import sys
from importlib.metadata import version
from unittest.mock import patch

os.environ["TRITON_INTERPRET"] = "1"  # Before Triton is imported

import numpy as np
import torch
import triton
import triton.language as tl
from liger_kernel.ops import geglu, rms_norm
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from triton.runtime import interpreter

from gpu import gradients, protocol, trials
from race import announce
from random_models import SEED, SHAPES, random_base, random_rows
from rankscope.extensions.kernels import liger
from rankscope.extensions.kernels.compiled import GATE, NORM
from rankscope.extensions.kernels.liger import gate_of, norm_of
from rankscope.models.kernels import PLAIN, kernels_of, use_kernels

ARCHITECTURES = ("llama", "qwen3", "gemma3_text")
LARGEST = 1e-5  # float32 keeps 6e-8 of a number
CPU = torch.device("cpu")

as_tensor = interpreter._implicit_cvt


def with_numbers(value: object) -> object:
    if not isinstance(value, float):
        return as_tensor(value)
    array = np.array([value], dtype=np.float32)
    return tl.tensor(interpreter.TensorHandle(array, tl.float32), tl.float32)


@triton.jit
def rsqrt(x):  # type: ignore[no-untyped-def]
    return 1 / tl.sqrt(x)


@triton.jit
def tanh(x):  # type: ignore[no-untyped-def]
    return 2 * tl.sigmoid(2 * x) - 1


def logits_and_gradient(model: torch.nn.Module) -> list[Tensor]:
    ids = torch.randint(5, 304, (2, 12), generator=torch.Generator().manual_seed(0))
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()  # type: ignore[operator]
    logits = model(inputs_embeds=embedded).logits
    logits.logsumexp(-1).sum().backward()
    return [logits.detach(), embedded.grad]


def gap(found: list[Tensor], expected: list[Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def of_architecture(name: str) -> float:
    torch.manual_seed(SEED)
    config = AutoConfig.for_model(name, **SHAPES["tiny"], head_dim=16)
    model = AutoModelForCausalLM.from_config(config).eval()
    for layer in model.modules():
        if type(layer).__name__.endswith("RMSNorm"):  # Ones, or zeros, show too little
            torch.nn.init.normal_(layer.weight, layer.weight.mean().item(), 0.1)
            assert norm_of(layer) is not NORM, "Liger's norm is another one"
    expected = logits_and_gradient(model)
    use_kernels(model.requires_grad_(False), "liger")
    found = logits_and_gradient(model)
    use_kernels(model, PLAIN)
    assert gap(logits_and_gradient(model), expected) == 0, "not undone"
    return gap(found, expected)


def of_activation(name: str) -> bool:
    """Whether Liger's gate is used with an activation."""
    config = AutoConfig.for_model("llama", **SHAPES["tiny"], hidden_act=name)
    return gate_of(AutoModelForCausalLM.from_config(config).model.layers[0].mlp) is not GATE


def of_group() -> float:
    base, group, train = (
        random_base("tiny", CPU, torch.float32),
        trials(4),
        protocol(2, 512, "loop"),
    )
    rows = random_rows(16, 12, False, base.record.vocab_size)
    expected = gradients(base, group, rows, train)
    use_kernels(base.model, "liger")
    found = gradients(base, group, rows, train)
    assert kernels_of(base.copied().model) == "liger"
    assert kernels_of(base.trainable_copy().model) == PLAIN
    return gap(found, expected)


def main() -> int:
    interpreter._implicit_cvt = with_numbers
    rms_norm.rsqrt, geglu.tanh = rsqrt, tanh
    with patch.object(liger, "check_triton"):  # It asks for a GPU
        gaps = {name: of_architecture(name) for name in ARCHITECTURES} | {"adapters": of_group()}
    gates = {name: of_activation(name) for name in ("silu", "gelu_pytorch_tanh", "gelu", "relu")}
    names = ("liger-kernel", "triton", "torch", "transformers")
    result = {
        "benchmark": "liger_parity",
        "versions": {name: version(name) for name in names},
        "gaps": gaps,
        "gates": gates,
        "parity": max(gaps.values()),
        "parity_tolerance": LARGEST,
    }
    return announce(result)


if __name__ == "__main__":
    sys.exit(main())
