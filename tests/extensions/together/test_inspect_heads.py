"""Heads in ``inspect``, of the analysis of spectra, on adapters that plain PEFT wrote."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import rankscope
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rankscope.extensions.heads.record import HeadsRecord
from rankscope.extensions.spectra.inspect import inspect, unfinished
from rankscope.extensions.spectra.record import SpectraRecord
from rankscope.models.adapters.settings import WEIGHTS
from rankscope.models.model_folder import pocket_folder

from ..spectra.records import inspected

NUM_LAYERS, NUM_HEADS, SIZE = 4, 8, 16


def pocket_adapter(folder: Path, **settings: object) -> Path:
    """PEFT's own adapter on the pocket model, trained as far as anyone can see."""
    model = AutoModelForCausalLM.from_pretrained(pocket_folder(), dtype=torch.float32)
    options = {"r": 2, "target_modules": ["q_proj", "o_proj"], "task_type": "CAUSAL_LM"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tuned = get_peft_model(model, LoraConfig(**(options | settings)))
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.data.add_(0.05 * torch.randn(parameter.shape))
    tuned.save_pretrained(folder)
    return folder


def heads_settings(items: int, ablate: list[str], dtype: str = "float32") -> dict[str, object]:
    heads = {"enabled": True, "task": "pocket_med", "items": items, "ablate": ablate}
    return {
        "analyze": {"heads": heads},
        "evaluate": {"cross_domain": ["pocket_med"], "max_items": items},
        "dtype": dtype,
        "device": "cpu",
    }


def asked_words(items: int, *ablate: str) -> list[str]:
    """Options that measure heads on pocket_med, with ablations."""
    values = ("analyze.heads.enabled=true", f"analyze.heads.ablate=[{','.join(ablate)}]",
              f"evaluate.cross_domain=[{','.join(dict.fromkeys(['pocket_med', *ablate]))}]",
              f"analyze.heads.items={items}", f"evaluate.max_items={items}")  # fmt: skip
    return [word for value in values for word in ("--set", value)]


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_heads_of_an_adapter_equal_those_of_its_merged_checkpoint(
    settings: dict[str, object], tmp_path: Path
) -> None:
    adapter = pocket_adapter(tmp_path / "adapter", **settings)
    model = AutoModelForCausalLM.from_pretrained(pocket_folder(), dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    found = inspect("pocket", [adapter, tmp_path / "merged"], heads_settings(6, ["pocket_med"]))
    one, other = (trial.analysis(HeadsRecord) for trial in found.trials)
    moved = {(c.layer, c.module): c.frobenius for c in other.changes}
    for change in one.changes:
        assert change.frobenius == pytest.approx(moved[change.layer, change.module], rel=1e-3)
    for mine, its in zip(one.tuned, other.tuned, strict=True):
        assert mine.importance == pytest.approx(its.importance, abs=1e-3)
        assert mine.group_importance == pytest.approx(its.group_importance, abs=1e-3)
        assert mine.entropy == pytest.approx(its.entropy, abs=1e-3)
    mine, its = one.ablations[0], other.ablations[0]
    assert np.array(mine.tuned_gold_change) == pytest.approx(
        np.array(its.tuned_gold_change), abs=1e-3
    )
    # And with all heads of a layer gone.
    assert len(mine.tuned_layer_gold_change) == NUM_LAYERS
    assert mine.tuned_layer_gold_change == pytest.approx(its.tuned_layer_gold_change, abs=1e-3)
    assert mine.base_layer_gold_change == its.base_layer_gold_change


def test_the_page_and_the_tables_have_the_heads(tmp_path: Path) -> None:
    adapter = pocket_adapter(tmp_path / "adapter")
    out = tmp_path / "looked"
    asked = asked_words(4, "pocket_med", "pocket_cloze")
    outcome = rankscope("inspect", "pocket", adapter, *asked, "--out", out)
    assert outcome.code == 0, outcome.told
    assert "head roles" not in outcome.told
    assert "32 heads and 4 layers are removed one by one" in outcome.told
    assert "4 items of pocket_med and 4 items of pocket_cloze scored each time" in outcome.told
    assert "Loading weights" not in outcome.told
    page = (out / "report.html").read_text("utf-8")
    assert "The models ran in float32." in page
    for figure in ("heads", "heads-ablated"):
        assert f'<figure id="{figure}">' in page
    assert {path.name for path in out.iterdir()} >= {
        "heads.parquet",
        "kv_heads.parquet",
        "head_ablations.parquet",
    }


def test_what_makes_no_sense_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    """Heads without a task, of one that is not there, and of two models of the same weights."""
    one, other = (pocket_adapter(tmp_path / name) for name in ("one", "other"))
    enabled = ("--set", "analyze.heads.enabled=true")
    same = f"model {other}: found the same weights as {one}"
    for words, said in (
        ((one, *enabled), "found analyze.heads without a task"),
        ((one, *enabled, "--set", "evaluate.cross_domain=[pocket_medd]"), "mean 'pocket_med'?"),
        ((one, other, *asked_words(2)), same),
    ):
        outcome = rankscope("inspect", "pocket", *words, "--out", tmp_path / "out")
        assert (outcome.code, said in outcome.told) == (2, True), outcome
        assert not (tmp_path / "out").exists()


def test_a_model_that_fails_is_named_and_ends_in_3(tmp_path: Path) -> None:
    adapter = pocket_adapter(tmp_path / "bad")
    tensors = {key: 1e30 * tensor for key, tensor in load_file(adapter / WEIGHTS).items()}
    save_file(tensors, adapter / WEIGHTS, metadata={"format": "pt"})
    asked = ("inspect", "pocket", adapter, *asked_words(4))
    outcome = rankscope(*asked, "--out", tmp_path / "out")
    again = rankscope(*asked, "--out", tmp_path / "out", "--json")
    assert (outcome.code, again.code) == (3, 3)
    (failure,) = json.loads(again.out)["failed"]
    assert failure.startswith("bad: pocket_med test: ")
    assert failure in outcome.told


def test_a_model_without_an_analysis_is_unfinished() -> None:
    study = inspected("r4")
    assert unfinished(study) == []
    lacking = replace(study, trials=(replace(study.trials[0], analyses=()), *study.trials[1:]))
    assert unfinished(lacking) == ["r4: no spectra, as the analysis did not finish"]


def test_stored_weights_and_models_that_run_need_folders_of_their_own(tmp_path: Path) -> None:
    adapter = pocket_adapter(tmp_path / "adapter")
    stored = ("inspect", "pocket", adapter)
    run = (*stored, *asked_words(2))
    for first, second in ((stored, run), (run, stored)):
        out = tmp_path / f"out-{len(first)}"
        assert rankscope(*first, "--out", out).code == 0
        refused = rankscope(*second, "--out", out)
        assert refused.code == 2
        assert "which the study uses now; give another --out folder" in refused.told


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}])
def test_changes_are_of_stored_weights_whatever_the_model_runs_in(
    settings: dict[str, object], tmp_path: Path
) -> None:
    """In bfloat16 |W0_h| would be off by up to a part in 512, and so would DoRA's change."""
    adapter = pocket_adapter(tmp_path / "adapter", **settings)
    found = [
        inspect("pocket", adapter, heads_settings(2, [], dtype)).trials[0]
        for dtype in ("float32", "bfloat16")
    ]
    one, other = (trial.analysis(HeadsRecord) for trial in found)
    assert (one.dtype, other.dtype) == ("float32", "bfloat16")
    assert one.tuned != other.tuned
    assert one.changes == other.changes
    first, second = (trial.analysis(SpectraRecord) for trial in found)
    assert first.matrices == second.matrices


def test_what_the_tables_leave_out_is_said(tmp_path: Path) -> None:
    """Roles need the trained task; a task answered by generating is scored by its likelihood."""
    adapter = pocket_adapter(tmp_path / "adapter")
    outcome = rankscope("inspect", "pocket", adapter, *asked_words(2, "pocket_gsm"), "--json")
    assert outcome.code == 0, outcome.told
    assert "head roles (skill gained, skill lost) are left out" in outcome.told
    assert "logprob_per_token" in outcome.out
