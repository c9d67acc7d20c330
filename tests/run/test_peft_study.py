"""A study whose arms are methods of PEFT's own: planned, trained, scored, analyzed, taken out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pocket_study import small_study
from transformers import AutoModelForCausalLM

from rankscope.analyses.spectra.record import SpectraRecord
from rankscope.models.model_folder import pocket_folder
from rankscope.run.costs import CostModel
from rankscope.run.machines import MACHINES
from rankscope.run.plan import make_plan
from rankscope.run.prepare import prepare
from rankscope.store import Ledger
from rankscope.tools.export import ExportRequest, export_trial

ARMS: list[dict[str, Any]] = [
    {"method": {"peft": {"peft_type": "VERA", "r": 16}}, "lr": 1e-2},
    {"method": {"peft": {"peft_type": "LN_TUNING"}}, "lr": 1e-3},
    {"method": "lora", "rank": 2, "lr": 2e-3},
]
ONE_SEED: dict[str, Any] = {"seeds": [0], "arms": ARMS}
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
        notes = (tmp_path / "out" / "log.jsonl").read_text()
    trials = {t.spec.arm_label: t for t in records.trials}
    assert len(trials) == 3
    for found in trials.values():
        assert found.train.trainable_parameters == planned[found.spec.trial_id]
        assert len(found.train.losses) == 8
    vera = next(t for t in records.trials if "VERA" in (t.spec.peft or ""))
    norms = next(t for t in records.trials if "LN_TUNING" in (t.spec.peft or ""))
    merged, unmerged = (t.analysis(SpectraRecord) for t in (vera, norms))
    assert all(matrix.frobenius > 0 for matrix in merged.matrices)
    assert unmerged.matrices == ()
    assert "cannot be merged into a weight" in notes
    # What is exported is what plain PEFT loads.
    export_trial(tmp_path / "out", tmp_path / "vera", ExportRequest(label=vera.spec.trial_id))
    base = AutoModelForCausalLM.from_pretrained(pocket_folder(), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(tmp_path / "vera"))
    assert model.peft_config["default"].peft_type.value == "VERA"
