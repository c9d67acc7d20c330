"""Adapters that an arm continues: what is taken from the folder, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft_adapters import peft_adapter
from tiny_models import tiny_llama
from toy_training import ATTENTION

from rankscope.config.study import StudyConfig
from rankscope.errors import UserError
from rankscope.models.adapters.folder import adapter_sha256
from rankscope.models.adapters.settings import CONFIG
from rankscope.models.adapters.warm_start import resolve_adapters
from rankscope.models.parameters import Architecture, architecture
from rankscope.records import TrialSpec
from rankscope.run.trials import make_trials

FIRST = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def shapes() -> Architecture:
    return architecture(tiny_llama().config)


def study(folder: Path, **arm: Any) -> StudyConfig:
    """Two arms; the second continues ``folder``."""
    arms = [
        {"method": "lora", "rank": 2, "lr": 1e-3},
        {"lr": 1e-3, "init_from": str(folder), **arm},
    ]
    return StudyConfig.model_validate(
        {"name": "s", "model": "pocket", "tasks": ["med"], "arms": arms, "seeds": [0]}
    )


def trials(config: StudyConfig, shapes: Architecture) -> list[TrialSpec]:
    arms, starts = resolve_adapters(config.arms, shapes)
    hashes, filled = {name: own for name, (own, _) in starts.items()}, {"arms": arms}
    return make_trials(config.model_copy(update=filled), "b" * 64, {"med": "1" * 64}, hashes)


def edit_config(folder: Path, **changes: Any) -> None:
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**settings, **changes}))


# --- what is taken ---


def test_what_the_arm_leaves_out_is_the_adapters(tmp_path: Path, shapes: Architecture) -> None:
    peft_adapter(tmp_path / "med", r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"])
    fresh, stored = trials(study(tmp_path / "med", dropout=0.1), shapes)
    assert (stored.rank, stored.alpha, stored.dropout) == (3, 5.0, 0.1)
    assert stored.targets == ("down_proj", "q_proj")
    digits = adapter_sha256(tmp_path / "med")
    assert stored.init_sha256 == digits
    assert stored.arm_label == (f"r=3 alpha=5 lr=0.001 dropout=0.1 on down,q from med@{digits[:8]}")
    assert (fresh.rank, fresh.init_from, fresh.init_sha256) == (2, None, None)


def test_what_the_arm_says_as_well_makes_the_same_trial(
    tmp_path: Path, shapes: Architecture
) -> None:
    peft_adapter(tmp_path, r=3, lora_alpha=6)
    (_, taken) = trials(study(tmp_path), shapes)
    every = {"method": "lora", "rank": [3, 3], "alpha": "2r", "targets": "attention"}
    (_, said) = trials(study(tmp_path, **every), shapes)
    assert taken == said
    for half in (
        {"method": "lora"},
        {"rank": 3},
        {"alpha": [6, "2r"]},
        {"targets": [list(ATTENTION)]},
    ):
        assert trials(study(tmp_path, **half), shapes)[1] == taken


def test_methods_that_fit_are_points_of_one_arm(tmp_path: Path, shapes: Architecture) -> None:
    peft_adapter(tmp_path)
    config = study(tmp_path, method=["lora", "lora+"], lr=[1e-3, 1e-4], lr_ratio=2)
    assert config.num_trials_as_written() == 5
    assert [t.method for t in trials(config, shapes)[1:]] == ["lora", "lora", "lora+", "lora+"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (["v_proj", "q_proj"], ("q_proj", "v_proj")),
        (r".*mlp\.(up|down)_proj", ("down_proj", "up_proj")),
        ("all-linear", tuple(sorted((*ATTENTION, "gate_proj", "up_proj", "down_proj")))),
        ([FIRST, "up_proj"], (FIRST, "up_proj")),
        (r".*\.0\.self_attn\.(q|k)_proj", (FIRST.replace("q_proj", "k_proj"), FIRST)),
    ],
    ids=str,
)
def test_targets_are_the_shortest_names_that_match_nothing_else(
    tmp_path: Path, shapes: Architecture, asked: Any, expected: tuple[str, ...]
) -> None:
    peft_adapter(tmp_path, target_modules=asked)
    assert trials(study(tmp_path), shapes)[1].targets == expected


def test_the_id_follows_the_bytes_and_not_the_place(tmp_path: Path, shapes: Architecture) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        peft_adapter(tmp_path / name, seed=seed)
        # PEFT writes a set, whose order is another in every process.
        edit_config(tmp_path / name, target_modules=sorted(ATTENTION))
    one, same, other = (trials(study(tmp_path / n), shapes)[1] for n in ("one", "same", "other"))
    assert one.trial_id == same.trial_id != other.trial_id
    assert one.arm == same.arm != other.arm
    edit_config(tmp_path / "same", lora_dropout=0.5)
    assert trials(study(tmp_path / "same"), shapes)[1].trial_id != one.trial_id


# --- what is refused ---


@pytest.mark.parametrize("kind", ["dora", "rslora"])
def test_a_method_that_is_not_the_adapters(tmp_path: Path, shapes: Architecture, kind: str) -> None:
    peft_adapter(tmp_path, **{f"use_{kind}": True})
    found = f"'lora' in the arm, and use_{kind}: true in .*, expected '{kind}'"
    with pytest.raises(UserError, match=found):
        resolve_adapters(study(tmp_path, method="lora").arms, shapes)
    assert trials(study(tmp_path), shapes)[1].method == kind


def test_an_adapter_that_cannot_be_continued(tmp_path: Path, shapes: Architecture) -> None:
    peft_adapter(tmp_path, use_dora=True, use_rslora=True)
    with pytest.raises(UserError, match="use_dora and use_rslora"):
        resolve_adapters(study(tmp_path).arms, shapes)
    peft_adapter(tmp_path, alpha_pattern={"q_proj": 2})
    found = r"q_proj' with scaling 0\.5 .*, expected 1\.5 as the others"
    with pytest.raises(UserError, match=found):
        resolve_adapters(study(tmp_path).arms, shapes)
    peft_adapter(tmp_path)
    found = "targets down_proj, gate_proj, k_proj, o_proj and 3 more in the arm"
    with pytest.raises(UserError, match=found):
        resolve_adapters(study(tmp_path, targets="all-linear").arms, shapes)
