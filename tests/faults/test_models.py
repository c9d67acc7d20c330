"""Faults of models: tokenizers that could teach the wrong thing, pickles, and what is exported."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import files_below, rankscope, settings
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from faults import edit, refused, write_study
from rankscope.models.model_folder import pocket_folder
from rankscope.records import BASE
from rankscope.tools.frames import load

# --- tokenizers ---------------------------------------------------------------------------------


@pytest.mark.pitfall(12)
def test_a_tokenizer_whose_pad_is_its_end(place: Path, model: Path) -> None:
    """The end token is labeled all the same: every training row ends with it, marked."""
    settings_file = model / "tokenizer_config.json"
    tokenizer = json.loads(settings_file.read_text("utf-8"))
    assert "chat_template" not in tokenizer
    tokenizer["pad_token"] = tokenizer["eos_token"]
    settings_file.write_text(json.dumps(tokenizer), "utf-8")
    outcome = rankscope("check", "study.yaml", "--rows", "32")
    assert outcome.code == 0
    assert outcome.told.count(" <eos>\N{MATHEMATICAL RIGHT WHITE SQUARE BRACKET}") == 24
    assert "24 training rows (plain prompts)" in outcome.told
    # An answer is one word here: it and the end token.
    assert "; 48 carry loss" in outcome.told
    assert "note: the pad token is the end token: labels go by position" in outcome.told
    assert (
        "note: no chat template in this tokenizer: prompts are formatted as plain text"
        in outcome.told
    )
    refused(
        rankscope("check", "study.yaml", *settings("model.prompt_format=chat")),
        where="prompt_format 'chat'",
        found="a tokenizer without chat template",
        do="use 'plain' or 'auto'",
    )


# --- weights ------------------------------------------------------------------------------------


# --- export -------------------------------------------------------------------------------------

ARMS = "arms=[{method: lora, rank: 2, lr: 5e-2}, {method: full, lr: 5e-3}]"
"""Rates at which two steps change the scores of single items."""


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of LoRA and full fine-tuning on a model whose head is its embedding."""
    folder = tmp_path_factory.mktemp("tied")
    write_study(folder)
    shutil.copytree(pocket_folder(), folder / "model")
    assert json.loads((folder / "model" / "config.json").read_text())["tie_word_embeddings"]
    edit(folder, "model: pocket", "model: ./model")
    ran = rankscope("run", folder / "study.yaml", *settings(ARMS), "--out", folder / "out")
    assert ran.code == 0, ran.err
    return folder


def log_probabilities(model: Path, out: Path, *adapter: object) -> dict[str, np.ndarray]:
    """Of every option of eight test items, shape (8, 4), by model."""
    words = ("--tasks", "pocket_med", "--max-items", 8, "--set", "dtype=float32", "--out", out)
    outcome = rankscope("eval", model, *words, *adapter)
    assert outcome.code == 0, outcome.err
    study = load(out).records
    names = {BASE: BASE} | {trial.spec.trial_id: trial.spec.arm_label for trial in study.trials}
    return {
        names[model]: np.array([item.option_logprobs for item in items])
        for (model, _, _), items in study.results.items()
    }


def export(study: Path, label: str, out: Path, *more: object) -> Path:
    outcome = rankscope("export", study / "out", label, "--out", out, *more)
    assert outcome.code == 0, outcome.err
    return out


@pytest.mark.pitfall(34)
def test_exports_of_a_tied_model_score_as_the_trial_did(tied: Path, tmp_path: Path) -> None:
    """Adapter, merged adapter and whole model, each by ``eval`` on rows that it was not trained on;
    the head of a stored model is its embedding, stored once."""
    adapter = export(tied, "r=2", tmp_path / "adapter")
    merged = export(tied, "r=2", tmp_path / "merged", "--merge")
    whole = export(tied, "full", tmp_path / "whole")
    found = log_probabilities(tied / "model", tmp_path / "a", "--adapter", adapter)
    by_merged = log_probabilities(merged, tmp_path / "m")["base"]
    by_whole = log_probabilities(whole, tmp_path / "w")["base"]
    assert np.abs(found["adapter"] - found["base"]).max() > 1e-2
    assert np.abs(by_whole - found["base"]).max() > 1e-2
    # Sums of up to 192 float32 products per layer, in another order.
    np.testing.assert_allclose(by_merged, found["adapter"], atol=1e-3)
    for folder in (merged, whole):
        stored = load_file(folder / "model.safetensors")
        assert "lm_head.weight" not in stored
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.pitfall(34)
def test_nothing_is_exported_that_its_base_cannot_carry(tied: Path, tmp_path: Path) -> None:
    """The base's folder holds another model by now."""
    config = tied / "model" / "config.json"
    before = config.read_text("utf-8")
    config.write_text(before.replace('"hidden_size": 128', '"hidden_size": 64'), "utf-8")
    try:
        outcome = rankscope("export", tied / "out", "r=2", "--out", tmp_path / "adapter")
    finally:
        config.write_text(before, "utf-8")
    refused(
        outcome,
        where="adapter",
        found="(out, in) = (128, 128)",
        expected="expected (128, 64) as in this model",
    )
    assert files_below(tmp_path) == set()
