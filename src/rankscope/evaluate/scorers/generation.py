"""Greedy generation for many items and many models in one running batch, and its scores.

Sequences of all models wait in one queue. As many as the cache may hold run together, see
``running_batch.py``.
"""

import time
from collections import deque
from collections.abc import Sequence

from rankscope.config.task import Scorer
from rankscope.data.encode import Encoder
from rankscope.data.items import Item
from rankscope.data.numbers import ANSWER_MARK, extract_number
from rankscope.data.registry import TaskSpec
from rankscope.errors import UserError
from rankscope.evaluate.continuous_batching import Generation, GenerationLimits, RunningBatch
from rankscope.evaluate.metrics import ModelScores, mean, normalized_answer
from rankscope.evaluate.prefix_sharing import find_shared_prefixes
from rankscope.models.base import Base
from rankscope.records import ItemResult

__all__ = [
    "Generation",
    "GenerationLimits",
    "encode_prompts",
    "generate",
    "score_generations",
    "stop_strings",
]


def generate(
    base: Base,
    prompts: Sequence[Sequence[int]],
    adapter_names: Sequence[str | None],
    limits: GenerationLimits,
) -> dict[str | None, list[Generation]]:
    """Continue every prompt greedily under every model; results in prompt order.

    Args:
        base: carries the adapters of ``adapter_names``; None among them is the bare base.
        prompts: token ids, each at least one and fewer than ``limits.context``.
        adapter_names: distinct.

    Raises:
        ValueError: a prompt outside these bounds.
    """
    found: dict[str | None, list[Generation]] = {}
    waiting: deque[Generation] = deque()
    for prompt in prompts:
        if not 0 < len(prompt) < limits.context:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens; expected 1 to {limits.context - 1}"
            )
    groups = find_shared_prefixes(prompts)
    shared = {i: group for group in groups if group.length for i in group.members}
    order = [i for group in groups for i in sorted(group.members, key=lambda i: -len(prompts[i]))]
    for adapter_name in adapter_names:
        found[adapter_name] = [
            Generation(
                adapter_name,
                i,
                prompt,
                min(limits.max_new_tokens, limits.context - len(prompt)),
                shared.get(i),
            )
            for i, prompt in enumerate(prompts)
        ]
        waiting.extend(found[adapter_name][i] for i in order)
    RunningBatch(base, limits).run(waiting)
    for generations in found.values():
        for generation in generations:
            generation.finish(limits, base.tokenizer)
    return found


# --- scores -------------------------------------------------------------------------------------


def encode_prompts(encoder: Encoder, items: Sequence[Item]) -> list[list[int]]:
    """Every item's prompt.

    Raises:
        UserError: an item without a prompt or without a gold answer.
    """
    prompts = []
    for item in items:
        prompts.append(encoder.prompt_ids(item))
        if not prompts[-1] or not gold_answer(item).strip():
            missing = "gold answer" if prompts[-1] else "prompt"
            raise UserError(
                f"{item.location}: no {missing}, so no answer can be generated and judged"
            )
    return prompts


def gold_answer(item: Item) -> str:
    """What a generated answer is compared with."""
    return item.reference or item.completion


def stop_strings(encoder: Encoder, spec: TaskSpec, items: Sequence[Item] = ()) -> tuple[str, ...]:
    """Text at which a plain-format answer is over: the beginning of a next question.

    A model that was not tuned to stop goes on with ``\\nQuestion: ...`` or, in a conversation, with
    ``\\n\\nUser: ...``. Chat models end their turn with a token instead. A template whose questions
    begin with nothing to tell them by gives none.
    """
    if encoder.prompt_format != "plain":
        return ()
    if any(item.messages for item in items):
        return ("\n\nUser:",)
    openings = [opening_of(line) for line in question_lines(spec.prompt)]
    return tuple(f"\n{opening}" for opening in openings if opening)[:1]


def question_lines(template: str) -> list[str]:
    """The lines of a template that hold fields, that of the question first."""
    lines = [line for line in template.splitlines() if "{" in line]
    return sorted(lines, key=lambda line: "{question}" not in line)


def opening_of(line: str) -> str:
    """The literal text that a template's line begins with, where answers do not begin so too.

    It ends in a colon or has three letters, and is no part of the mark before a final number:
    ``#`` would cut ``#### 18`` away.
    """
    opening = line.partition("{")[0].strip()
    letters = sum(character.isalpha() for character in opening)
    if opening.startswith(ANSWER_MARK) or not (opening.endswith(":") or letters >= 3):
        return ""
    return opening


def score_generations(
    base: Base,
    items: Sequence[Item],
    prompts: Sequence[Sequence[int]],
    scorer: Scorer,
    adapter_names: Sequence[str | None],
    limits: GenerationLimits,
) -> dict[str | None, ModelScores]:
    """Generated answers judged under every model.

    Metrics: ``exact_match`` (equal numbers for scorer ``number``, equal texts after normalization
    for ``exact_match``), ``stopped`` (share that ended by themselves) and, for ``number``,
    ``answered`` (share with a number in it). A model's seconds are its share, by tokens, of the
    running batch.
    """
    begun = time.perf_counter()
    found = generate(base, prompts, adapter_names, limits)
    seconds = time.perf_counter() - begun
    tokens = {
        adapter_name: sum(len(g.prompt) + len(g.ids) for g in gs)
        for adapter_name, gs in found.items()
    }
    total = sum(tokens.values())
    return {
        adapter_name: summarize(
            items, gs, scorer, seconds * tokens[adapter_name] / total, tokens[adapter_name]
        )
        for adapter_name, gs in found.items()
    }


def summarize(
    items: Sequence[Item],
    generations: Sequence[Generation],
    scorer: Scorer,
    seconds: float,
    num_tokens: int,
) -> ModelScores:
    """Scores of one model from its answers."""
    results = []
    for item, generation in zip(items, generations, strict=True):
        if scorer == "number":
            gold, prediction = extract_number(gold_answer(item)), extract_number(generation.text)
        else:
            gold = normalized_answer(gold_answer(item))
            prediction = normalized_answer(generation.text)
        if gold is None:
            raise UserError(
                f"{item.location}: no number in the gold answer {gold_answer(item)[:60]!r}; "
                "expected one, such as '#### 18'"
            )
        results.append(
            ItemResult(
                item_id=item.item_id,
                subject=item.subject,
                score=float(prediction == gold),
                gold=gold,
                prediction=prediction or "",
                generated=generation.text,
            )
        )
    metrics = {
        "exact_match": mean([result.score for result in results]),
        "stopped": mean([float(generation.stopped) for generation in generations]),
    }
    if scorer == "number":
        metrics["answered"] = mean([float(result.prediction != "") for result in results])
    return ModelScores(results, metrics, seconds, num_tokens)
