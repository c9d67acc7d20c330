"""Base of the scorers for written answers: prompts, stop strings, judging."""

import math
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from rankscope.config.patterns import compile_pattern, matched_parts
from rankscope.data.encode import Encoder
from rankscope.data.items import Item
from rankscope.data.numbers import ANSWER_MARK
from rankscope.errors import UserError
from rankscope.evaluate.metrics import ModelScores
from rankscope.evaluate.scorers.scorer import ItemTokens, Question, Scorer

if TYPE_CHECKING:
    from regex import Pattern

    from rankscope.data.registry import TaskSpec
    from rankscope.evaluate.context_window import EncodedSplit
    from rankscope.evaluate.continuous_batching import Generation, GenerationLimits
    from rankscope.models.base import Base


Judgment = tuple[float, str, str | None]
"""Judgment of an answer: its score, the text it was compared with, and the part of it that was
compared. The part is None if nothing was found."""


def normalized_answer(text: str) -> str:
    """Fold case, put one space between words, and drop a full stop at the end."""
    return " ".join(text.casefold().split()).rstrip(".").rstrip()


class GenerationScorer(Scorer[list[int]]):
    """Compares greedy answers with gold answers; a subclass says how.

    Metrics are the mean score and ``stopped``, the share of answers that ended by themselves. A
    scorer that lists ``answered``, or a task with ``extract``, adds the share of answers in which
    something to compare was found.
    """

    version = 2
    """Version 2 does not read dashes as signs, and ends an answer where a next question begins."""
    generates = True

    @abstractmethod
    def judge_answer(self, item: Item, text: str, pattern: "Pattern[str] | None") -> Judgment:
        """Compare one answer with the item's gold answer; ``pattern`` is the task's ``extract``."""

    def part(self, pattern: "Pattern[str] | None", text: str) -> str | None:
        """Return the part of a text to compare: all, or the first match of ``extract``; None
        without it."""
        return next(matched_parts(pattern, text), None) if pattern else text

    def encode(
        self, encoder: Encoder, items: Sequence[Item], spec: "TaskSpec", context: int | None
    ) -> list[list[int]]:
        prompts = [encoder.prompt_ids(item) for item in items]
        for item, prompt in zip(items, prompts, strict=True):
            if not prompt or not (item.reference or item.completion).strip():
                missing = "gold answer" if prompt else "prompt"
                raise UserError(
                    item.location, f"no {missing}", "one, to generate and judge an answer"
                )
        return prompts

    def item_tokens(
        self, encoder: Encoder, item: Item, encoded: list[int], max_new_tokens: int
    ) -> ItemTokens:
        gold = len(encoder.answer_ids(item.completion or item.reference, item))
        written = min(gold + 1, max_new_tokens) if item.completion else max_new_tokens
        return ItemTokens(len(encoded), 1 + gold, written, len(encoded) + gold)

    def num_tokens(self, encoded: list[int]) -> int:
        return len(encoded) + 1

    def truncate_left(self, encoded: list[int], split: "EncodedSplit", where: str) -> list[int]:
        room = max(split.max_tokens // 2, split.max_tokens - split.settings.max_new_tokens)
        return split.last_tokens(encoded, room, where)

    def run(
        self, base: "Base", split: "EncodedSplit", adapter_names: Sequence[str | None]
    ) -> dict[str | None, ModelScores]:
        """Score the answers of every model.

        A model's seconds are its share, by tokens, of the batch that all models run in, and its own
        pass over the gold answers.
        """
        from rankscope.evaluate.context_window import context_length
        from rankscope.evaluate.continuous_batching import GenerationLimits

        settings, longest = split.settings, max(map(len, split.encoded))
        limits = GenerationLimits(
            max_new_tokens=settings.max_new_tokens,
            context=context_length(base.model.config) or longest + settings.max_new_tokens,
            batch_tokens=settings.batch_tokens,
            stop_ids=split.encoder.stop_ids,
            stop_strings=split.spec.stop or stop_strings(split.encoder, split.spec, split.items),
        )
        started = time.perf_counter()
        prompts = {item.item_id: ids for item, ids in zip(split.items, split.encoded, strict=True)}
        by_model = split.engine.generate(base, prompts, adapter_names, limits)
        seconds = time.perf_counter() - started
        tokens = {
            name: sum(len(g.prompt) + len(g.ids) for g in generations)
            for name, generations in by_model.items()
        }
        scores = {}
        for name, generations in by_model.items():
            scores[name] = self.judge(split.items, generations, split.spec)
            scores[name].metrics |= split.engine.metrics(name)
            scores[name].num_tokens = tokens[name]
            scores[name].seconds = seconds * tokens[name] / sum(tokens.values())
        _add_gold_logprobs(base, split, limits, scores)
        return scores

    def judge(
        self, items: Sequence[Item], generations: "Sequence[Generation]", spec: "TaskSpec"
    ) -> ModelScores:
        """Score one model from its answers, in item order."""
        from rankscope.records import ItemResult

        pattern = None if spec.extract is None else compile_pattern(spec.extract)
        results: list[ItemResult] = []
        answered: list[float] = []
        for item, generation in zip(items, generations, strict=True):
            score, gold, prediction = self.judge_answer(item, generation.text, pattern)
            answered.append(float(prediction is not None))
            judged = (item.item_id, item.subject, score, gold, prediction or "")
            results.append(ItemResult(*judged, generated=generation.text))
        metrics = {
            self.default_metric: fmean([result.score for result in results]),
            "stopped": fmean([float(generation.stopped) for generation in generations]),
        }
        if pattern or "answered" in self.metrics:
            metrics["answered"] = fmean(answered)
        return ModelScores(results, metrics)


class EqualAnswerScorer(GenerationScorer):
    """Right if the compared part of the answer equals the compared part of the gold answer."""

    def judge_answer(self, item: Item, text: str, pattern: "Pattern[str] | None") -> Judgment:
        part = self.part(pattern, text)
        prediction = None if part is None else self.comparable(part)
        gold = self.gold(item, pattern)
        return float(prediction == gold), gold, prediction

    @abstractmethod
    def comparable(self, text: str) -> str | None:
        """Return the compared form of an answer, equal for equal answers; None without one."""

    def gold(self, item: Item, pattern: "Pattern[str] | None") -> str:
        """Return the text that an answer must equal: the part of the gold answer, or all of it."""
        return self.comparable(self.must_write(item, pattern)) or ""

    def must_write(self, item: Item, pattern: "Pattern[str] | None") -> str:
        part = self.part(pattern, item.completion) if pattern else None
        return part if part is not None else item.reference or item.completion


def _add_gold_logprobs(
    base: "Base",
    split: "EncodedSplit",
    limits: "GenerationLimits",
    scores: dict[str | None, ModelScores],
) -> None:
    """Add log p and tokens of every item's right answer, from one forward pass per model.

    Forgetting shows in it before an answer changes. It is None for an answer that does not fit the
    context after its prompt, or is not finite.
    """
    from rankscope.evaluate.likelihood import continuation_logprobs

    answers = [
        split.encoder.answer_ids(item.completion or item.reference, item) for item in split.items
    ]
    fitting = [
        i
        for i, (prompt, answer) in enumerate(zip(split.encoded, answers, strict=True))
        if answer and len(prompt) + len(answer) <= limits.context
    ]
    if not fitting:
        return
    questions = [Question(split.encoded[i], [answers[i]]) for i in fitting]
    by_model = continuation_logprobs(base, questions, [*scores], limits.batch_tokens)
    for name, logprobs in by_model.items():
        of_model = scores[name]
        of_model.seconds += logprobs.seconds
        of_model.num_tokens += logprobs.num_tokens
        for i, total in zip(fitting, logprobs.totals.tolist(), strict=True):
            if math.isfinite(total):
                length = len(answers[i])
                result = replace(of_model.items[i], gold_logprob=total, gold_tokens=length)
                of_model.items[i] = result


def stop_strings(encoder: Encoder, spec: "TaskSpec", items: Sequence[Item] = ()) -> tuple[str, ...]:
    """Return the text that begins a next question, and so ends an answer in plain format.

    A model that was not tuned to stop continues with ``\\nQuestion: ...`` or, in a conversation,
    with ``\\n\\nUser: ...``. Chat models end their turn with a token instead. A template whose
    questions begin with no fixed text has no stop string.
    """
    if encoder.prompt_format != "plain":
        return ()
    if any(item.messages for item in items):
        return ("\n\nUser:",)
    lines = [line for line in spec.prompt.splitlines() if "{" in line]
    lines.sort(key=lambda line: "{question}" not in line)
    openings = [_literal_opening(line) for line in lines]
    return tuple(f"\n{opening}" for opening in openings if opening)[:1]


def _literal_opening(line: str) -> str:
    """Return the text before a template line's first field, if no answer would begin with it.

    It ends in a colon or has three letters, and is no part of the mark before a final number: ``#``
    would cut ``#### 18``.
    """
    opening = line.partition("{")[0].strip()
    letters = sum(character.isalpha() for character in opening)
    if opening.startswith(ANSWER_MARK) or not (opening.endswith(":") or letters >= 3):
        return ""
    return opening
