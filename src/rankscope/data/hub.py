"""Published data sets: rows from the hub, and readers of the shapes that they have there."""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rankscope.config.section import short_repr
from rankscope.data.items import LETTERS, Item
from rankscope.data.rows import (
    BadRow,
    NoCompletion,
    RawRow,
    completion_field,
    index_field,
    is_missing,
    multiple_choice,
    text_field,
)
from rankscope.data.sources import DEV, SplitRows, numbered
from rankscope.errors import UserError, first_line

ANSWER_SECONDS = 5
COMMIT = re.compile(r"[0-9a-f]{40}")
OPTION_MARK = re.compile(r"(?:^|,)\s*([a-e])\s*\)\s*")
BLANK = "_"  # Place of the option in a sentence of WinoGrande
LAW_SUBJECTS = ("professional_law", "jurisprudence", "international_law")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A data set on the hub, and its splits that serve as train, validation and test.

    A split name is None if the hub has no such split with labels.
    """

    id: str
    config: str | None = None
    revision: str | None = None  # Branch, tag or commit; None is the default branch
    train: str | None = "train"
    validation: str | None = "validation"
    test: str | None = "test"
    dev: str | None = None  # Rows that serve as few-shot examples only
    train_is_separate_collection: bool = False
    """The training rows are another collection, read only if a study trains on the task."""

    @property
    def label(self) -> str:
        """Name for messages, such as ``hub openai/gsm8k (main)``."""
        config = f" ({self.config})" if self.config else ""
        revision = f" @ {self.revision}" if self.revision else ""
        return f"hub {self.id}{config}{revision}"

    @property
    def splits(self) -> dict[str, str]:
        """Maps each split file to its name on the hub."""
        names = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: name for split, name in {**names, DEV: self.dev}.items() if name is not None}


def read_hub(source: HubSource) -> tuple[SplitRows, str]:
    """Read the rows of a hub data set; ``source.id`` may be a local folder.

    Returns:
        The rows, and the source's label with the commit that was read, if it is known.
    """
    import datasets

    reached = True
    try:
        with _offline_if_unreachable(source.id) as reached:
            loaded = datasets.load_dataset(source.id, source.config, revision=source.revision)
    except Exception as error:  # the library raises some ten unrelated types here
        reason = first_line(error)
        if "Dataset scripts" in reason:
            found = f"a data set that would run its own code when loaded ({reason})"
            do = "use the hub's Parquet copy (revision: refs/convert/parquet)"
            raise UserError(source.label, found, "files of rows", do) from error
        if not reached:
            reason = "the hub does not answer, and its cache does not hold the data set"
        raise UserError(
            source.label,
            f"a data set that cannot be loaded ({reason})",
            "its rows",
            "check the id and the connection (HF_HUB_OFFLINE forbids it), name a folder of rows as "
            "data_dir, or choose a task that needs neither, such as common_facts",
        ) from error
    files = {
        split: numbered(loaded[name].to_list(), f"{source.label}, {name}")
        for split, name in source.splits.items()
        if name in loaded
    }
    if not files:
        found = f"the splits {', '.join(map(str, loaded))}"
        raise UserError(source.label, found, f"one of {', '.join(source.splits.values())}")
    commit = _commit_of(loaded)
    label_has_commit = commit is None or commit == source.revision
    return files, source.label if label_has_commit else f"{source.label}, commit {commit}"


@contextmanager
def _offline_if_unreachable(id: str) -> Iterator[bool]:
    """Ask the hub once, and read only the cache if it does not answer. Yields whether it answers.

    The library would retry for half a minute per data set.
    """
    import datasets
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    was_offline = constants.HF_HUB_OFFLINE
    offline = was_offline
    if not offline and not Path(id).exists():
        try:
            HfApi().repo_info(id, repo_type="dataset", timeout=ANSWER_SECONDS)
        except HfHubHTTPError:
            pass  # it answers; load_dataset says what is wrong
        except Exception:  # whatever the HTTP library of the day raises without a connection
            offline = True
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = offline
    try:
        yield was_offline or not offline
    finally:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = was_offline


def _commit_of(loaded: Mapping[str, Any]) -> str | None:
    """Return the commit of a hub data set, 40 hex digits; None if it is unknown."""
    folders = {Path(f["filename"]).parent.name for s in loaded.values() for f in s.cache_files}
    return next((name for name in sorted(folders) if COMMIT.fullmatch(name)), None)


def legal_from_mmlu(mmlu: Mapping[str, Sequence[RawRow]]) -> SplitRows:
    """Make an open stand-in for LegalMCQ from MMLU's law questions.

    Professional law is shuffled with seed 0: its first 500 rows are tested on, the others trained
    on. Jurisprudence and international law are tested on only. The folder form of this task was
    made with the same shuffle, so both forms contain the same rows.
    """
    law = [row for row in mmlu["test"] if row.fields.get("subject") in LAW_SUBJECTS]
    professional = [row for row in law if row.fields["subject"] == LAW_SUBJECTS[0]]
    others = [row for row in law if row.fields["subject"] != LAW_SUBJECTS[0]]
    random.Random(0).shuffle(professional)
    return {"train": professional[500:], "test": professional[:500] + others}


# --- shapes -------------------------------------------------------------------------------------


def read_labeled_choices(row: RawRow) -> Item:
    """Read ARC, OpenBookQA or CommonsenseQA: labeled choices, with one label as the answer.

    Choices are {text, label} with a list in each, or a list of {text, label}. In the data sets' own
    files ``question`` is {stem, choices}, whose fields precede those of the row.
    """
    inner = row.fields.get("question")
    fields = {
        name: source[name]
        for source in (row.fields, inner if isinstance(inner, Mapping) else {})
        for name in ("question", "stem", "question_stem", "choices", "answerKey")
        if name in source
    }
    name = next((key for key in ("stem", "question_stem") if key in fields), "question")
    question = text_field(RawRow(row.location, row.number, fields), name)
    choices = fields.get("choices")
    if isinstance(choices, list) and all(isinstance(choice, Mapping) for choice in choices):
        choices = {key: [choice.get(key) for choice in choices] for key in ("text", "label")}
    texts, labels = (
        (choices.get("text"), choices.get("label")) if isinstance(choices, Mapping) else (0, 0)
    )
    if not isinstance(texts, list) or not isinstance(labels, list) or len(texts) != len(labels):
        raise BadRow(short_repr(choices), "'text' and 'label' in choices, lists of equal length")
    key = fields.get("answerKey")
    if is_missing(key):
        raise NoCompletion("answerKey")
    if key not in labels:
        raise BadRow(f"answerKey {short_repr(key)}", f"one of the labels {short_repr(labels)}")
    return multiple_choice(row, question, texts, labels.index(key))


def read_lettered_columns(row: RawRow) -> Item:
    """Read a table with the choices in columns A, B, C, ..., like MMLU's own files."""
    names = [letter for letter in LETTERS if letter in row.fields]
    choices = [row.fields[name] for name in names if not is_missing(row.fields[name])]
    return multiple_choice(row, text_field(row, "question"), choices, row.fields.get("answer"))


