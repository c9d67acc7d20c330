"""Comparison of both engines' answers under one model."""

from collections.abc import Sequence
from statistics import fmean

import pyarrow as pa
import torch

from rankscope.evaluate.continuous_batching import Generation
from rankscope.evaluate.likelihood import continuation_logprobs
from rankscope.evaluate.scorers.scorer import Question
from rankscope.extensions.vllm import DIFFERENCE, EQUAL, Refused
from rankscope.extensions.vllm.server import VllmAnswer
from rankscope.models.base import Base

Pair = tuple[str, Generation, VllmAnswer]  # An item's id, and the answers of both engines
LARGEST_DIFFERENCE = {torch.bfloat16: 0.1, torch.float16: 0.0125, torch.float32: 0.0001}
"""Limit of an answer's difference of log p, nats per token, the mean over compared answers.

A logit between 16 and 32 is a multiple of .125 in bfloat16. Two engines that round it apart differ
by a third of that in the mean, .04. Over 16 answers of one token it is less than .07 (four standard
errors). Earlier layers add their own roundings; a longer answer averages over its tokens.
float16 has steps an eighth as large. In float32, 6e-6 was measured.
"""
LARGEST_MISSED = 1 / 10
"""Limit of the share of vLLM's tokens that the own engine would not write at their places.

Rounding to bfloat16 swaps two nearly equal tokens at two to four in a hundred, as
``benchmarks/vllm_parity.py`` measured. The difference of log p does not show an engine that samples
or penalizes repetition: log p of what it writes is right.
"""


def compared(base: Base, name: str | None, answers: Sequence[Pair], batch_tokens: int) -> pa.Table:
    """Tabulate the first answers of both engines under one model, with log p per token, nats."""
    questions = [Question(answer.prompt, [answer.all_ids]) for _, _, answer in answers]
    models = [name] if name is None else [name, None]
    computed = continuation_logprobs(base, questions, models, batch_tokens, greedy=True)
    rows = []
    for i, (item_id, own, answer) in enumerate(answers):
        found = (computed[name].values[i][0], computed[None].values[i][0], answer.logprob)
        of_own, of_base, of_vllm = (float(value) / len(answer.all_ids) for value in found)
        row = {
            "item_id": item_id,
            "own": own.text,
            "vllm": answer.text,
            "equal": own.text == answer.text,
            "tokens": len(answer.all_ids),
            "missed": int(computed[name].missed[i][0]),  # that the own engine would not write
            "own_logprob": of_own,
            "vllm_logprob": of_vllm,
            "difference": abs(of_own - of_vllm),
            "difference_without_adapter": abs(of_base - of_vllm),
        }
        rows.append(row)
    return pa.Table.from_pylist(rows)


def parity(table: pa.Table, dtype: torch.dtype) -> dict[str, float]:
    """Return ``EQUAL`` and ``DIFFERENCE`` of compared answers.

    Raises Refused: the answers come from another model or the base without its adapter, or are not
    greedy.
    """
    columns = table.to_pydict()
    difference, without = fmean(columns["difference"]), fmean(columns["difference_without_adapter"])
    missed, tokens = sum(columns["missed"]), sum(columns["tokens"])
    if not difference <= min(LARGEST_DIFFERENCE[dtype], 2 * without):
        raise Refused(
            f"vLLM computes another model: log p of its answers differs by {difference:.2g} nats "
            f"per token from the own engine's, and by {without:.2g} from that without the adapter"
        )
    if missed > max(2, LARGEST_MISSED * tokens):
        raise Refused(f"vLLM writes other tokens than the likeliest: {missed} of {tokens}")
    return {EQUAL: fmean(columns["equal"]), DIFFERENCE: difference}
