"""One optimizer step of all active trials of a group: loss terms, gradients, AdamW.

**Replay.** Every optimizer step has general rows beside the trial's own, which keep their order and
their steps. A share q of all rows is replayed: each step gets q / (1 - q) times its own rows on
top. Each kind of row counts in the loss by its number of rows. Within a kind every labeled token
counts alike, so that long general texts do not outweigh short answers:

    loss = (1 - p) mean over own labels + p mean over replayed labels,   p = replayed rows / rows

**KL to the base.** The loss gets weight x mean over labeled tokens of KL(base || tuned), in nats.
The labels are those of the replayed rows if the trial has any, else those of its own rows. KL costs
one forward pass of the frozen base, without gradient, over these rows. Trials with the same row in
the same forward pass share it. Its loss computes its own logits.
"""

import importlib
import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from rankscope.data.encode import EncodedRow
from rankscope.device import on_device
from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.output_layer import output_layer_apart
from rankscope.models.quantize import require_bitsandbytes
from rankscope.models.sharding import whole
from rankscope.train.loss import kl_divergences, mean_losses
from rankscope.train.objectives import SFT
from rankscope.train.objectives.objective import Objective, objective_of

SUPERVISED = objective_of(SFT)
LOSS_SCALE = 2.0**16
"""Loss scale at the start, in float16. Below 6e-8 float16 has no numbers, and many gradients of a
mean over tokens are smaller (Micikevicius et al., 1710.03740). Powers of two round nothing."""
SCALE_PATIENCE = 2000
"""Steps without overflow after which a halved scale doubles again, as in torch's GradScaler."""
RATIO = "lr_ratio"  # Key of a parameter group: its learning rate over the trial's


@dataclass(frozen=True, slots=True)
class LossTerm:
    adapter_name: str | None  # The trial's adapter; None trains the model itself
    rows: Sequence[EncodedRow]
    weight: float = 1.0  # Weight of the mean loss in the step's loss
    kl_weight: float = 0.0  # Weight of the mean KL to the base in the step's loss
    is_replay: bool = False
    objective: Objective = SUPERVISED
    scale: float = 1.0  # Scale of the gradients, against underflow in float16

    @property
    def num_labels(self) -> int:
        return sum(sum(row.is_label) for row in self.rows)

    def loss(self, losses: Tensor, rows: Sequence[EncodedRow]) -> Tensor:
        """Return the share of these rows in the term's loss, from their own losses, times the
        scale."""
        if not self.objective.by_row:
            return losses.squeeze(0)
        return self.factor * self.objective.loss(losses / self.scale, rows, self.rows)

    @property
    def factor(self) -> float:
        """Factor of the term's mean loss in the differentiated sum."""
        return self.weight * self.scale


