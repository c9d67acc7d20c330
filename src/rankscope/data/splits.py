"""Three splits from the files of a task: train, validation (chooses) and test (is quoted).

No row is in two splits, except test rows that were also published in train, which count as
contamination. Every draw is a pure function of (seed, task, purpose), so another task or limit
changes no other draw.

Few-shot examples are answered questions shown before each evaluated one. They come from rows that
are not scored: a ``dev`` file, else the training rows, else the validation file, which then does
not choose. A smaller number takes the first examples of a larger one. Examples by subject from a
file are its first rows of the subject, as MMLU intends its five dev rows.

A test row counts as seen in training if it copies a whole training row or shares a long run of
words with one. The comparison covers the user's question and its answer. System prompts, prompt
templates and wrong options are left out. The run of 13 words is that of GPT-3's contamination study
(Brown et al., 2005.14165, appendix C) and many since. A run of phrases that many training rows have
is the wording of the data set (a greeting, a form with other numbers), no leak.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from rankscope.data.items import Item
from rankscope.data.registry import TaskSpec
from rankscope.data.sources import DEV
from rankscope.errors import UserError

MIN_VALIDATION_ROWS = 50
"""A published validation file with fewer rows is too noisy to choose by, and is left unused."""
MAX_CUT = 500
CUT_SHARE = 0.1
FEW_ROWS, FEW_CUT_SHARE = 100, 0.2
"""A cut of up to so many rows may take this share of the file. Few scored rows leave every answer
open, and leaving so few rows untrained costs less."""
TEST_CUT_SHARE = 0.2

# Purposes of the draws. They are part of the seed: another text would draw other rows.
TEST_DRAW = "report"
VALIDATION_DRAW = "selection"
EXAMPLE_DRAW = "shots"
EXAMPLE_SOURCES = {
    DEV: "dev file",
    "validation": "validation file, not used to choose",
    "": "training rows",
}
"""Maps the file of few-shot examples, empty for training rows, to its description for people."""

_T = TypeVar("_T")


def _seeded_order(count: int, *purpose: object) -> list[int]:
    """Return a permutation of range(count) that depends on ``purpose`` (seed, task, ...) alone."""
    order = list(range(count))
    random.Random("/".join(map(str, purpose))).shuffle(order)
    return order


def first_of_order(rows: Sequence[_T], limit: int | None, *purpose: object) -> tuple[_T, ...]:
    """Return the first ``limit`` rows of the seeded order, in file order; smaller limits give
    subsets."""
    if limit is None or limit >= len(rows):
        return tuple(rows)
    chosen = sorted(_seeded_order(len(rows), *purpose)[:limit])
    return tuple(rows[position] for position in chosen)


def split_rows(
    task: str,
    files: Mapping[str, Sequence[Item]],
    data_seed: int,
    *,
    own_data: bool,
    keep_test_whole: bool = False,
) -> tuple[dict[str, tuple[Item, ...]], list[str]]:
    """Assign the rows of a task's files to train, validation and test; also return notes on cuts.

    Validation is the validation file, if it is the user's own or has at least 50 rows. Otherwise it
    is 20 % of the distinct train rows, at most 100 of them; or 10 %, at most 500, if that is more.
    Without train rows it is 20 % of the distinct test rows, unless ``keep_test_whole``. Test is the
    test file without the validation rows cut from it; without a file, as many train rows. Copies go
    with their original. Validation rows that repeat a test row, and training rows that repeat a
    validation row, are removed.
    """
    train, validation, test = ([*files.get(f, ())] for f in ("train", "validation", "test"))
    notes = []
    if validation and not own_data and len(validation) < MIN_VALIDATION_ROWS:
        notes.append(
            f"{task}: the validation file has only {len(validation)} rows (under "
            f"{MIN_VALIDATION_ROWS}) and is not used"
        )
        validation = []
    distinct = len(_distinct_positions(train))
    if len(train) > 1 and distinct == 1:
        told = f"{{where}} cannot teach anything: its {len(train):,} training rows are all alike."
        raise UserError(f"task {task!r}", "rows that are all alike", "several", "", (), told)
    few = min(FEW_ROWS, int(FEW_CUT_SHARE * distinct))
    size = max(1, few, min(MAX_CUT, int(CUT_SHARE * distinct)))
    if not test and train:
        train, test = _cut_rows(train, size, data_seed, task, TEST_DRAW)
        notes.append(f"{task}: no test rows were given; {len(test)} were cut from train")
    if not validation and train:
        train, validation = _cut_rows(train, size, data_seed, task, VALIDATION_DRAW)
        notes.append(f"{task}: {len(validation)} validation rows were cut from train")
    elif not validation and test and not keep_test_whole:
        size = max(1, int(TEST_CUT_SHARE * len(_distinct_positions(test))))
        test, validation = _cut_rows(test, size, data_seed, task, VALIDATION_DRAW)
        notes.append(f"{task}: no train rows; {len(validation)} validation rows were cut from test")
    validation, in_test = without(validation, test)
    if not test or not (validation or keep_test_whole):
        found = f"{len(train)} train, {len(validation)} validation and {len(test)} test rows"
        if in_test:
            found += f", after removing {in_test} validation rows that repeat a test row"
        do = "give more rows, or the missing file ('validation:' or 'test:')"
        if test and in_test:
            do = "give test rows that the other files do not have"
        raise UserError(f"task {task!r}", found, "at least one validation and one test row", do)
    train, in_validation = without(train, validation)
    if files.get("train") and not train:
        found = f"no train row beside {len(validation)} validation and {len(test)} test rows"
        raise UserError(f"task {task!r}", found, "at least one", "give more train rows")
    if in_test:
        notes.append(f"{task}: {in_test} validation rows repeat a test row and were removed")
    if in_validation:
        notes.append(f"{task}: {in_validation} train rows repeat a validation row and were removed")
    splits = {"train": train, "validation": validation, "test": test}
    return {split: tuple(rows) for split, rows in splits.items()}, notes


def _distinct_positions(rows: Sequence[Item]) -> list[int]:
    """Return the positions of the rows that copy no earlier row."""
    first: dict[tuple[str, str], int] = {}
    for position, row in enumerate(rows):
        first.setdefault(row.content, position)
    return list(first.values())


def _cut_rows(rows: Sequence[Item], size: int, *purpose: object) -> tuple[list[Item], list[Item]]:
    """Return (kept, cut): ``size`` distinct rows from the end of the seeded order, in file order.

    Every row has the same probability, however many copies it has; copies go with their original.
    """
    originals = set(_distinct_positions(rows))
    order = [p for p in _seeded_order(len(rows), *purpose) if p in originals]
    drawn = {rows[position].content for position in order[len(order) - size :]}
    kept = [row for row in rows if row.content not in drawn]
    return kept, [row for row in rows if row.content in drawn]


def without(rows: list[Item], others: Sequence[Item]) -> tuple[list[Item], int]:
    """Return the rows whose content is not in ``others``, and the number of removed rows."""
    contents = {row.content for row in others}
    kept = [row for row in rows if row.content not in contents]
    return kept, len(rows) - len(kept)


# --- few-shot examples --------------------------------------------------------------------------


def example_file(spec: TaskSpec, items: Mapping[str, Sequence[Item]]) -> str:
    """Name the file whose rows all serve as few-shot examples; empty for training rows."""
    where = f"task {spec.name!r}, num_fewshot"
    sample = next(item for rows in items.values() for item in rows)
    if sample.messages or not sample.prompt:
        found = "conversations" if sample.messages else "texts"
        raise UserError(where, found, "rows with a question and an answer", "remove it")
    if items.get(DEV):
        return DEV
    if items.get("train"):
        return ""
    if items.get("validation") and items.get("test"):
        return "validation"
    found = f"only {', '.join(items)} rows, and none for examples"
    raise UserError(where, found, "a dev or train file", "add one, or set num_fewshot: 0")


def with_examples(
    spec: TaskSpec, pool: Sequence[Item], file: str, splits: Mapping[str, Sequence[Item]], seed: int
) -> tuple[dict[str, tuple[Item, ...]], list[str]]:
    """Add examples to the items of scored splits, without items that repeat a row of the pool.

    Returns:
        The splits with their examples, and notes.
    """
    prepared: dict[str, tuple[Item, ...]] = {}
    by_subject: dict[str | None, tuple[tuple[str, str], ...]] = {}
    removed = 0
    for split, items in splits.items():
        kept, repeated = without(list(items), pool)
        removed += repeated
        if items and not kept:
            found = f"a {split} split whose rows all serve as few-shot examples, too"
            do = "give other rows, or num_fewshot: 0"
            raise UserError(f"task {spec.name!r}", found, "rows of its own", do)
        for number, item in enumerate(kept):
            subject = item.subject if spec.fewshot_by_subject else None
            if subject not in by_subject:
                by_subject[subject] = choose_examples(spec, pool, file, subject, seed)
            kept[number] = replace(item, fewshot=by_subject[subject])
        prepared[split] = tuple(kept)
    source = EXAMPLE_SOURCES[file]
    notes = [f"{spec.name}: {spec.num_fewshot} few-shot examples from the {source}"]
    if removed:
        notes.append(f"{spec.name}: {removed} scored rows that repeat an example were removed")
    return prepared, notes


def choose_examples(
    spec: TaskSpec, pool: Sequence[Item], file: str, subject: str | None, seed: int
) -> tuple[tuple[str, str], ...]:
    """Choose the few-shot examples of a task, or of one subject, as (prompt, answer) pairs."""
    rows = [row for row in pool if not spec.fewshot_by_subject or row.subject == subject]
    # MMLU's dev rows of college_physics contain a copy: it appears twice, as published.
    if not (spec.fewshot_by_subject and file):
        rows = list({row.content: row for row in rows}.values())
        order = _seeded_order(len(rows), seed, spec.name, EXAMPLE_DRAW, subject)
        rows = [rows[position] for position in order]
    if len(rows) < spec.num_fewshot:
        of_subject = f" of subject {subject!r}" if subject is not None else ""
        found = f"{len(rows)} usable rows{of_subject} in the {EXAMPLE_SOURCES[file]}"
        place = f"task {spec.name!r}, num_fewshot"
        raise UserError(place, found, f"{spec.num_fewshot} examples", "ask for fewer")
    return tuple((row.prompt, row.completion) for row in rows[: spec.num_fewshot])


# --- test rows that training has seen ----------------------------------------------------------

RUN_LENGTH = 13
PHRASE_LENGTH = 3
MIN_COMMON_ROWS = 5
COMMON_SHARE = 0.01
"""A phrase is common if it is in more than 5 different training rows, and in more than 1 %."""
SAME_QUESTION_SHARE = 0.5
"""Share of words that two questions must have in common if only their answers share a run."""

Words = tuple[str, ...]


Contamination = dict[str, tuple[str, ...]]
"""Ids of the test items that are also in train, each in one kind. ``exact``: question and gold
answer are equal after normalization. ``ngram13``: a training row shares an uncommon run."""


def contamination_notes(found: Contamination, task: str, num_test: int) -> Iterator[str]:
    """Yield one sentence per kind of contamination."""
    if exact := len(found["exact"]):
        yield f"{task}: {exact} of {num_test} test rows are copies of training rows"
    if overlapping := len(found["ngram13"]):
        rows = f"{overlapping} of {num_test} test rows"
        yield f"{task}: {rows} overlap the training set (13-gram match)"


def find_contamination(train: Sequence[Item], test: Sequence[Item]) -> Contamination:
    """Compare every test row with every training row.

    The compared texts of the test rows are held in memory, some 200 bytes per word.
    """
    contents: dict[tuple[str, str], list[int]] = defaultdict(list)
    # Maps a run to (test row, whether the run decides alone: it is in the question, or the row has
    # none).
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
    """Return every ``length`` consecutive words of a text, or of each of several texts."""
    found: set[Words] = set()
    for text in [texts] if isinstance(texts, str) else texts:
        words = text.split()
        found.update(zip(*(words[start:] for start in range(length)), strict=False))
    return found


def _is_uncommon(run: Words, rows_with: Mapping[Words, int], limit: float) -> bool:
    """Whether at least half of the phrases of a run are in few training rows."""
    phrases = _word_runs(" ".join(run), PHRASE_LENGTH)
    return 2 * sum(rows_with[phrase] <= limit for phrase in phrases) >= len(phrases)


def _are_similar(question: str, other: str) -> bool:
    """Whether the longer of two questions shares at least half of its words with the other."""
    words, others = set(question.split()), set(other.split())
    return len(words & others) >= SAME_QUESTION_SHARE * max(len(words), len(others))


def find_contamination_between_tasks(
    train: Mapping[str, Sequence[Item]], test: Mapping[str, Sequence[Item]]
) -> tuple[list[str], dict[str, set[str]]]:
    """Find test rows of one task that are also training rows of another.

    Returns:
        One sentence per pair of tasks, and the ids of such rows by evaluated task.
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
