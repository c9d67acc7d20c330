"""Studies whose arms are of PEFT's own methods, or computed in groups."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pocket_study import ROUNDING, UNANALYZED, changed, small_study
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rankscope.advise.recommend import recommend
from rankscope.models.model_folder import pocket_folder
from rankscope.records import StudyRecords
from rankscope.run.costs import CostModel
from rankscope.run.machines import MACHINES
from rankscope.run.plan import make_plan
from rankscope.run.prepare import prepare
from rankscope.store import Ledger, weights_path
from rankscope.tools.export import ExportRequest, export_trial

PEFT_ARMS: list[dict[str, Any]] = [
    {"method": {"peft": {"peft_type": "VERA", "r": 16}}, "lr": 1e-2},
    {"method": {"peft": {"peft_type": "LN_TUNING"}}, "lr": 1e-3},
    {"method": "lora", "rank": 2, "lr": 2e-3},
]
ONE_SEED: dict[str, Any] = {"seeds": [0], "arms": PEFT_ARMS}
# PEFT says of transformers' norms what it says of any layer that is none of torch's own.
pytestmark = pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")


def test_methods_of_pefts_run_like_any_other(tmp_path: Path) -> None:
    study = small_study(tmp_path, **ONE_SEED)
    inputs = prepare(study.config)
    # A group of LoRA, then one by one what changes the base's modules.
    assert [[t.method for t in group] for group in inputs.groups] == [["lora"], ["peft"], ["peft"]]
    costs = CostModel(inputs, MACHINES["h100"])
    planned = {t.trial_id: costs.parameters(t) for t in inputs.trials}
    assert make_plan(inputs, MACHINES["h100"]).disk_bytes == 4 * sum(planned.values())
    study.run(tmp_path / "out")
    with Ledger.open(tmp_path / "out", write=False) as ledger:
        records = ledger.load()
        assert set(ledger.statuses().values()) == {"done"}
    trials = {t.spec.arm_label: t for t in records.trials}
    assert len(trials) == 3
    for found in trials.values():
        assert found.train.trainable_parameters == planned[found.spec.trial_id]
        assert len(found.train.losses) == 8
    vera = next(t for t in records.trials if "VERA" in (t.spec.peft or ""))
    # What is exported is what plain PEFT loads.
    export_trial(tmp_path / "out", tmp_path / "vera", ExportRequest(label=vera.spec.trial_id))
    base = AutoModelForCausalLM.from_pretrained(pocket_folder(), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(tmp_path / "vera"))
    assert model.peft_config["default"].peft_type.value == "VERA"


GROUPED_ARMS = [
    {"method": "lora", "rank": [2, 8], "lr": 2e-3},
    {"method": "pissa", "rank": 4, "lr": 1e-3},
]


def finished(folder: Path, implementation: str) -> tuple[StudyRecords, dict[str, Any]]:
    changes = {
        "arms": GROUPED_ARMS,
        "max_group_size": 16,
        "analyze": UNANALYZED,
        **changed("train", lora_implementation=implementation, max_steps=8, evaluate_every=4),
        **changed("evaluate", max_items=24, cross_domain=[]),
    }
    study = small_study(folder, **changes).run(folder / "out")
    return study, recommend(study).model_dump(mode="json")


NUMBERS = ("text", "explanation", "next_steps", "peak_memory_bytes")


def decisions(value: object) -> object:
    """The advice without its numbers, and without the texts that quote them."""
    if isinstance(value, dict):
        kept = {key: decisions(part) for key, part in value.items() if key not in NUMBERS}
        return {key: part for key, part in kept.items() if not isinstance(part, float)}
    return [decisions(part) for part in value] if isinstance(value, list) else value


def test_a_study_decides_the_same(tmp_path: Path) -> None:
    """In bfloat16, on a kernel as strict as a GPU's, ``models/test_grouped_lora.py`` trains so."""
    loop, by_loop = finished(tmp_path / "loop", "loop")
    grouped, by_groups = finished(tmp_path / "grouped", "grouped_mm")
    assert decisions(by_groups) == decisions(by_loop)
    assert grouped.notes == loop.notes
    for ours, theirs in zip(grouped.trials, loop.trials, strict=True):
        assert (ours.spec, ours.status) == (theirs.spec, "done")
        pairs = zip(ours.train.losses, theirs.train.losses, strict=True)  # type: ignore[union-attr]
        assert all(a.loss == pytest.approx(b.loss, rel=ROUNDING) for a, b in pairs)
    for key, found in grouped.evals.items():
        assert found.metrics == pytest.approx(loop.evals[key].metrics, rel=ROUNDING)
    for trial in loop.trials:
        file = Path("out") / weights_path(trial.spec) / "adapter_model.safetensors"
        other = load_file(tmp_path / "loop" / file)
        for name, tensor in load_file(tmp_path / "grouped" / file).items():
            torch.testing.assert_close(tensor, other[name], rtol=ROUNDING, atol=ROUNDING)
