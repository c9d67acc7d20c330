"""The whole idea on one page, with no abstraction: train one LoRA adapter, padded and slow.

The reference that the packed, padding-free training of Rankscope is tested against. It uses
transformers' stock attention and mask, computes every logit, and loops over modules in plain
Python.

    python recipes/minimal.py MODEL_FOLDER
"""

import math
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer


class LoraLinear(nn.Module):
    """y = W x + s B A x with W frozen."""

    def __init__(self, linear: nn.Linear, a: Tensor, b: Tensor, scaling: float) -> None:
        super().__init__()
        self.linear, self.scaling = linear, scaling
        self.a, self.b = nn.Parameter(a.clone()), nn.Parameter(b.clone())

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, in) -> (batch, tokens, out)."""
        return self.linear(x) + self.scaling * F.linear(F.linear(x, self.a), self.b)


def add_lora(
    model: nn.Module, starts: dict[str, tuple[Tensor, Tensor]], scaling: float
) -> dict[str, LoraLinear]:
    """Freeze the model and put an adapter, from its start (A, B), on every named linear layer."""
    model.requires_grad_(False)
    modules = dict(model.named_modules())
    layers = {}
    for name, (a, b) in starts.items():
        parent, _, leaf = name.rpartition(".")
        layers[name] = LoraLinear(modules[name], a, b, scaling)
        setattr(modules[parent], leaf, layers[name])
    return layers


def padded(rows: list[tuple[list[int], list[bool]]]) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, labelled) rows -> ids, mask and labels of shape (batch, longest); label -100 = none."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    labels = torch.full((len(rows), width), -100)
    for i, (row, labelled) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
        marked = [t if on else -100 for t, on in zip(row, labelled, strict=True)]
        labels[i, : len(row)] = torch.tensor(marked)
    return ids, mask, labels


def train(
    model: nn.Module,
    rates: dict[nn.Parameter, float],
    steps: list[list[list[tuple[list[int], list[bool]]]]],
    schedule: str = "linear",
    warmup_fraction: float = 0.1,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
) -> list[float]:
    """Train on ``steps``: per optimizer step a list of micro-batches of rows. The step losses.

    ``rates`` are the peak learning rates of what trains: one for all, or LoRA+'s two.
    """
    groups = [{"params": [p], "peak": peak} for p, peak in rates.items()]
    optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=weight_decay)
    warmup = math.ceil(warmup_fraction * len(steps))
    losses = []
    for step, micro_batches in enumerate(steps):
        batches = [padded(rows) for rows in micro_batches]
        num_labels = sum(int((labels[:, 1:] != -100).sum()) for _, _, labels in batches)
        total = 0.0
        for ids, mask, labels in batches:
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            flat = logits.reshape(-1, logits.shape[-1]).float()
            loss = F.cross_entropy(flat, labels[:, 1:].reshape(-1), reduction="sum") / num_labels
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(list(rates), max_grad_norm)
        done = (step - warmup) / max(1, len(steps) - warmup)
        falling = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1}
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * (step / warmup if step < warmup else falling[schedule])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def main(folder: str) -> None:
    """Teach a model one sentence with a rank-8 adapter on its attention."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    starts = {
        name: (
            torch.empty(8, w.in_features).uniform_(-(w.in_features**-0.5), w.in_features**-0.5),
            torch.zeros(w.out_features, 8),
        )
        for name, w in model.named_modules()
        if isinstance(w, nn.Linear) and name.endswith(("q_proj", "k_proj", "v_proj", "o_proj"))
    }
    layers = add_lora(model, starts, scaling=2.0)
    parameters = [p for layer in layers.values() for p in (layer.a, layer.b)]
    ids = tokenizer("The best rank is the smallest one that is enough.").input_ids
    row = (ids, [False] + [True] * (len(ids) - 1))
    print(train(model, dict.fromkeys(parameters, 1e-3), [[[row]]] * 20))


if __name__ == "__main__":
    main(sys.argv[1])