def compute_gradients(
    model: Base, base: Base, terms: Sequence[LossTerm], batch_tokens: int
) -> list[tuple[float, float]]:
    """Accumulate the gradients of one optimizer step in the trained parameters.

    Args:
        model: the base with the trials' adapters, or the copy that full fine-tuning trains.
        base: the untuned model, which KL compares with.
        terms: loss terms; those of one trial are neighbors.

    Returns:
        For each term its loss, and its mean KL(base || tuned). The loss of supervised fine-tuning
        and the KL are nats per labeled token. A KL of weight 0 is not computed, and 0.
    """
    num_labels = [term.num_labels for term in terms]
    totals = torch.zeros(2, len(terms), device=model.device)  # weighted losses; KL
    passes = forward_passes([term.rows for term in terms], batch_tokens, model.shards.size)
    # A sharded layer needs all shards: a shard with one pass fewer runs a row of weight 0.
    term, rows_of_term = passes[0][0]
    idle = [(term, rows_of_term[: 2 if terms[term].objective.needs_pairs else 1])]
    for parts, weight in model.shards.own(passes, idle if model.is_sharded else None):
        members = [i for i, _ in parts]
        with_kl = [i for i in members if terms[i].kl_weight]
        named = [(rows, terms[i].adapter_name, terms[i].objective.by_row) for i, rows in parts]
        with output_layer_apart(model.model) as head:
            references = _base_states(base, [rows for i, rows in parts if i in with_kl])
            states, labels = label_states(model, named)
        counts = [sum(sum(row.is_label) for row in rows) for _, rows in parts]
        pieces, divisors, temperatures = list[list[int]](), list[float](), list[float]()
        for (i, rows), count in zip(parts, counts, strict=True):
            by_row = terms[i].objective.by_row
            pieces.append([sum(row.is_label) for row in rows] if by_row else [count])
            divisors += (
                [1 / terms[i].scale] * len(rows) if by_row else [num_labels[i] / terms[i].factor]
            )
            temperatures += [terms[i].objective.temperature] * len(pieces[-1])
        labels_each = [count for piece in pieces for count in piece]
        losses = mean_losses(states, labels, labels_each, divisors, head, temperatures).split(
            [len(piece) for piece in pieces]
        )
        of_parts = torch.stack(
            [terms[i].loss(own, rows) for own, (i, rows) in zip(losses, parts, strict=True)]
        )
        total = of_parts.sum() * weight
        states_of = dict(zip(members, states.split(counts), strict=True))
        for i, reference in zip(with_kl, references, strict=True):
            kl = kl_divergences(states_of[i], reference, head).sum() / num_labels[i]
            total = total + terms[i].kl_weight * terms[i].scale * kl
            totals[1, i] += kl.detach()
        total.backward()
        for i, loss in zip(members, of_parts.detach() * weight, strict=True):
            totals[0, i] += loss
    model.shards.add_up(totals)
    return [
        (loss / term.factor, kl) for term, loss, kl in zip(terms, *totals.tolist(), strict=True)
    ]


def label_states(
    model: Base, parts: Sequence[tuple[Sequence[EncodedRow], str | None, bool]]
) -> tuple[Tensor, Tensor]:
    """Compute the logits that predict the labels of rows, in order, (labels, vocabulary).

    Inside ``output_layer_apart`` the result is the layer's input instead, (labels, width).

    Args:
        parts: rows, their adapter, and whether neighbors with one prompt share it. Those run as one
            row that branches: the prompt is computed once, and its last token predicts the first of
            every answer.

    Returns:
        The logits, or these inputs, and the labels.
    """
    batch, sources, num_kept, labels = list[Row](), list[int](), 0, list[int]()
    for rows, name, share in parts:
        labels += [row.input_ids[t + 1] for row in rows for t in row.label_positions]
        for _, members in groupby(rows, attrgetter("prompt_ids") if share else id):
            own = list(members)
            trunk = len(own[0].prompt_ids) if len(own) > 1 else len(own[0].input_ids)
            ids, keep, branches = [*own[0].input_ids[:trunk]], list[int](), list[int]()
            for row in own:
                for t in row.label_positions:
                    place = t if t < trunk else len(ids) + t - trunk
                    if place not in keep[:1]:  # the last of the prompt, which all rows have
                        keep.append(place)
                    sources.append(num_kept + (0 if place == keep[0] else len(keep) - 1))
                branches.append(max(0, len(row.input_ids) - 1 - trunk))
                ids += row.input_ids[trunk:-1]  # nothing follows the last token
            batch.append(Row(ids, keep, name, branches=[n for n in branches if n]))
            num_kept += len(keep)
    states = model.logits(RowBatch.of(batch, model.device))
    if len(sources) > len(states):
        states = states[on_device(torch.tensor(sources), model.device)]
    return states, on_device(torch.tensor(labels, dtype=torch.int64), model.device)


