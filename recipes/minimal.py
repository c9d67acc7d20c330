"""The whole idea on one page: train one LoRA adapter, padded and slow, without any abstraction.

Tests compare Rankscope's padding-free training of many adapters with this reference. It uses
transformers' stock attention and mask, computes every logit, and loops over modules in Python.

    python recipes/minimal.py MODEL_FOLDER
"""

import math
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
SENTENCE = "The best rank is the smallest one that is enough."
LabeledRow = tuple[list[int], list[bool]]
"""Token ids, and which of them carry loss."""


class LoraLinear(nn.Module):
    """y = W x + s B A x with W frozen, A (r, in) and B (out, r)."""

    def __init__(self, linear: nn.Linear, a: Tensor, b: Tensor, scaling: float) -> None:
        super().__init__()
        self.linear, self.scaling = linear, scaling
        self.a, self.b = nn.Parameter(a.clone()), nn.Parameter(b.clone())

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, in) -> (batch, tokens, out)."""
        return self.linear(x) + self.scaling * F.linear(F.linear(x, self.a), self.b)


def add_lora(
    model: nn.Module, factors: dict[str, tuple[Tensor, Tensor]], scaling: float
) -> dict[str, LoraLinear]:
    """Freeze the model and wrap every linear layer in ``factors``, given its initial (A, B)."""
    model.requires_grad_(False)
    modules = dict(model.named_modules())
    layers = {}
    for name, (a, b) in factors.items():
        parent, _, leaf = name.rpartition(".")
        layers[name] = LoraLinear(modules[name], a, b, scaling)
        setattr(modules[parent], leaf, layers[name])
    return layers


def padded(rows: list[LabeledRow]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and labels, each (batch, longest); a label of -100 carries no loss."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    labels = torch.full((len(rows), width), -100)
    for i, (row, labeled) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
        kept = [t if is_labeled else -100 for t, is_labeled in zip(row, labeled, strict=True)]
        labels[i, : len(row)] = torch.tensor(kept)
    return ids, mask, labels


def train(
    model: nn.Module,
    rates: dict[nn.Parameter, float],
    steps: list[list[list[LabeledRow]]],
    schedule: str = "linear",
    warmup_fraction: float = 0.1,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
) -> list[float]:
    """Train, and return the loss of every optimizer step.

    Args:
        rates: peak learning rate of every trained parameter; LoRA+ has one for A and one for B.
        steps: for every optimizer step its micro-batches of rows.
    """
    groups = [{"params": [p], "peak": peak} for p, peak in rates.items()]
    optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=weight_decay)
    warmup = math.ceil(warmup_fraction * len(steps))
    losses = []
    for step, micro_batches in enumerate(steps):
        batches = [padded(rows) for rows in micro_batches]
        # The mean is over the labels of the whole step, not over means of micro-batches.
        num_labels = sum(int((labels[:, 1:] != -100).sum()) for _, _, labels in batches)
        step_loss = 0.0
        for ids, mask, labels in batches:
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            flat = logits.reshape(-1, logits.shape[-1]).float()
            loss = F.cross_entropy(flat, labels[:, 1:].reshape(-1), reduction="sum") / num_labels
            loss.backward()
            step_loss += loss.item()
        torch.nn.utils.clip_grad_norm_(list(rates), max_grad_norm)
        done = (step - warmup) / max(1, len(steps) - warmup)
        decay = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1}
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * (step / warmup if step < warmup else decay[schedule])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(step_loss)
    return losses


def main(folder: str) -> None:
    """Teach a model one sentence with a rank-8 adapter on its attention."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    factors = {}
    for name, linear in model.named_modules():
        if isinstance(linear, nn.Linear) and name.endswith(TARGETS):
            bound = linear.in_features**-0.5
            a = torch.empty(8, linear.in_features).uniform_(-bound, bound)
            factors[name] = (a, torch.zeros(linear.out_features, 8))
    layers = add_lora(model, factors, scaling=2.0)
    parameters = [p for layer in layers.values() for p in (layer.a, layer.b)]
    ids = tokenizer(SENTENCE).input_ids
    row = (ids, [False] + [True] * (len(ids) - 1))
    for step, loss in enumerate(train(model, dict.fromkeys(parameters, 1e-3), [[[row]]] * 20)):
        print(f"step {step:2d}  loss {loss:.4f}")


if __name__ == "__main__":
    main(sys.argv[1])
