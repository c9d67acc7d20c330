"""Forward and backward of one optimizer step, for all active trials of a group."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from rankscope.data.encode import EncodedRow
from rankscope.models.base import Base, Row, RowBatch
from rankscope.train.loss import mean_losses
from rankscope.train.regularizers import LossTerm, base_logits_of, kl_divergences


class _PassPart(NamedTuple):
    term: int
    rows: list[EncodedRow]


@dataclass(frozen=True, slots=True)
class TermLoss:
    """One term of a trial's loss in one step, nats per labeled token."""

    loss: float  # Mean over the term's labeled tokens
    kl: float  # Mean KL(base || tuned) there; 0 if it is not computed


def compute_gradients(
    model: Base, base: Base, terms: Sequence[LossTerm], batch_tokens: int
) -> list[TermLoss]:
    """Accumulate the gradients of one optimizer step in the trained parameters; the loss of each
    term.

    ``model`` is the base with the trials' adapters, or the copy that full fine-tuning trains;
    ``base`` is the untuned one, which KL compares with. Terms of one trial follow one another.
    """
    num_labels = [term.num_labels for term in terms]
    totals = torch.zeros(2, len(terms), device=model.device)  # weighted losses; KL
    passes = forward_passes([term.rows for term in terms], batch_tokens, model.passes_at_once)
    term, rows_of_term = passes[0][0]
    for parts, weight in model.own_passes(passes, [_PassPart(term, rows_of_term[:1])]):
        members = [part.term for part in parts]
        with_kl = [i for i in members if terms[i].kl_weight]
        base_logits = (
            base_logits_of(base, [rows for i, rows in parts if i in with_kl]) if with_kl else []
        )
        batch = [
            Row(row.input_ids, row.label_positions, terms[i].adapter_name)
            for i, rows in parts
            for row in rows
        ]
        counts = [sum(sum(row.is_label) for row in rows) for _, rows in parts]
        labels = [
            row.input_ids[t + 1] for _, rows in parts for row in rows for t in row.label_positions
        ]
        logits = model.logits(RowBatch.of(batch, model.device))
        losses = mean_losses(
            logits,
            torch.tensor(labels, dtype=torch.int64, device=model.device),
            counts,
            [num_labels[i] / terms[i].weight for i in members],
        )
        total = losses.sum() * weight
        if with_kl:
            logits_of = dict(zip(members, logits.split(counts), strict=True))
            for i, reference in zip(with_kl, base_logits, strict=True):
                kl = kl_divergences(logits_of[i], reference).sum() / num_labels[i]
                total = total + terms[i].kl_weight * kl
                totals[1, i] += kl.detach()
        total.backward()
        totals[0, members] += losses.detach() * weight
    model.add_up(totals)
    return [
        TermLoss(loss / term.weight, kl)
        for term, loss, kl in zip(terms, *totals.tolist(), strict=True)
    ]


def forward_passes(
    rows_of: Sequence[Sequence[EncodedRow]], batch_tokens: int, at_once: int = 1
) -> list[list[_PassPart]]:
    """Cut the rows of one optimizer step, by term, into few forward passes of similar size.

    A pass has at most ``batch_tokens`` tokens, or one row, whatever the trials' batch sizes and
    accumulation: the gradient is a sum over the step's rows, however they are cut. If several run
    at once, their number is about a multiple of ``at_once``.
    """
    total = sum(len(row.input_ids) for rows in rows_of for row in rows)
    rounds = max(1, math.ceil(total / (batch_tokens * at_once)))
    share = total / (rounds * at_once)
    passes: list[list[_PassPart]] = [[]]
    size = seen = 0
    for i, rows in enumerate(rows_of):
        for row in rows:
            length = len(row.input_ids)
            # Either the pass is full, or the middle of this row would fall into the next share.
            if size and (size + length > batch_tokens or seen + length / 2 > len(passes) * share):
                passes.append([])
                size = 0
            if not passes[-1] or passes[-1][-1].term != i:
                passes[-1].append(_PassPart(i, []))
            passes[-1][-1].rows.append(row)
            size += length
            seen += length
    return passes
