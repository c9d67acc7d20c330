"""Options that stand inside the question: the probability of what follows, after each of them.

Trinh & Le (1806.02847) call this partial scoring; it is how WinoGrande is scored. The prompts of an
item differ in their options, so each is a question of its own with one continuation.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rankscope.data.encode import Encoder
from rankscope.data.items import Item
from rankscope.data.registry import TaskSpec
from rankscope.errors import UserError
from rankscope.evaluate.metrics import ModelScores
from rankscope.evaluate.scorers.choice import Logprobs, Question, continuation_logprobs, summarize
from rankscope.models.base import Base


def encode_contexts(encoder: Encoder, items: Sequence[Item]) -> list[Question]:
    """One question per item and option, in order, with the one continuation.

    Raises:
        UserError: a prompt or a continuation without tokens.
    """
    questions = []
    for item in items:
        for context in item.contexts:
            asked = replace(item, prompt=context)
            answer = encoder.answer_ids(item.completion, asked)
            prompt = encoder.prompt_ids(asked)
            if not prompt or not answer:
                raise UserError(f"{item.location}: nothing stands before, or after, the option")
            questions.append(Question(prompt, [answer]))
    return questions


def score_contexts(
    base: Base,
    items: Sequence[Item],
    questions: Sequence[Question],
    spec: TaskSpec,
    adapter_names: Sequence[str | None],
    batch_tokens: int,
) -> dict[str | None, ModelScores]:
    """As :func:`.choice.score_choices`, for the questions of :func:`encode_contexts`.

    All options of an item have the same continuation, so normalizing by tokens changes nothing;
    ``acc_norm`` and ``acc_bytes`` divide by the option's own length, which means nothing here, and
    are left out.
    """
    found = continuation_logprobs(base, questions, adapter_names, batch_tokens)
    sizes = [len(item.contexts) for item in items]
    ends = np.cumsum(sizes)
    whole = [
        Question(questions[end - size].prompt, [questions[end - 1].continuations[0]] * size)
        for size, end in zip(sizes, ends.tolist(), strict=True)
    ]
    scores = {}
    for adapter_name, logprobs in found.items():
        flat = np.concatenate(logprobs.values)
        values = np.split(flat, ends[:-1])
        nothing = [np.zeros(0)] * len(values)
        joined = Logprobs(values, nothing, logprobs.seconds, logprobs.num_tokens)
        made = summarize(items, whole, spec, joined)
        for metric in ("acc_norm", "acc_bytes", "acc_token"):
            made.metrics.pop(metric, None)
        scores[adapter_name] = made
    return scores
