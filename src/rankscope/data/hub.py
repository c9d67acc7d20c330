"""Rows of data sets on the hub, and rows cut from them."""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankscope.data.sources import DEV, RawRow, SplitRows, numbered
from rankscope.errors import UserError, first_line

ANSWER_SECONDS = 5
COMMIT = re.compile(r"[0-9a-f]{40}")
LAW_SUBJECTS = ("professional_law", "jurisprudence", "international_law")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A data set on the hub, and which of its splits serve as train, validation and test.

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
    """The training rows are another collection: read only if a study trains on the task."""

    @property
    def label(self) -> str:
        """Name for messages, such as ``hub openai/gsm8k (main)``."""
        config = f" ({self.config})" if self.config else ""
        revision = f" @ {self.revision}" if self.revision else ""
        return f"hub {self.id}{config}{revision}"

    @property
    def splits(self) -> dict[str, str]:
        """Split file -> name on the hub."""
        names = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: name for split, name in {**names, DEV: self.dev}.items() if name is not None}


def read_hub(source: HubSource) -> tuple[SplitRows, str]:
    """The rows of a hub data set; ``source.id`` may be a local folder.

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
            raise UserError(
                f"{source.label}: found a data set that would run its own code when loaded "
                f"({reason}), expected files of rows; use the hub's Parquet copy (revision: "
                "refs/convert/parquet), or put the rows into JSONL or Parquet files"
            ) from error
        if not reached:
            reason = "the hub does not answer, and its cache does not hold the data set"
        raise UserError(
            f"{source.label}: cannot be loaded ({reason}). Check the id and the connection "
            "(HF_HUB_OFFLINE forbids it), put the rows into a local folder and name it with "
            "data_dir, or choose a task that needs neither, such as common_facts"
        ) from error
    files = {
        split: numbered(loaded[name].to_list(), f"{source.label}, {name}")
        for split, name in source.splits.items()
        if name in loaded
    }
    if not files:
        raise UserError(
            f"{source.label}: has the splits {', '.join(map(str, loaded))}; expected one of "
            f"{', '.join(source.splits.values())}"
        )
    commit = _commit_of(loaded)
    label_has_commit = commit is None or commit == source.revision
    return files, source.label if label_has_commit else f"{source.label}, commit {commit}"


@contextmanager
def _offline_if_unreachable(id: str) -> Iterator[bool]:
    """Ask the hub once; if it does not answer, only its cache is read. Gives whether it answers.

    The library would try again and again, for half a minute per data set.
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
    """The commit of a hub data set, 40 hex digits; None if it is not known.

    The library names the cache folder of a hub data set, and no other folder, by its commit.
    """
    folders = {Path(f["filename"]).parent.name for s in loaded.values() for f in s.cache_files}
    return next((name for name in sorted(folders) if COMMIT.fullmatch(name)), None)


def legal_from_mmlu(mmlu: Mapping[str, Sequence[RawRow]]) -> SplitRows:
    """An open stand-in for LegalMCQ, cut from MMLU's law questions.

    Professional law is shuffled with seed 0: its first 500 rows are tested on, the others trained
    on. Jurisprudence and international law are tested on only. The folder form of this task was
    made with the same shuffle, so both forms contain the same rows.
    """
    law = [row for row in mmlu["test"] if row.fields.get("subject") in LAW_SUBJECTS]
    professional = [row for row in law if row.fields["subject"] == LAW_SUBJECTS[0]]
    others = [row for row in law if row.fields["subject"] != LAW_SUBJECTS[0]]
    random.Random(0).shuffle(professional)
    return {"train": professional[500:], "test": professional[:500] + others}
