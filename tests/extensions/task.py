"""A task in one file: where its rows come from, how a row is read, its prompt and its scorer."""

from rankscope.data.formats import Shape
from rankscope.data.items import Item
from rankscope.data.registry import TaskSpec
from rankscope.data.rows import RawRow, multiple_choice, text_field
from rankscope.data.sources import SplitRows, numbered

WORDS = {
    "metal": "iron copper silver gold tin lead zinc nickel cobalt chrome platinum titanium sodium",
    "animal": "fox wolf bear otter heron eagle horse goat deer mouse rabbit sheep whale",
    "target": "fever cough gout asthma eczema migraine anemia malaria flu croup mumps acne rash",
    "charge": "theft fraud arson libel perjury bribery treason assault piracy forgery riot spying "
    "murder",
}


def read_kinds() -> tuple[SplitRows, str]:
    """One row per word and phrasing: to which attribute does the word belong?"""
    words = [(word, kind) for kind, words in WORDS.items() for word in words.split()]
    phrasings = {"train": "the {} of", "validation": "which {} has", "test": "what {}"}
    files = {
        split: numbered(
            [{"word": phrase.format(word), "kind": name} for word, name in words], f"kinds, {split}"
        )
        for split, phrase in phrasings.items()
    }
    return files, "words of the pocket world"


def read_kind(row: RawRow) -> Item:
    """``{"word": ..., "kind": ...}`` as a multiple-choice row over all kinds."""
    return multiple_choice(row, text_field(row, "word"), list(WORDS), text_field(row, "kind"))


KINDS_TASK = TaskSpec(
    name="kinds_of_words",
    description="To which attribute of the pocket world a word belongs.",
    scorer="option_text",
    prompt="{question} ?",
    read=read_kinds,
    shapes=(Shape("word and kind", frozenset({"word", "kind"}), read_kind),),
    license="Apache-2.0",
)