def read_yes_no(row: RawRow) -> Item:
    """Read a question of BoolQ with a true or false answer."""
    question = text_field(row, "question").strip().rstrip("?").rstrip() + "?"
    return multiple_choice(row, question, ("no", "yes"), int(row.fields["answer"]))


def _indexed_choices(question: str, choices: tuple[str, ...], label: str) -> Callable[..., Item]:
    """Make a reader of rows whose choices fill some fields, or one list, and whose answer is an
    index."""

    def read(row: RawRow) -> Item:
        options = [row.fields[name] for name in choices]
        options = options[0] if len(options) == 1 else options
        return multiple_choice(row, text_field(row, question), options, index_field(row, label))

    return read


read_medmcqa = _indexed_choices("question", ("opa", "opb", "opc", "opd"), "cop")
read_piqa = _indexed_choices("goal", ("sol1", "sol2"), "label")
read_casehold = _indexed_choices("context", ("endings",), "label")


def read_mathqa(row: RawRow) -> Item:
    """Read MathQA: one text of options, ``a ) 38 , b ) 27.675 , ...``, and a letter as the
    answer."""
    parts = OPTION_MARK.split(text_field(row, "options"))
    letters, options = parts[1::2], [part.strip() for part in parts[2::2]]
    if letters != list("abcde") or not all(options):
        rule = "options such as 'a ) .. , b ) .. , .. e ) ..'"
        raise BadRow(short_repr(row.fields["options"]), rule)
    key = completion_field(row, "correct").strip().lower()
    if key not in letters:
        raise BadRow(f"{short_repr(key)} as correct", "a letter from a to e")
    return multiple_choice(row, text_field(row, "Problem"), options, letters.index(key))


def read_hellaswag(row: RawRow) -> Item:
    """Read HellaSwag (Zellers et al., 1905.07830): a scene and four endings.

    The text is cleaned as in lm-evaluation-harness, see :func:`_remove_brackets`.
    """
    scene = f"{text_field(row, 'ctx_a')} {text_field(row, 'ctx_b').capitalize()}"
    endings = row.fields["endings"]
    is_list = isinstance(endings, Sequence) and not isinstance(endings, str)
    if not is_list or not all(isinstance(ending, str) for ending in endings):
        raise BadRow(f"{short_repr(endings)} as endings", "a list of texts")
    return multiple_choice(
        row,
        _remove_brackets(f"{text_field(row, 'activity_label')}: {scene}"),
        [_remove_brackets(ending) for ending in endings],
        index_field(row, "label"),
        template="{question}",
    )


def _remove_brackets(text: str) -> str:
    """Remove WikiHow's marks: `` [title]`` ends a sentence, other brackets are deleted.

    Two spaces become one, in a single pass, because published HellaSwag scores used that text.
    """
    lines = text.strip().replace(" [title]", ". ").split("\n")
    for position, line in enumerate(lines):
        # Search up to the last bracket: without one, each "[" would search the rest of a long line.
        whole, bracket, rest = line.rpartition("]")
        lines[position] = re.sub(r"\[.*?\]", "", whole + bracket) + rest
    return "\n".join(lines).replace("  ", " ")


def read_winogrande(row: RawRow) -> Item:
    """Read WinoGrande (Sakaguchi et al., 1907.10641): a sentence with a blank and two names.

    ``contexts`` are the sentence up to the blank, filled with each option; ``continuation`` is the
    rest, the same for both. The answer is the option after which the rest is more probable
    ("partial" scoring, Trinh & Le, 1806.02847).
    """
    sentence = text_field(row, "sentence")
    before, blank, after = sentence.partition(BLANK)
    if not blank or not after.strip():
        raise BadRow(f"the sentence {short_repr(sentence)}", f"{BLANK!r} with text after it")
    key = row.fields.get("answer")
    if is_missing(key):
        raise NoCompletion("answer")
    if str(key) not in ("1", "2"):
        raise BadRow(f"answer {short_repr(key)}", "'1' or '2'")
    options = [text_field(row, "option1"), text_field(row, "option2")]
    content = multiple_choice(row, sentence, options, int(str(key)) - 1, template="{question}")
    contexts = tuple(before + option for option in content.choices)
    return replace(content, contexts=contexts, continuation=after.strip())
