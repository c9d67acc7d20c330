"""Studies with an arm that goes on from an adapter, from the command line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import Outcome, files_below, folder_contents, rankscope, settings
from pocket_study import loaded, study_file
from safetensors.torch import save_file

from rankscope.config.loader import load_study_file
from rankscope.models.adapters.settings import CONFIG, WEIGHTS
from rankscope.models.model_folder import pocket_folder
from rankscope.run.prepare import prepare
from rankscope.store import Ledger, find_problems

ARM: dict[str, Any] = {"init_from": "stored", "lr": 1e-3}
ONE: dict[str, Any] = {
    "seeds": [0],
    "evaluate": {"retention": ["pocket_cloze"], "max_items": 8, "max_new_tokens": 8},
}
MODULE = "model.layers.0.self_attn.q_proj"


def write_adapter(folder: Path, module: str = MODULE, width: int = 128) -> Path:
    """An adapter of rank 2 on one of the pocket model's 128 x 128 matrices, by hand."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    prefix = f"base_model.model.{module}"
    tensors = {
        f"{prefix}.lora_A.weight": torch.randn(2, width, generator=generator) / 10,
        f"{prefix}.lora_B.weight": torch.randn(width, 2, generator=generator) / 10,
    }
    save_file(tensors, folder / WEIGHTS)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [module]}
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a study file beside an adapter folder ``stored``."""
    study_file(tmp_path, arms=[{"method": "lora", "rank": 2, "lr": 1e-3}, ARM], **ONE)
    write_adapter(tmp_path / "stored")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return tmp_path


def refused(outcome: Outcome, *parts: str) -> None:
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in outcome.told, outcome.told


def test_a_plan_needs_no_weights_of_the_base(place: Path) -> None:
    shutil.copytree(pocket_folder(), place / "bare", ignore=lambda *_: ["model.safetensors"])
    outcome = rankscope("plan", place / "small.yaml", *settings("model=../bare"))
    assert outcome.code == 0, outcome
    assert "holds no weights" in outcome.told
    assert "it does not record the weights it was made for" in outcome.told


@pytest.mark.parametrize("verb", ["check", "plan", "run"])
def test_a_folder_that_is_not_there(place: Path, verb: str) -> None:
    shutil.rmtree(place / "stored")
    before = files_below(place)
    refused(
        rankscope(verb, place / "small.yaml"),
        f"arms.1.init_from: adapter {place / 'stored'}: found no such folder",
        "expected a PEFT adapter folder",
    )
    assert files_below(place) == before


def test_what_a_study_trained_goes_on_in_another(place: Path) -> None:
    """From a trial's own folder; in a group with a fresh trial; and only once, wherever it lies."""
    first = study_file(place / "first", arms=[{"method": "dora", "rank": 2, "lr": 2e-3}], **ONE)
    assert rankscope("run", first, "--out", place / "one").code == 0
    (before,) = loaded(place / "one").trials
    source = place / "one" / "artifacts" / before.spec.trial_id / "adapter"
    content = folder_contents(source)

    arms = [
        {"method": "dora", "rank": 2, "lr": 2e-3},
        {"init_from": str(source.relative_to(place)), "lr": 2e-3},
    ]
    second = study_file(place, arms=arms, **ONE)
    outcome = rankscope("run", second, "--out", place / "two")
    assert outcome.code == 0, outcome
    assert "does not record the weights" not in outcome.told
    with Ledger.open(place / "two", write=False) as ledger:
        fresh, after = ledger.load().trials
        assert not find_problems(ledger.out)
    assert fresh.spec.trial_id == before.spec.trial_id  # the ids of before are what they were
    assert after.spec.targets == fresh.spec.targets
    assert (fresh.train.group_id, fresh.train.group_size) == (after.train.group_id, 2)
    assert f"from adapter@{(after.spec.init_sha256 or '')[:8]}" in after.spec.arm_label
    assert after.spec.arm_label in (place / "two" / "report.html").read_text("utf-8")
    # Both see the same rows: eight steps before, the one is where the other got to.
    assert after.train.losses[0].loss < fresh.train.losses[0].loss
    assert folder_contents(source) == content

    # Another place, written out in the resolved study: the same trial, and nothing is done again.
    resolved = yaml.safe_load((place / "two" / "study.resolved.yaml").read_text("utf-8"))
    assert resolved["arms"][1]["init_from"] == str(source)
    shutil.copytree(source, place / "moved")
    moved = settings("arms.1.init_from=../moved")
    config = load_study_file(place / "two" / "study.resolved.yaml", moved[1:])
    assert [t.trial_id for t in prepare(config).trials] == [t.spec.trial_id for t in (fresh, after)]
    assert rankscope("run", second, *moved, "--out", place / "two").code == 0
    with Ledger.open(place / "two", write=False) as ledger:
        assert [t.train for t in ledger.load().trials] == [fresh.train, after.train]
