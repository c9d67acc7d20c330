"""Answers of a trained model beside those of its base."""

from rankscope.records.record import AnalysisRecord, Record


class WrittenAnswer(Record):
    """One test item, continued greedily by the base and by the trained model."""

    task: str
    item_id: str
    prompt: str  # At most ``MAX_CHARACTERS``, like ``gold``; the beginning of a plain text
    gold: str  # The answer in the data, or the rest of the text
    before: str = ""  # The base's answer
    after: str = ""
    before_ended: bool = False  # It ended by itself, before the most tokens were written
    after_ended: bool = False


class AnswersRecord(AnalysisRecord):
    answers: tuple[WrittenAnswer, ...]  # Training task first, then retention tasks
    max_new_tokens: int
