"""Arms whose ranks differ between modules: read from an adapter, trained as PEFT trains them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from architectures import alone
from peft import LoraConfig, PeftModel, get_peft_model
from peft_adapters import relative, saved_adapter, their_parts
from pocket_study import small_study
from tiny_models import IDS, logits_of, tiny_llama
from toy_training import (
    losses,
    plain_losses,
    protocol,
    toy_rows,
    trained,
    training_tolerance,
    trial,
)

from rankscope.config.arm import ArmConfig
from rankscope.config.loader import dump_study, load_study_file
from rankscope.config.study import StudyConfig
from rankscope.errors import UserError
from rankscope.models.adapters.folder import save_adapter
from rankscope.models.adapters.settings import CONFIG
from rankscope.models.adapters.warm_start import resolve_adapters
from rankscope.models.init_context import new_adapter
from rankscope.models.methods import get_method
from rankscope.models.parameters import architecture
from rankscope.run.trials import _arm_specs as arm_specs

STEPS = 8
ROWS = toy_rows(30)
RELATIVE = training_tolerance(STEPS)
PROTOCOL = protocol(max_steps=STEPS, schedule="constant", warmup_fraction=0.0)
SHAPES = architecture(tiny_llama().config)


@pytest.fixture(scope="module")
def allotted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of an adapter with as many parameters as one of rank 4."""
    folder = tmp_path_factory.mktemp("allotted")
    layers = sorted(
        {n.rpartition(".")[2] for n in SHAPES.linear_shapes if n != SHAPES.output_layer}
    )
    pattern = {"q_proj": 6, "o_proj": 2}  # of equal sizes
    return saved_adapter(folder, tiny_llama(), target_modules=layers, rank_pattern=pattern) / CONFIG


def study(**arm: Any) -> StudyConfig:
    arms = [{"method": "lora", "lr": 1e-3, **arm}]
    return StudyConfig.model_validate(
        {"name": "x", "model": "pocket", "tasks": ["pocket_med"], "arms": arms}
    )


