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
