"""The stage in which the base and every trained model answer a few test items."""

import time
from collections.abc import Iterator, Sequence

import torch

from rankscope.data.encode import Encoder
from rankscope.data.items import Item
from rankscope.data.tasks import LoadedTask
from rankscope.errors import reporting_shortages
from rankscope.evaluate.context_window import context_length
from rankscope.evaluate.continuous_batching import Generation, GenerationLimits, generate
from rankscope.evaluate.scorers import get_scorer
from rankscope.evaluate.scorers.generation import stop_strings
from rankscope.extensions.answers import WRITTEN_ANSWERS
from rankscope.extensions.answers.record import AnswersRecord, WrittenAnswer
from rankscope.models.base import Base
from rankscope.records import TrialSpec
from rankscope.run.context import RunContext
from rankscope.run.groups import Group
from rankscope.run.prepared import PreparedStudy
from rankscope.run.stages import Stage

ITEMS = 10  # The first test items of the training task
RETENTION_ITEMS = 4  # Items of each retention task
MAX_CHARACTERS = 2000  # Characters of a prompt and a gold answer as they are stored
BEGINNING = 200  # Most characters of a plain text that models continue

Asked = tuple[WrittenAnswer, list[int]]
"""A test item without answers yet, and the tokens of its prompt."""


class AnswersStage(Stage[TrialSpec, AnswersRecord]):
    """Greedy answers of trained trials, beside those of the base."""

    name = "answers"

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        self.of_base: dict[str, list[Generation]] = {}
        """Questions and the base's answers by training task; filled by :meth:`measure_base`."""

    def missing(self, group: Group) -> list[TrialSpec]:
        asked = [trial for trial in group if WRITTEN_ANSWERS.applies_to(self.context.study, trial)]
        return self.context.ledger.without_record(self.name, asked) if asked else []

    def measure_base(self) -> None:
        study, left = self.context.study, self.left_to_measure()
        tasks = dict.fromkeys(t.task for t in left if WRITTEN_ANSWERS.applies_to(study, t))
        if not tasks:
            return
        self.context.label = "base"
        self.context.begin_stage(self.name, len(tasks))
        for task in tasks:
            self.context.begin_piece(task)
            do = "free some memory, or set analyze.answers.enabled=false"
            with reporting_shortages("analyze.answers: the base writes", do=do):
                (self.of_base[task],) = written(self.context.base, study, task, [None])
            self.context.pieces_done += 1
        self.context.finish_stage()

    def run(self, model: Base, work: Sequence[TrialSpec]) -> Iterator[AnswersRecord]:
        study, task = self.context.study, work[0].task  # a group has one
        self.context.begin_stage(self.name, len(work))
        self.context.begin_piece(task)
        begun = time.perf_counter()
        names = [None if trial.trains_alone else trial.trial_id for trial in work]
        by_trial = written(model, study, task, names)
        seconds = (time.perf_counter() - begun) / len(work)
        asked = [answer for _, of_task in questions(study, task) for answer, _ in of_task]
        for trial, of_trial in zip(work, by_trial, strict=True):
            texts = zip(self.of_base[task], of_trial, strict=True)
            answers = [
                {
                    "before": b.text,
                    "after": a.text,
                    "before_ended": b.stopped,
                    "after_ended": a.stopped,
                }
                for b, a in texts
            ]
            filled = zip(asked, answers, strict=True)
            yield AnswersRecord(
                trial_id=trial.trial_id,
                seconds=seconds,
                max_new_tokens=WRITTEN_ANSWERS.max_new_tokens(study.config),
                answers=tuple(answer.model_copy(update=texts) for answer, texts in filled),
            )


# --- questions ----------------------------------------------------------------------------------


def questions(study: PreparedStudy, trained_on: str) -> list[tuple[LoadedTask, list[Asked]]]:
    """List the test items to answer, by task.

    They are those of the training task, or of the parts of its mixture, then those of the retention
    tasks whose scorer has no written answers itself.
    """
    data = study.data
    parts = data.tasks[trained_on].parts or (data.tasks[trained_on],)
    tasks = [(part, max(1, ITEMS // len(parts))) for part in parts if part.spec.scorer == "loss"]
    kept = [data.tasks[t.name] for t in study.task_records if "retention" in t.roles]
    tasks += [(t, RETENTION_ITEMS) for t in kept if not get_scorer(t.spec.scorer).generates]
    found = []
    for task, number in tasks:
        # If the options are inside the sentence, the prompt holds the right one.
        items = [item for item in task.test if not item.contexts][:number]
        if items:
            found.append((task, [_question(data.encoder, task.spec.name, i) for i in items]))
    return found


def _question(encoder: Encoder, task: str, item: Item) -> Asked:
    """Make the question of an item; a plain text asks to be continued from its beginning.

    That beginning is whole words, at most half of the text.
    """
    prompt, gold = item.prompt or item.question, item.completion
    if item.answer is not None:
        gold = item.choices[item.answer]
    if item.prompt or item.messages:
        ids = encoder.prompt_ids(item)
    else:
        half = gold[: min(BEGINNING, len(gold) // 2 + 1)]
        prompt = half.rpartition(" ")[0] or half
        gold = gold.removeprefix(prompt)
        ids = [*encoder.bos_ids, *encoder.text_ids(prompt)] or [encoder.start_id]
    prompt, gold = prompt[-MAX_CHARACTERS:], gold[:MAX_CHARACTERS]
    return WrittenAnswer(task=task, item_id=item.item_id, prompt=prompt, gold=gold), ids


def written(
    model: Base, study: PreparedStudy, trained_on: str, names: Sequence[str | None]
) -> list[list[Generation]]:
    """Return the answers to all questions of a training task, in order, for each adapter.

    The adapters of ``names`` are attached to ``model``; None is the model without one.
    """
    encoder, most = study.data.encoder, WRITTEN_ANSWERS.max_new_tokens(study.config)
    found: list[list[Generation]] = [[] for _ in names]
    for task, asked in questions(study, trained_on):
        prompts = [ids for _, ids in asked]
        limits = GenerationLimits(
            max_new_tokens=most,
            context=context_length(model.model.config) or max(map(len, prompts)) + most,
            batch_tokens=study.config.evaluate.batch_tokens,
            stop_ids=encoder.stop_ids,
            stop_strings=task.spec.stop or stop_strings(encoder, task.spec, task.test),
        )
        room = limits.context // 2  # A prompt that fills the context keeps its end
        prompts = [ids if len(ids) < limits.context else ids[-room:] for ids in prompts]
        with model.multi_lora.dropout_off(), torch.inference_mode():
            by_name = generate(model, prompts, names, limits)
        for of_name, name in zip(found, names, strict=True):
            of_name += by_name[name]
    return found
