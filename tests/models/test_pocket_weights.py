"""The shipped pocket model: its folder, its tokenizer, what it knows and what it does not."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

import pretrain_pocket as pocket
from rankscope.data.pocket_world import POCKET_SPLITS, POCKET_TASKS, pocket_rows
from rankscope.models.model_folder import pocket_folder


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
    generation = GenerationConfig.from_pretrained(pocket_folder())
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
    assert len(tokenizer) == len(pocket.vocabulary())


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
    texts = list(pocket.pretraining_corpus(2, 500))
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


# --- what the shipped weights know ---

NUM_ROWS = 40  # scored one forward pass per choice


def _plain_choice_score(model: PreTrainedModel, tokenizer: Tokenizer, task: str) -> list[bool]:
    """One forward pass per choice, unbatched: slow and obvious on purpose."""
    hits = []
    for row in pocket_rows(task, "test")[:NUM_ROWS]:
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
    rows = pocket_rows("pocket_law", "test")[:NUM_ROWS]
    batched = pocket.choice_accuracy(model, tokenizer, rows)  # type: ignore[arg-type]
    assert batched == sum(hits) / len(hits)


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
