"""Studies whose arms are nested, of PEFT's own methods, or computed in groups."""

from pathlib import Path
from typing import Any

import pytest
import torch
from finished_studies import Finished
from peft import PeftModel
from pocket_study import ROUNDING, changed, small_study
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rankscope.analyses.spectra.record import SpectraRecord
from rankscope.models.model_folder import pocket_folder
from rankscope.records import StudyRecords
from rankscope.run.costs import CostModel
from rankscope.run.groups import halves_of
from rankscope.run.machines import MACHINES
from rankscope.run.outputs import write_outputs
from rankscope.run.plan import make_plan
from rankscope.run.prepare import prepare
from rankscope.run.trials import own_identity
from rankscope.store import Ledger, weights_path
from rankscope.tools.export import ExportRequest, export_trial

CHANGES: dict[str, Any] = {
    "arms": [{"method": ["lora", "nested"], "rank": [2, 8], "lr": 2e-3}],
    "max_group_size": 3,
    "analyze": {"spectra": {"enabled": False}},
    **changed("train", max_steps=4, evaluate_every=2),
    **changed("evaluate", max_items=8, cross_domain=[], truncated_ranks=[2]),
}
"""Four adapters of LoRA, and two nested runs of two slices: six trainings, two groups of three."""


def test_a_run_is_trained_once_and_gives_a_trial_of_every_rank(mitigated: Finished) -> None:
    study = mitigated.records
    small, large = (t for t in study.trials if t.spec.nested)
    assert (small.spec.rank, large.spec.rank) == (2, 8)
    assert small.spec.arm_label == "nested r=2 lr=0.002 ranks=2,8"
    assert small.train.losses == large.train.losses
    assert 4 * small.train.trainable_parameters == large.train.trainable_parameters
    assert small.train.seconds == large.train.seconds  # half the run's each
    assert small.curve == ()
    assert len(large.curve) == 4 * 2  # four points on two tasks
    stored = [
        load_file(mitigated.out / weights_path(t.spec) / "adapter_model.safetensors")
        for t in (small, large)
    ]
    for name, cut in stored[0].items():
        whole = stored[1][name]
        assert torch.equal(cut, whole[:2] if "lora_A" in name else whole[:, :2])
    # Every slice is scored like any trial.
    scored = [key[1:] for key in study.evals if key[0] == small.spec.trial_id]
    assert scored == [key[1:] for key in study.evals if key[0] == large.spec.trial_id]
    truncated = {model for model, _, _ in study.evals if "@truncated" in model}
    specs = [t.spec for t in study.trials]
    cut = [s for s in specs if s.is_full or (s.method == "lora" and s.rank == 8)]
    assert truncated == {f"{spec.trial_id}@truncated=2" for spec in cut}


def test_groups_count_trainings_and_keep_slices_together(tmp_path: Path) -> None:
    study = prepare(small_study(tmp_path, **CHANGES).config)
    assert [[(t.method, t.rank) for t in group] for group in study.groups] == [
        [("lora", 2), ("lora", 2), ("lora", 8)],
        [("lora", 8), *[("nested", 2), ("nested", 8)] * 2],
    ]
    runs = study.trained(study.groups[1])
    assert [(t.method, t.rank) for t in runs] == [("lora", 8), ("nested", 8), ("nested", 8)]
    assert study.trained(study.groups[1][1:2]) == (study.groups[1][2],)  # a slice alone
    first, second = halves_of(study.groups[1])
    assert (len(first), len(second)) == (3, 2)
    assert [len(half) for half in halves_of(second)] == [1, 1]
    config = study.config.train
    assert all("nested" not in own_identity(t, config) for t in study.trials if not t.nested)


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


GROUPED_ARMS = [
    {"method": "lora", "rank": [2, 8], "lr": 2e-3},
    {"method": "pissa", "rank": 4, "lr": 1e-3},
]


def finished(folder: Path, implementation: str) -> tuple[StudyRecords, dict[str, Any]]:
    changes = {
        "arms": GROUPED_ARMS,
        "max_group_size": 16,
        "analyze": {"spectra": {"enabled": False}},
        **changed("train", lora_implementation=implementation, max_steps=8, evaluate_every=4),
        **changed("evaluate", max_items=24, cross_domain=[]),
    }
    small_study(folder, **changes).run(folder / "out")
    study, advice = write_outputs(folder / "out")
    return study, advice.model_dump(mode="json")


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
