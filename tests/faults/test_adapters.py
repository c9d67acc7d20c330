"""Faults of adapters that somebody else made: refused with 2 or 4, and never scored as whole."""

import json
import shutil
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Outcome, rankscope
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from faults import edit, message_of, refused
from rankscope.models.adapters.folder import BASE_HASH
from rankscope.models.adapters.settings import CONFIG, WEIGHTS, AdapterSettings
from rankscope.store import Ledger

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
OTHER = "base_model.model.model.layers.0.mlp.up_proj"
READERS = ("eval", "run")
"""Verbs that read an adapter: score it, continue its training."""


@pytest.fixture
def adapter(own: Path, place: Path) -> Path:
    """A copy of a trained adapter of rank 2 on the attention's matrices, in the study's folder."""
    with Ledger.open(own, write=False) as ledger:
        trial = ledger.trials()[0].trial_id
    shutil.copytree(own / "artifacts" / trial / "adapter", place / "adapter")
    edit(place, "  - method: lora\n    rank: [2]\n", "  - init_from: adapter\n")
    return place / "adapter"


def read(verb: str, adapter: Path, *more: object) -> Outcome:
    if verb == "eval":
        words: tuple[object, ...] = ("pocket", "--tasks", "pocket_med", "--max-items", 4)
        return rankscope(verb, *words, "--adapter", adapter, *more)
    return rankscope("check", "study.yaml", *more)


def rewrite(
    adapter: Path,
    change: Callable[[dict[str, Tensor]], object],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Change the tensors; the recorded base stays unless ``metadata`` replaces it."""
    with safe_open(adapter / WEIGHTS, framework="pt") as file:
        kept = file.metadata()
    tensors = load_file(adapter / WEIGHTS)
    change(tensors)
    save_file(tensors, adapter / WEIGHTS, metadata={**kept, **(metadata or {})})


def configure(adapter: Path, **changes: object) -> None:
    values = json.loads((adapter / CONFIG).read_text("utf-8"))
    (adapter / CONFIG).write_text(json.dumps(values | changes), "utf-8")


@pytest.mark.parametrize("verb", READERS)
def test_the_adapter_as_it_stands_is_fine(adapter: Path, verb: str) -> None:
    assert read(verb, adapter).code == 0


@pytest.mark.pitfall(14)
@pytest.mark.parametrize("verb", READERS)
def test_an_adapter_of_another_base(adapter: Path, verb: str) -> None:
    rewrite(adapter, lambda tensors: None, {BASE_HASH: "f" * 64})
    found = "one that was made for another base (weights ffffffffffff"
    if verb == "run":
        refused(
            rankscope("run", "study.yaml"),
            where="adapter",
            found=found,
            expected="expected an adapter of this base",
        )
        return
    refused(read(verb, adapter), where=f"adapter {adapter}", found=found, do="--force")
    forced = read(verb, adapter, "--force", "--json")
    assert forced.code == 0
    scores = {s["model"]: s["other_base_forced"] for s in json.loads(forced.out)["scores"]}
    assert scores == {"base": False, "adapter": True}
    assert "records another base" in forced.told


def drop(*ends: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: [tensors.pop(MODULE + end) for end in ends]


def fill(value: float) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors[f"{MODULE}.lora_B.weight"][0].fill_(value)


def put(name: str, *shape: int) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


A, B = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"
DAMAGES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "a module less": (
        drop(".lora_A.weight", ".lora_B.weight"),
        "'model.layers.0.self_attn.q_proj' is missing",
    ),
    "a module more": (
        lambda tensors: tensors.update(
            {
                f"{OTHER}.lora_A.weight": torch.zeros(2, 128),
                f"{OTHER}.lora_B.weight": torch.zeros(192, 2),
            }
        ),
        "'model.layers.0.mlp.up_proj' is not among them",
    ),
    "NaN": (fill(float("nan")), "found values that are not finite"),
    "extra": (put("base_model.model.lm_head.weight", 2, 2), "unexpected tensor"),
}
"""``tests/models/adapters/test_folder.py`` has more."""


@pytest.mark.pitfall(15)
@pytest.mark.parametrize(
    ("damage", "verb"),
    [*product(["NaN"], READERS), ("a module less", "run"), ("a module more", "eval"),
     ("extra", "eval")],
)  # fmt: skip
def test_tensors_that_are_not_those_of_the_configuration(
    adapter: Path, damage: str, verb: str
) -> None:
    change, found = DAMAGES[damage]
    rewrite(adapter, change)
    outcome = read(verb, adapter)
    refused(
        outcome, 4, where=str(adapter), found=found, expected="expected ", do="copy the adapter"
    )


@pytest.mark.pitfall(15)
@pytest.mark.parametrize("verb", READERS)
def test_files_that_are_no_safetensors(adapter: Path, verb: str) -> None:
    for content in (b"junk" * 9, (2**62).to_bytes(8, "little") + b"{}"):  # or a huge header
        (adapter / WEIGHTS).write_bytes(content)
        outcome = read(verb, adapter)
        assert outcome.code == 4, outcome
        assert adapter.name in message_of(outcome)


SLOW = r"(?:(?:[a-z]|.)+)+(?<!j)"
"""Tries every way to cut a path into parts before it gives up."""


@pytest.mark.parametrize("verb", READERS)
@pytest.mark.parametrize(
    ("key", "value"),
    [("rank_pattern", {SLOW: 2}), ("exclude_modules", SLOW), ("target_modules", "((")],
)
def test_a_strangers_expressions(adapter: Path, key: str, value: object, verb: str) -> None:
    configure(adapter, **{key: value})
    outcome = read(verb, adapter)
    assert outcome.code == 2, outcome
    message = message_of(outcome)
    assert "adapter" in message
    assert ("'(('" if value == "((" else "timed out") in message


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules"])
def test_slow_expressions_reach_no_other_method(adapter: Path, key: str) -> None:
    """PEFT would match them itself, without a limit, when it injects a method that is not LoRA."""
    values = {
        "peft_type": "IA3",
        "target_modules": ["q_proj"],
        "feedforward_modules": [],
        key: SLOW,
    }
    (adapter / CONFIG).write_text(json.dumps(values), "utf-8")
    outcome = read("eval", adapter)
    assert outcome.code == 2, outcome
    assert "timed out" in message_of(outcome)


MODULES = (
    "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj",
    "model.layers.11.mlp.experts.1.up_proj", "model.layers.1.mlp.up_proj", "lm_head",
)  # fmt: skip


@pytest.mark.parametrize(
    "values",
    [
        {"target_modules": ["q_proj"]}, {"target_modules": ["proj"]},
        {"target_modules": ["model.layers.1.mlp.up_proj", "lm_head"]},
        {"target_modules": r".*\.(q|up)_proj"}, {"target_modules": r"q_proj"},
        {"target_modules": None}, {"target_modules": ["q_proj"], "layers_to_transform": []},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": 1},
        {"target_modules": ["up_proj"], "layers_to_transform": [1], "layers_pattern": "experts"},
        {"target_modules": ["up_proj"], "layers_to_transform": [1], "layers_pattern": ["layers"]},
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["up_proj"]},
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*\.1\..*"},
    ],
    ids=str,
)  # fmt: skip
def test_targets_are_those_of_peft(values: dict[str, Any]) -> None:
    ours = AdapterSettings(r=2, lora_alpha=4, **values)
    for module in MODULES:
        with_peft = ours.model_copy(update={"target_parameters": []})
        assert ours.is_target(module) == bool(check_target_module_exists(with_peft, module))
