"""Base of the multiple-choice scorers: log p of every option, and the option that wins."""

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from rankscope.data.encode import Encoder
from rankscope.data.items import LETTERS, Item
from rankscope.errors import UserError
from rankscope.evaluate.metrics import ModelScores, choice_predictions, first_best
from rankscope.evaluate.scorers.scorer import ItemTokens, Question, Scorer

if TYPE_CHECKING:
    from rankscope.data.registry import TaskSpec
    from rankscope.evaluate.context_window import EncodedSplit
    from rankscope.evaluate.token_trees import Floats
    from rankscope.models.base import Base


class ChoiceScorer(Scorer[list[Question]]):
    """Computes log p of the options' texts, of their letters, or of both.

    The first option wins ties. An item whose log-probabilities are not finite counts as wrong;
    ``not_finite`` is then the share of such items.
    """

    needs_choices = True
    scores_one_row = True
    scores_texts: bool
    """Whether option texts are scored. Letters are scored, too, if the prompt lists the options:
    that costs nothing. Otherwise letters name nothing."""

    def scores_letters(self, spec: "TaskSpec") -> bool:
        return not self.scores_texts or spec.lists_options

    def primary_metrics(self, spec: "TaskSpec") -> tuple[str, ...]:
        return tuple(
            name for name in self.metric_choices if name != "letter" or self.scores_letters(spec)
        )

    def encode(
        self, encoder: Encoder, items: Sequence[Item], spec: "TaskSpec", context: int | None
    ) -> list[list[Question]]:
        return [self.questions(encoder, item, spec) for item in items]

    def questions(self, encoder: Encoder, item: Item, spec: "TaskSpec") -> list[Question]:
        """Return one prompt with the option texts and letters, in this order, as continuations."""
        answers = list(item.choices) if self.scores_texts else []
        if self.scores_letters(spec):
            answers += LETTERS[: len(item.choices)]
        prompt = encoder.prompt_ids(item)
        continuations = [encoder.answer_ids(answer, item) for answer in answers]
        empty = [a for a, ids in zip(answers, continuations, strict=True) if not ids]
        if empty or not prompt:
            what = f"option {empty[0]!r}" if empty else "the prompt"
            raise UserError(item.location, f"no tokens in {what}, so it has no probability")
        return [Question(prompt, continuations)]

    def item_tokens(
        self, encoder: Encoder, item: Item, encoded: list[Question], max_new_tokens: int
    ) -> ItemTokens:
        branches = [len(ids) - 1 for question in encoded for ids in question.continuations]
        prompts = sum(len(question.prompt) for question in encoded)
        predicted = len(encoded) + sum(branches)
        again = 0
        for question in encoded:
            passes = {tuple(ids) for ids in question.continuations if len(ids) > 1}
            again += len(question.prompt) * max(0, len(passes) - 1)
        return ItemTokens(prompts + sum(branches), predicted, rows=len(encoded), again=again)

    def num_tokens(self, encoded: list[Question]) -> int:
        return max(question.num_tokens for question in encoded)

    def truncate_left(
        self, encoded: list[Question], split: "EncodedSplit", where: str
    ) -> list[Question]:
        cut = []
        for question in encoded:
            room = split.max_tokens - (question.num_tokens - len(question.prompt))
            is_long = question.num_tokens > split.max_tokens
            prompt = split.last_tokens(question.prompt, room, where) if is_long else question.prompt
            cut.append(Question(prompt, question.continuations))
        return cut

    def run(
        self, base: "Base", split: "EncodedSplit", adapter_names: Sequence[str | None]
    ) -> dict[str | None, ModelScores]:
        from rankscope.evaluate.likelihood import continuation_logprobs

        questions = [question for of_item in split.encoded for question in of_item]
        scores = {}
        by_model = continuation_logprobs(
            base, questions, adapter_names, split.settings.batch_tokens
        )
        for name, logprobs in by_model.items():
            of_questions = iter(logprobs.values)
            values = [
                np.concatenate([next(of_questions) for _ in of_item]) for of_item in split.encoded
            ]
            of_model = self.summarize(split, values)
            of_model.seconds, of_model.num_tokens = logprobs.seconds, logprobs.num_tokens
            scores[name] = of_model
        return scores

    def summarize(self, split: "EncodedSplit", values: "Sequence[Floats]") -> ModelScores:
        """Score one model from every item's log-probabilities, (texts and letters,)."""
        from rankscope.records import ItemResult

        spec, primary = split.spec, split.spec.primary_metric or self.default_metric
        hits: dict[str, list[float]] = {}
        results = []
        not_finite = 0
        for item, questions, logprobs in zip(split.items, split.encoded, values, strict=True):
            assert item.answer is not None
            count = len(item.choices)
            is_finite = bool(np.isfinite(logprobs).all())
            not_finite += not is_finite
            texts = letters = tokens = None
            picks: dict[str, int | None] = {}
            lengths = [len(ids) for question in questions for ids in question.continuations]
            if self.scores_texts:
                texts = tuple(logprobs[:count].tolist())
                tokens = tuple(lengths[:count])
                picks = choice_predictions(texts, tokens, item.choices)
            if item.contexts:
                # All options share one continuation: dividing by its length changes nothing, and
                # dividing by the option's own length means nothing.
                picks = {"acc": picks["acc"]}
            elif self.scores_letters(spec):
                letters = tuple(logprobs[-count:].tolist())
                picks["letter"] = first_best(letters)
            for metric, pick in picks.items():
                hits.setdefault(metric, []).append(float(is_finite and pick == item.answer))
            pick = picks[primary]
            is_letter = primary == "letter"
            scored = letters if is_letter else texts
            assert scored is not None
            results.append(
                ItemResult(
                    item_id=item.item_id,
                    subject=item.subject,
                    score=hits[primary][-1],
                    gold=item.choices[item.answer],
                    prediction="" if pick is None else item.choices[pick],
                    gold_logprob=scored[item.answer] if is_finite else None,
                    gold_tokens=(lengths[-count:] if is_letter else lengths)[item.answer],
                    option_logprobs=texts,
                    option_tokens=tokens,
                    letter_logprobs=letters,
                )
            )
        metrics = {metric: fmean(scores) for metric, scores in hits.items()}
        if not_finite:
            metrics["not_finite"] = not_finite / len(split.items)
        return ModelScores(results, metrics)
