"""The pocket world: reproducible, with disjoint splits and a complete vocabulary."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys

from pretrain_pocket import EASY_STEPS, pretraining_corpus, stated_cases, vocabulary
from rankscope.data import pocket_world as world
from rankscope.data.pocket_world import POCKET_SPLITS, POCKET_TASKS, pocket_rows

GOLDEN = "da9d014f6da537f5678a8e5ae5225451d2fec83217127ec56a59cff6de6d2644"
"""Of every row; the published pocket model has learned this world."""
DIGEST_SCRIPT = """
import hashlib, json
from rankscope.data.pocket_world import *
everything = [pocket_rows(t, s) for t in POCKET_TASKS for s in POCKET_SPLITS]
print(hashlib.sha256(json.dumps(everything).encode()).hexdigest())
"""


def _name(row: world.Row) -> str:
    """The two name words of a fact row: its entity."""
    found: list[str] = [word for word in row["question"].split() if word in world.NAME_WORDS]
    assert len(found) == 2
    return " ".join(found)


def test_another_process_makes_the_same_world() -> None:
    # Another process has another string-hash seed, so this also catches set-order dependence.
    everything: list[object] = [pocket_rows(t, s) for t in POCKET_TASKS for s in POCKET_SPLITS]
    here = hashlib.sha256(json.dumps(everything).encode()).hexdigest()
    there = subprocess.run(
        [sys.executable, "-c", DIGEST_SCRIPT], capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == here == GOLDEN


def test_pretraining_never_names_a_new_drug_nor_asks_about_a_case_nor_shows_a_hard_sum() -> None:
    documents = list(pretraining_corpus(0, 20_000))
    facts = world.pocket_world()
    new_drugs = {entity[0].name for entity in facts["drugs_new"] + facts["drugs_untaught"]}
    stated = {entity[0].name for entity in stated_cases()}
    cases = {entity[0].name for entity in facts["cases"]}
    assert 0 < len(stated) < len(cases)
    for document in documents:
        name = " ".join(word for word in document.split() if word in world.NAME_WORDS)
        assert name not in new_drugs
        if name in cases:
            assert name in stated
            assert "?" not in document
        assert len(re.findall("gains|loses", document)) <= max(EASY_STEPS)
    evaluated_math = {
        row["question"]
        for split in ("validation", "test")
        for row in pocket_rows("pocket_math", split)
    }
    assert not {document.partition("?")[0] + "?" for document in documents} & evaluated_math


def test_half_of_each_evaluated_law_split_is_stated_in_pretraining() -> None:
    stated = {entity[0].name for entity in stated_cases()}
    for split in ("validation", "test"):
        rows = pocket_rows("pocket_law", split)
        assert sum(_name(row) in stated for row in rows) == len(rows) / 2


def test_every_word_is_in_the_vocabulary() -> None:
    known = set(vocabulary())
    assert len(known) == len(vocabulary())
    texts = list(pretraining_corpus(1, 5_000))
    for task in POCKET_TASKS:
        for split in POCKET_SPLITS:
            for row in pocket_rows(task, split):
                texts += [row["question"], *row.get("choices", [row["answer"]])]
    words = {piece for text in texts for piece in re.findall(r"\d|[A-Za-z]+|#+|[^\w\s]", text)}
    assert words <= known
