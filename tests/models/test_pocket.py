"""The shipped pocket model: its folder, its tokenizer, what it knows and what it does not."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

from rankscope.data.pocket_corpus import easy_sums, pretraining_corpus
from rankscope.data.pocket_world import (
    POCKET_SPLITS,
    POCKET_TASKS,
    pocket_rows,
    vocabulary,
)
from rankscope.models import pocket


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    loaded = AutoTokenizer.from_pretrained(pocket.pocket_folder())
    assert isinstance(loaded, Tokenizer)
    return loaded


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    loaded = AutoModelForCausalLM.from_pretrained(pocket.pocket_folder(), dtype=torch.float32)
    assert isinstance(loaded, PreTrainedModel)
    return loaded.eval()


# --- the folder ---


def test_the_folder_is_small_and_holds_fp16_weights_and_a_card() -> None:
    folder = pocket.pocket_folder()
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4e6
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"


def test_the_shipped_tokenizer_and_architecture_are_the_ones_the_script_makes(
    tokenizer: Tokenizer, model: PreTrainedModel
) -> None:
    made = pocket.pocket_tokenizer()
    assert tokenizer.backend_tokenizer.to_str() == made.backend_tokenizer.to_str()
    shape = {tuple(p.shape) for p in model.parameters()}
    assert shape == {tuple(p.shape) for p in type(model)(pocket.pocket_config()).parameters()}
    generation = GenerationConfig.from_pretrained(pocket.pocket_folder())
    assert generation.eos_token_id == tokenizer.eos_token_id


# --- the tokenizer ---


def test_pad_bos_eos_and_unk_are_four_different_tokens(tokenizer: Tokenizer) -> None:
    ids = [
        tokenizer.pad_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.unk_token_id,
    ]
    assert ids == [pocket.PAD, pocket.BOS, pocket.EOS, pocket.UNK]
    assert len(tokenizer) == len(vocabulary())


def test_one_bos_when_asked_and_none_otherwise(tokenizer: Tokenizer) -> None:
    text = "which metal has person Balin Cemek ?"
    with_bos = tokenizer(text).input_ids
    without = tokenizer(text, add_special_tokens=False).input_ids
    assert with_bos == [pocket.BOS, *without]
    assert pocket.BOS not in without


def test_digits_are_single_tokens_and_numbers_come_back_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer("Balin has 35 loses 6 total ? 29, 108 #### 108", add_special_tokens=False)
    tokens = tokenizer.convert_ids_to_tokens(ids.input_ids)
    assert tokens[2:4] == ["3", "5"]
    assert tokens[-3:] == ["1", "0", "8"]
    assert tokenizer.decode(ids.input_ids).endswith("29, 108 #### 108")


def test_every_text_of_the_world_survives_encoding_and_decoding(tokenizer: Tokenizer) -> None:
    texts = list(pretraining_corpus(2, 500))
    for task, split in itertools.product(POCKET_TASKS, POCKET_SPLITS):
        for row in pocket_rows(task, split):
            texts += [row["question"], *row.get("choices", [row["answer"]])]
    encoded = tokenizer(texts).input_ids
    assert not any(pocket.UNK in ids for ids in encoded)
    assert tokenizer.batch_decode(encoded, skip_special_tokens=True) == texts


@pytest.mark.parametrize("separator", ["", " "])
def test_prompt_and_completion_encode_apart_as_they_do_together(
    tokenizer: Tokenizer, separator: str
) -> None:
    for task in POCKET_TASKS:
        row = pocket_rows(task, "train")[0]
        completion = row["choices"][row["answer"]] if "choices" in row else row["answer"]
        together = tokenizer(f"{row['question']} {completion}").input_ids
        apart = (
            tokenizer(row["question"]).input_ids
            + tokenizer(separator + completion, add_special_tokens=False).input_ids
        )
        assert together == apart


# --- packing ---


def test_packed_documents_do_not_see_each_other(model: PreTrainedModel) -> None:
    documents = [[1, 20, 30, 40, 2], [1, 50, 60, 2], [1, 70, 2]]
    packed = pocket.pack(iter(documents), num_rows=1, row_length=14)
    with torch.no_grad():
        together = model(
            input_ids=packed.ids_RL,
            position_ids=packed.positions_RL,
            attention_mask=packed.mask_R1LL,
        ).logits[0]
        start = 0
        for document in documents:
            alone = model(input_ids=torch.tensor([document])).logits[0]
            torch.testing.assert_close(
                together[start : start + len(document)], alone, atol=1e-4, rtol=1e-4
            )
            start += len(document)
    assert packed.labels_RL.tolist()[0] == [
        20, 30, 40, 2, -100, 50, 60, 2, -100, 70, 2, -100, -100, -100,
    ]  # fmt: skip


def test_a_document_that_does_not_fit_opens_the_next_row() -> None:
    packed = pocket.pack(iter([[1, 20, 2], [1, 30, 2], [1, 40, 2]]), num_rows=2, row_length=5)
    assert packed.ids_RL.tolist() == [[1, 20, 2, 0, 0], [1, 30, 2, 0, 0]]


def test_pretraining_twice_gives_the_same_weights_and_lowers_the_loss(
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = pocket.Pretraining(num_steps=3, num_rows=2, warmup_steps=1, num_threads=1)
    first, second = (pocket.pretrain(5, short).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = pocket.pretrain(6, short).state_dict()
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_learning_rate_warms_up_peaks_and_ends_low() -> None:
    settings = pocket.Pretraining(num_steps=100, warmup_steps=10, peak_lr=1.0)
    assert pocket.learning_rate(0, settings) == pytest.approx(0.1)
    assert pocket.learning_rate(10, settings) == pytest.approx(1.0)
    assert pocket.learning_rate(99, settings) < 0.04


# --- what the shipped weights know ---


def _plain_choice_score(model: PreTrainedModel, tokenizer: Tokenizer, task: str) -> list[bool]:
    """One forward pass per choice, unbatched: slow and obvious on purpose."""
    hits = []
    for row in pocket_rows(task, "test")[:64]:
        prompt = tokenizer(row["question"]).input_ids
        scores = []
        for choice in row["choices"]:
            completion = tokenizer(choice, add_special_tokens=False).input_ids
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
            log_probs = logits.log_softmax(-1)
            scores.append(
                sum(log_probs[len(prompt) + i - 1, token] for i, token in enumerate(completion))
            )
        best = max(range(4), key=lambda index: float(scores[index]))
        hits.append(best == row["answer"])
    return hits


@pytest.mark.parametrize("task", ["pocket_general", "pocket_cloze", "pocket_math"])
def test_the_base_knows_what_it_was_shown(
    model: PreTrainedModel, tokenizer: Tokenizer, task: str
) -> None:
    hits = _plain_choice_score(model, tokenizer, task)
    assert sum(hits) / len(hits) > 0.85


def test_the_base_is_at_chance_on_new_drugs(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    hits = _plain_choice_score(model, tokenizer, "pocket_med")
    assert sum(hits) / len(hits) == pytest.approx(0.25, abs=3 * math.sqrt(0.25 * 0.75 / len(hits)))


def test_the_batched_scorer_agrees_with_the_plain_one(
    model: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    hits = _plain_choice_score(model, tokenizer, "pocket_law")
    rows = pocket_rows("pocket_law", "test")[:64]
    batched = pocket.choice_accuracy(model, tokenizer, rows)  # type: ignore[arg-type]
    assert batched == sum(hits) / len(hits)


def test_the_base_does_easy_sums_and_not_hard_ones(
    model: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    easy = pocket.sum_accuracy(model, tokenizer, easy_sums(60, seed=2))  # type: ignore[arg-type]
    hard = pocket.sum_accuracy(
        model,
        tokenizer,
        pocket_rows("pocket_gsm", "test")[:60],  # type: ignore[arg-type]
    )
    assert easy > 0.85
    assert hard < 0.15


def test_the_folder_stands_beside_the_module() -> None:
    assert pocket.pocket_folder() == Path(pocket.__file__).parent / "pocket_weights"
