"""Test rows that training has seen: the same item, or a long run of the same words.

The run length of 13 words is that of GPT-3's contamination study (Brown et al., 2005.14165,
appendix C) and many since.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rankscope.data.items import Item

RUN_LENGTH = 13


@dataclass(frozen=True, slots=True)
class Contamination:
    """Ids of the test items also found in train; no id is in both tuples."""

    exact: tuple[str, ...]
    """Question and gold answer are equal after normalization."""
    ngram13: tuple[str, ...]
    """Not exact, but one training row shares 13 consecutive words of question or answer."""

    @property
    def counts(self) -> dict[str, int]:
        """Items by kind, as recorded per task."""
        return {"exact": len(self.exact), "ngram13": len(self.ngram13)}

    @property
    def item_ids(self) -> frozenset[str]:
        return frozenset(self.exact + self.ngram13)


def word_runs(content: tuple[str, str]) -> Iterator[tuple[str, ...]]:
    for text in content:
        words = text.split()
        for start in range(len(words) - RUN_LENGTH + 1):
            yield tuple(words[start : start + RUN_LENGTH])


def find_contamination(train: Sequence[Item], test: Sequence[Item]) -> Contamination:
    """Compare every test row with every training row.

    Templates and wrong options are not compared: they repeat without being contamination. The
    runs of the test rows are held in memory (some 100 bytes a word), training rows are streamed.
    """
    if not train:
        return Contamination(exact=(), ngram13=())
    contents: dict[tuple[str, str], list[int]] = {}
    runs: dict[tuple[str, ...], list[int]] = {}
    for position, item in enumerate(test):
        content = item.content
        contents.setdefault(content, []).append(position)
        for run in word_runs(content):
            runs.setdefault(run, []).append(position)
    exact: set[int] = set()
    overlapping: set[int] = set()
    for item in train:
        content = item.content
        exact.update(contents.get(content, ()))
        for run in word_runs(content):
            overlapping.update(runs.get(run, ()))
    return Contamination(
        exact=tuple(test[position].item_id for position in sorted(exact)),
        ngram13=tuple(test[position].item_id for position in sorted(overlapping - exact)),
    )


def find_contamination_between_tasks(
    train: Mapping[str, Sequence[Item]], test: Mapping[str, Sequence[Item]]
) -> tuple[list[str], dict[str, set[str]]]:
    """Test rows of one task that are also training rows of another.

    Args:
        train: training rows of every task that is trained on.
        test: test rows of every task that is evaluated.

    Returns:
        One sentence per pair of tasks, and by evaluated task the ids of those test rows.
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
                    f"{len(shared)} of {len(test_rows)} test rows of {evaluated} are also training "
                    f"rows of {trained}"
                )
    return notes, item_ids
