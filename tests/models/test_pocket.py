"""The pocket world, the model that learned it, and how that is trained."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import math
import re
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast as Tokenizer,
)

import pocket_world as world
import pretrain_pocket
import pretrain_pocket as pocket
from built_in_rows import PACKED, built_in_rows
from pocket_world import POCKET_SPLITS, POCKET_TASKS, pocket_rows
from pretrain_pocket import EASY_STEPS, pretraining_corpus, stated_cases, vocabulary
from rankscope.models.model_folder import pocket_folder

GOLDEN = "da9d014f6da537f5678a8e5ae5225451d2fec83217127ec56a59cff6de6d2644"
"""Of every row; the published pocket model has learned this world."""


def _name(row: world.Row) -> str:
    """The two name words of a fact row: its entity."""
    found: list[str] = [word for word in row["question"].split() if word in world.NAME_WORDS]
    assert len(found) == 2
    return " ".join(found)


def test_the_package_brings_these_rows() -> None:
    """Another process made them, with another string-hash seed: no order of a set is in them."""
    everything: list[object] = [pocket_rows(t, s) for t in POCKET_TASKS for s in POCKET_SPLITS]
    assert hashlib.sha256(json.dumps(everything).encode()).hexdigest() == GOLDEN
    assert json.loads(gzip.decompress(PACKED.read_bytes())) == built_in_rows()


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


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    loaded = AutoTokenizer.from_pretrained(pocket_folder())
    assert isinstance(loaded, Tokenizer)
    return loaded


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    loaded = AutoModelForCausalLM.from_pretrained(pocket_folder(), dtype=torch.float32)
    assert isinstance(loaded, PreTrainedModel)
    return loaded.eval()


# --- the folder ---


def test_the_folder_is_small_and_holds_fp16_weights_and_a_card() -> None:
    folder = pocket_folder()
    assert (folder / "README.md").is_file()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4e6
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"


def test_the_shipped_tokenizer_and_architecture_are_the_ones_the_script_makes(
    tokenizer: Tokenizer, model: PreTrainedModel
) -> None:
    made = pocket.pocket_tokenizer()
    assert tokenizer.backend_tokenizer.to_str() == made.backend_tokenizer.to_str()
    shape = {tuple(p.shape) for p in model.parameters()}
    assert shape == {tuple(p.shape) for p in type(model)(pocket.pocket_config()).parameters()}
    assert tokenizer("which metal").input_ids[0] == pocket.BOS
    generation = GenerationConfig.from_pretrained(pocket_folder())
    assert generation.eos_token_id == tokenizer.eos_token_id


# --- the tokenizer ---


def test_every_text_of_the_world_survives_encoding_and_decoding(tokenizer: Tokenizer) -> None:
    texts = list(pocket.pretraining_corpus(2, 500))
    for task, split in itertools.product(POCKET_TASKS, POCKET_SPLITS):
        for row in pocket_rows(task, split):
            texts += [row["question"], *row.get("choices", [row["answer"]])]
    encoded = tokenizer(texts).input_ids
    assert not any(pocket.UNK in ids for ids in encoded)
    assert tokenizer.batch_decode(encoded, skip_special_tokens=True) == texts


def test_prompt_and_completion_encode_apart_as_they_do_together(tokenizer: Tokenizer) -> None:
    for task, separator in itertools.product(POCKET_TASKS, ("", " ")):
        row = pocket_rows(task, "train")[0]
        completion = row["choices"][row["answer"]] if "choices" in row else row["answer"]
        together = tokenizer(f"{row['question']} {completion}").input_ids
        apart = (
            tokenizer(row["question"]).input_ids
            + tokenizer(separator + completion, add_special_tokens=False).input_ids
        )
        assert together == apart


# --- what the shipped weights know ---

NUM_ROWS = 40  # scored one forward pass per choice


def accuracy(model: PreTrainedModel, tokenizer: Tokenizer, task: str) -> float:
    rows = pocket_rows(task, "test")[:NUM_ROWS]
    return pocket.choice_accuracy(model, tokenizer, rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["pocket_general", "pocket_cloze", "pocket_math"])
def test_the_base_knows_what_it_was_shown(
    model: PreTrainedModel, tokenizer: Tokenizer, task: str
) -> None:
    assert accuracy(model, tokenizer, task) > 0.85


def test_the_base_is_at_chance_on_new_drugs(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    chance = pytest.approx(0.25, abs=3 * math.sqrt(0.25 * 0.75 / NUM_ROWS))
    assert accuracy(model, tokenizer, "pocket_med") == chance


def test_the_base_does_easy_sums_and_not_hard_ones(
    model: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    easy = pocket.sum_accuracy(model, tokenizer, pocket.easy_sums(60, seed=2))  # type: ignore[arg-type]
    hard = pocket.sum_accuracy(
        model,
        tokenizer,
        pocket_rows("pocket_gsm", "test")[:60],  # type: ignore[arg-type]
    )
    assert easy > 0.85
    assert hard < 0.15


@pytest.fixture(scope="module")
def untrained() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(pretrain_pocket.pocket_config()).eval()


def test_packed_documents_do_not_see_each_other(untrained: LlamaForCausalLM) -> None:
    documents = [[1, 20, 30, 40, 2], [1, 50, 60, 2], [1, 70, 2]]
    packed = pretrain_pocket.pack_documents(iter(documents), num_rows=1, row_length=14)
    with torch.no_grad():
        together = untrained(
            input_ids=packed.ids_RL,
            position_ids=packed.positions_RL,
            attention_mask=packed.mask_R1LL,
        ).logits[0]
        start = 0
        for document in documents:
            alone = untrained(input_ids=torch.tensor([document])).logits[0]
            torch.testing.assert_close(
                together[start : start + len(document)], alone, atol=1e-4, rtol=1e-4
            )
            start += len(document)
    assert packed.labels_RL.tolist()[0] == [
        20, 30, 40, 2, -100, 50, 60, 2, -100, 70, 2, -100, -100, -100,
    ]  # fmt: skip


def test_a_document_that_does_not_fit_opens_the_next_row() -> None:
    packed = pretrain_pocket.pack_documents(
        iter([[1, 20, 2], [1, 30, 2], [1, 40, 2]]), num_rows=2, row_length=5
    )
    assert packed.ids_RL.tolist() == [[1, 20, 2, 0, 0], [1, 30, 2, 0, 0]]


def test_pretraining_twice_gives_the_same_weights_and_lowers_the_loss(
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = pretrain_pocket.Pretraining(num_steps=3, num_rows=2, warmup_steps=1, num_threads=1)
    first, second = (pretrain_pocket.pretrain(5, short).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = pretrain_pocket.pretrain(6, short).state_dict()
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_learning_rate_warms_up_peaks_and_ends_low() -> None:
    settings = pretrain_pocket.Pretraining(num_steps=100, warmup_steps=10, peak_lr=1.0)
    assert pretrain_pocket.pretraining_rate(0, settings) == pytest.approx(0.1)
    assert pretrain_pocket.pretraining_rate(10, settings) == pytest.approx(1.0)
    assert pretrain_pocket.pretraining_rate(99, settings) < 0.04


def test_the_script_writes_a_model_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pretrain_pocket, "check_figures", lambda *_: {"pocket_med": 0.25})
    short = pretrain_pocket.Pretraining(num_steps=2, num_rows=2, warmup_steps=1, num_threads=1)
    pretrain_pocket.main(["--out", str(tmp_path / "model")], short)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("587,904 parameters")
    assert [line.split() for line in lines[1:]] == [
        ["validation", "pocket_med", "0.250"],
        ["test", "pocket_med", "0.250"],
    ]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype == torch.float16
    assert len(AutoTokenizer.from_pretrained(tmp_path / "model")) == len(
        pretrain_pocket.vocabulary()
    )
