"""Test rows that training has seen: copies of whole rows, and rows that share a long run of words.

A row is judged by what the user asks and by its answer; system prompts, prompt templates and wrong
options are not compared. The run of 13 words is that of GPT-3's contamination study (Brown et al.,
2005.14165, appendix C) and many since. A run made of phrases that many training rows have is the
wording of the data set (a greeting, a form with other numbers, a stock answer), not a leak.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from rankscope.data.items import Item

RUN_LENGTH = 13
PHRASE_LENGTH = 3
MIN_COMMON_ROWS = 5
COMMON_SHARE = 0.01
"""A phrase is common if it is in more than 5 different training rows, and in more than 1 %."""
SAME_QUESTION_SHARE = 0.5
"""A shared run of the answer counts if the questions share half of their words, too."""

Words = tuple[str, ...]


Contamination = dict[str, tuple[str, ...]]
"""Ids of the test items also found in train, by kind, each in one kind: ``exact``, question and
gold answer are equal after normalization; ``ngram13``, a training row shares an uncommon run."""
NO_CONTAMINATION: Contamination = {"exact": (), "ngram13": ()}


def contamination_notes(found: Contamination, task: str, num_test: int) -> Iterator[str]:
    """One sentence per kind."""
    if exact := len(found["exact"]):
        yield f"{task}: {exact} of {num_test} test rows are copies of training rows"
    if overlapping := len(found["ngram13"]):
        rows = f"{overlapping} of {num_test} test rows"
        yield f"{task}: {rows} overlap the training set (13-gram match)"


def find_contamination(train: Sequence[Item], test: Sequence[Item]) -> Contamination:
    """Compare every test row with every training row.

    What is compared of the test rows is held in memory, some 200 bytes a word.
    """
    contents: dict[tuple[str, str], list[int]] = defaultdict(list)
    # Run -> (test row, whether it decides alone: it is in the question, or the row has none).
    runs: dict[Words, list[tuple[int, bool]]] = defaultdict(list)
    phrases: Counter[Words] = Counter()
    for position, item in enumerate(test):
        question, answer = content = item.content
        contents[content].append(position)
        for text, decides in ((question, True), (answer, not question)):
            phrases.update(dict.fromkeys(_word_runs(text, PHRASE_LENGTH), 0))
            for run in _word_runs(text, RUN_LENGTH):
                runs[run].append((position, decides))
    exact: set[int] = set()
    asked_with: dict[Words, list[str]] = defaultdict(list)
    rows = dict.fromkeys(item.content for item in train)
    for content in rows:
        exact.update(contents.get(content, ()))
        phrases.update(_word_runs(content, PHRASE_LENGTH) & phrases.keys())
        for run in _word_runs(content, RUN_LENGTH) & runs.keys():
            asked_with[run].append(content[0])
    limit = max(MIN_COMMON_ROWS, COMMON_SHARE * len(rows))
    overlapping = {
        position
        for run, questions in asked_with.items()
        if _is_uncommon(run, phrases, limit)
        for position, decides in runs[run]
        if decides or any(_are_similar(test[position].content[0], asked) for asked in questions)
    }
    kinds = {"exact": exact, "ngram13": overlapping - exact}
    return {kind: tuple(test[p].item_id for p in sorted(found)) for kind, found in kinds.items()}


def _word_runs(texts: str | tuple[str, ...], length: int) -> set[Words]:
    """Every ``length`` consecutive words of a text, or of each of several."""
    found: set[Words] = set()
    for text in [texts] if isinstance(texts, str) else texts:
        words = text.split()
        found.update(zip(*(words[start:] for start in range(length)), strict=False))
    return found


def _is_uncommon(run: Words, rows_with: Mapping[Words, int], limit: float) -> bool:
    """At least half of the phrases of a run are in few training rows."""
    phrases = _word_runs(" ".join(run), PHRASE_LENGTH)
    return 2 * sum(rows_with[phrase] <= limit for phrase in phrases) >= len(phrases)


def _are_similar(question: str, other: str) -> bool:
    """The longer of two questions has at least half of its words in common with the other."""
    words, others = set(question.split()), set(other.split())
    return len(words & others) >= SAME_QUESTION_SHARE * max(len(words), len(others))


def find_contamination_between_tasks(
    train: Mapping[str, Sequence[Item]], test: Mapping[str, Sequence[Item]]
) -> tuple[list[str], dict[str, set[str]]]:
    """Test rows of one task that are also training rows of another: a sentence per pair of tasks,
    and their ids by evaluated task.
    """
    notes: list[str] = []
    item_ids: dict[str, set[str]] = {}
    for trained, rows in train.items():
        contents = {row.content for row in rows}
        for evaluated, test_rows in test.items():
            if evaluated == trained:
                continue
            shared = [row.item_id for row in test_rows if row.content in contents]
            if shared:
                item_ids.setdefault(evaluated, set()).update(shared)
                notes.append(
                    f"{len(shared)} of {len(test_rows)} test rows of {evaluated} are copies of "
                    f"training rows of {trained}"
                )
    return notes, item_ids