def resolved(**arm: Any) -> ArmConfig:
    return resolve_adapters(study(**arm).arms, SHAPES)[0][0]


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_it_goes_where_plain_peft_goes(allotted: Path, tmp_path: Path, method: str) -> None:
    """PEFT's own rank_pattern with the recipe's loop: the same losses, the same weights, and what
    is stored gives the same logits."""
    written = json.loads(allotted.read_text("utf-8"))
    (point,) = arm_specs(resolved(method=method, rank_pattern=str(allotted)), PROTOCOL)
    spec = point.model_copy(update={"trial_id": "a", "task": "toy"})
    assert spec.rank == 4  # of equal parameters
    result = trained([trial("fresh"), spec], PROTOCOL, ROWS)
    adapter = result.states[1].adapter
    assert adapter is not None

    plain = get_method(method)
    alphas = {n: spec.scaling * plain.rank_scale(r) for n, r in spec.rank_pattern or ()}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=written["r"],
        lora_alpha=spec.scaling * plain.rank_scale(written["r"]),
        rank_pattern=written["rank_pattern"],
        alpha_pattern=alphas,
        target_modules=written["target_modules"],
        **plain.peft_fields,
    )
    model = get_peft_model(tiny_llama(), config).train()
    parts, start = their_parts(model), new_adapter(tiny_llama(), spec)
    for name, own in parts.items():
        for theirs, ours in zip(own, start.module_parameters(name), strict=True):
            theirs.data.copy_(ours.data)
    rates = {part: spec.lr for own in parts.values() for part in own}
    slow = plain_losses(spec, model, rates, ROWS, PROTOCOL)
    assert losses(result.states[1]) == pytest.approx(slow, rel=RELATIVE)
    assert adapter.a.keys() == parts.keys()
    for name, own in parts.items():
        for ours, theirs in zip(adapter.module_parameters(name), own, strict=True):
            assert relative(ours, theirs) <= RELATIVE

    save_adapter(adapter, result.tuned.record, tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    assert relative(alone(loaded, IDS), logits_of(result.tuned, "a")) < RELATIVE


def test_a_trial_is_identified_by_its_ranks_not_by_their_file(tmp_path: Path) -> None:
    """The file resolves to a mapping that loads back to the same trials; one rank for all is none
    of them."""
    for name, ranks in (("one", {"q_proj": 6}), ("two", {"q_proj": 6}), ("other", {"q_proj": 5})):
        settings = {"r": 2, "lora_alpha": 4, "peft_type": "LORA", "rank_pattern": ranks}
        settings["target_modules"] = ["q_proj", "v_proj"]
        (tmp_path / f"{name}.json").write_text(json.dumps(settings))

    def ids(**arm: Any) -> list[str]:
        arms = [{"method": "lora", "lr": 1e-3, **arm}]
        return [t.trial_id for t in small_study(tmp_path, arms=arms, seeds=[0]).check().trials]

    one = ids(rank_pattern="one.json")
    assert one == ids(rank_pattern=str(tmp_path / "two.json"))
    plain = [ids(rank=r, targets=[["q_proj", "v_proj"]]) for r in (4, 5)]
    assert len({*one, *ids(rank_pattern="other.json"), *plain[0], *plain[1]}) == 4
    arms = [{"method": "lora", "lr": 1e-3, "rank_pattern": "one.json"}]
    prepared = small_study(tmp_path, arms=arms, seeds=[0]).check()
    (tmp_path / "again.yaml").write_text(dump_study(prepared.config), "utf-8")
    assert load_study_file(tmp_path / "again.yaml") == prepared.config
    (tmp_path / "one.json").unlink()
    assert one == ids(
        **load_study_file(tmp_path / "again.yaml").arms[0].model_dump(exclude_none=True)
    )
    (spec,) = prepared.trials
    assert spec.rank == 4
    assert spec.arm_label.startswith("r=4 lr=0.001 by-module=")


def pattern(**changes: Any) -> Callable[[Path], dict[str, Any]]:
    """An arm with a file of q_proj and v_proj."""

    def arm(folder: Path) -> dict[str, Any]:
        settings = {"r": 2, "lora_alpha": 4, "peft_type": "LORA", "target_modules": ["q_proj"]}
        (folder / "file.json").write_text(json.dumps(settings | changes))
        return {"rank_pattern": str(folder / "file.json")}

    return arm


def mapping(_: Path) -> dict[str, Any]:
    ranks = {name: 2 for name in SHAPES.linear_shapes if name.endswith("q_proj")}
    return {"rank_pattern": ranks, "targets": [["q_proj"]]}


UNFIT: list[tuple[Callable[[Path], dict[str, Any]], dict[str, Any], str]] = [
    (lambda _: {"rank_pattern": "nowhere.json"}, {}, "nowhere.json"),
    (pattern(peft_type="LOHA"), {}, "peft_type 'LOHA', expected 'LORA'"),
    (pattern(rank_pattern={"c_attn": 4}), {}, "a rank for 'c_attn', which is none of the 2"),
    (pattern(rank_pattern={"q_proj": 65}), {}, "rank 65, expected at most 64, its smaller"),
    (pattern(target_modules="all-linear"), {}, "target_modules 'all-linear', expected a list"),
    (pattern(), {"targets": ["attention", "mlp"]}, "2 sets of modules, expected one"),
    (pattern(), {"targets": [["nothing"]]}, "target module 'nothing'"),
    (pattern(), {"rank": 4}, "'rank_pattern' and 'rank', expected one of them"),
    (pattern(), {"init_from": "x"}, "'rank_pattern' and 'init_from', expected one of them"),
    (pattern(), {"method": "eva", "rank": 4}, "rank_pattern, expected none with method 'eva'"),
    (lambda _: {"rank_pattern": {"model.layers.0.self_attn.q_proj": 2}}, {}, "a rank for every"),
    (mapping, {"rank": 4}, "rank: found [4] beside the ranks by module, expected one of them"),
    (mapping, {"rank": [2, 4]}, "rank: found [2, 4] beside the ranks by module"),
    (
        lambda _: {**mapping(_), "targets": ["attention", "mlp"]},
        {"rank": 2, "match": "parameters"},
        "a rank without 'rank_pattern'",
    ),
]


@pytest.mark.parametrize(("arm", "changes", "said"), UNFIT, ids=[said for _, _, said in UNFIT])
def test_ranks_that_do_not_fit_are_refused(
    arm: Callable[[Path], dict[str, Any]], changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises((UserError, ValueError)) as refused:
        resolved(**arm(tmp_path), **changes)
    assert said in str(refused.value)
