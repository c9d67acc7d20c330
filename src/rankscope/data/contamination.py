"""Test rows that training has seen: the same item, or a long run of the same words.

13 words are the run length that GPT-3's contamination study used (Brown et al., 2005.14165,
appendix C) and many since.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rankscope.data.items import Item

NGRAM = 13
"""Words in a run."""


@dataclass(frozen=True, slots=True)
class Contamination:
    """Item ids of the test rows also found in train; no id stands in both."""

    exact: tuple[str, ...]
    """Question and gold answer are equal after normalization."""
    ngram13: tuple[str, ...]
    """Not exact, but 13 words in a row of question or answer stand in one training row."""

    @property
    def counts(self) -> dict[str, int]:
        """Rows by kind, as a task's record keeps them."""
        return {"exact": len(self.exact), "ngram13": len(self.ngram13)}

    @property
    def item_ids(self) -> frozenset[str]:
        """Every contaminated item."""
        return frozenset(self.exact + self.ngram13)


def _ngrams(content: tuple[str, str]) -> Iterator[tuple[str, ...]]:
    for text in content:
        words = text.split()
        for start in range(len(words) - NGRAM + 1):
            yield tuple(words[start : start + NGRAM])


def find_contamination(train: Sequence[Item], test: Sequence[Item]) -> Contamination:
    """Compare every test row with every training row.

    Templates and wrong options are not compared, since they repeat without being contamination. The
    test's runs are held in memory (some 100 bytes a word); training rows are streamed past them.
    """
    if not train:
        return Contamination(exact=(), ngram13=())
    contents: dict[tuple[str, str], list[int]] = {}
    runs: dict[tuple[str, ...], list[int]] = {}
    for position, item in enumerate(test):
        content = item.content
        contents.setdefault(content, []).append(position)
        for run in _ngrams(content):
            runs.setdefault(run, []).append(position)
    exact: set[int] = set()
    overlapping: set[int] = set()
    for item in train:
        content = item.content
        exact.update(contents.get(content, ()))
        for run in _ngrams(content):
            overlapping.update(runs.get(run, ()))
    return Contamination(
        exact=tuple(test[position].item_id for position in sorted(exact)),
        ngram13=tuple(test[position].item_id for position in sorted(overlapping - exact)),
    )


def find_contamination_between_tasks(
    train: Mapping[str, Sequence[Item]], test: Mapping[str, Sequence[Item]]
) -> tuple[list[str], dict[str, set[str]]]:
    """Test rows of one task that stand in the training rows of another.

    Args:
        train: training rows of every task that is trained on.
        test: test rows of every task that is scored.

    Returns:
        One sentence per two tasks, and by scored task the ids of such test rows.
    """
    notes: list[str] = []
    contaminated: dict[str, set[str]] = {}
    for trained, rows in train.items():
        seen = {row.content for row in rows}
        for scored, held_out in test.items():
            found = [row.item_id for row in held_out if row.content in seen]
            if found and scored != trained:
                contaminated.setdefault(scored, set()).update(found)
                notes.append(
                    f"{len(found)} of {len(held_out)} test rows of {scored} stand in the "
                    f"training rows of {trained}"
                )
    return notes, contaminated