@torch.no_grad()
def _base_states(base: Base, parts: Sequence[Sequence[EncodedRow]]) -> list[Tensor]:
    """Compute :func:`label_states` of the bare base for each part's rows.

    A row of several parts runs once.
    """
    if not parts:
        return []
    distinct = {id(row): row for rows in parts for row in rows}
    keeps = {key: row.label_positions for key, row in distinct.items()}
    batch = [Row(row.input_ids, keeps[key]) for key, row in distinct.items()]
    states = base.logits(RowBatch.of(batch, base.device))
    starts, place = {}, 0
    for key, keep in keeps.items():
        starts[key] = place
        place += len(keep)
    spans = [
        [slice(starts[id(row)], starts[id(row)] + len(keeps[id(row)])) for row in rows]
        for rows in parts
    ]
    return [torch.cat([states[span] for span in of_part]) for of_part in spans]


def forward_passes(
    rows_of: Sequence[Sequence[EncodedRow]], batch_tokens: int, at_once: int = 1
) -> list[list[tuple[int, list[EncodedRow]]]]:
    """Cut the rows of one optimizer step, by term, into few forward passes of similar size.

    A pass has at most ``batch_tokens`` tokens, or one row, whatever the trials' batch sizes and
    accumulation: the gradient is a sum over the step's rows, however they are cut. A pair stays
    together, because its loss needs both rows. If several passes run at once, their number is about
    a multiple of ``at_once``.
    """
    total = sum(len(row.input_ids) for rows in rows_of for row in rows)
    rounds = max(1, math.ceil(total / (batch_tokens * at_once)))
    share = total / (rounds * at_once)
    passes: list[list[tuple[int, list[EncodedRow]]]] = [[]]
    size = seen = 0
    for i, rows in enumerate(rows_of):
        chosen: EncodedRow | None = None  # The row before, if it may begin a pair
        for row in rows:
            is_second, chosen = chosen is not None and chosen.rejected is row, row
            length = len(row.input_ids)
            # Either the pass is full, or the middle of this row would fall into the next share.
            is_full = size + length > batch_tokens or seen + length / 2 > len(passes) * share
            if size and is_full and not is_second:
                passes.append([])
                size = 0
            if not passes[-1] or passes[-1][-1][0] != i:
                passes[-1].append((i, []))
            passes[-1][-1][1].append(row)
            size += length
            seen += length
    return passes


# --- optimizer: AdamW, its rates, and clipping


def new_optimizer(
    parameters: ParamsT, weight_decay: float, kind: Literal["adamw", "adamw8bit"] = "adamw"
) -> torch.optim.Optimizer:
    """Make AdamW (betas 0.9, 0.999, eps 1e-8, decoupled decay), fused; each step sets the rate.

    ``adamw8bit`` keeps the moments of all but small parameters in 8 bits, with a scale for every
    256 of them (Dettmers et al., 2110.02861). That is a quarter of the optimizer's memory.
    """
    options: Any = {"lr": 0.0, "weight_decay": weight_decay, "betas": (0.9, 0.999), "eps": 1e-8}
    if kind == "adamw8bit":
        require_bitsandbytes("optimizer: adamw8bit")
        package: Any = importlib.import_module("bitsandbytes.optim")
        eight_bit: torch.optim.Optimizer = package.AdamW8bit(parameters, **options)
        return eight_bit
    return torch.optim.AdamW(parameters, **options, fused=True)


def rate_groups(
    parameters: Sequence[nn.Parameter], faster: Container[nn.Parameter], ratio: float
) -> list[dict[str, Any]]:
    """Make LoRA+'s groups (Hayou et al., 2402.12354): ``faster`` parameters get ``ratio`` x the
    rate."""
    return [
        {"params": [p for p in parameters if p not in faster], RATIO: 1.0},
        {"params": [p for p in parameters if p in faster], RATIO: ratio},
    ]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(RATIO, 1.0)


def gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def unscale_gradients(parameters: Sequence[nn.Parameter], scale: float) -> None:
    for gradient in gradients(parameters) if scale != 1 else ():
        gradient /= scale


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients down to ``max_norm`` (2-norm over all parameters); return the norm before,
    ()."""
    return whole(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
