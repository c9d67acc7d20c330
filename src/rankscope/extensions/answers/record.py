"""Answers of a trained model beside those of its base."""

from rankscope.records.record import AnalysisRecord, Record


class WrittenAnswer(Record):
    """One test item, continued greedily by the base and by the trained model."""

    task: str
    item_id: str
    prompt: str  # Of a plain text its beginning; at most ``MAX_CHARACTERS``, like ``gold``
    gold: str  # The answer in the data, or the rest of the text
    before: str = ""  # By the base
    after: str = ""
    before_ended: bool = False  # By itself, before the most tokens were written
    after_ended: bool = False


class AnswersRecord(AnalysisRecord):
    answers: tuple[WrittenAnswer, ...]  # Of the training task first, then of retention tasks
    max_new_tokens: int
