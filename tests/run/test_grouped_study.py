"""A study with grouped products comes to what it comes to with the loop over adapters."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from grouped_products import hostile_grouped_mm
from pocket_study import ROUNDING, changed, small_study
from safetensors.torch import load_file

from rankscope.records import StudyRecords
from rankscope.run.outputs import write_outputs
from rankscope.store import adapter_path

ARMS = [{"method": "lora", "rank": [2, 8], "lr": 2e-3}, {"method": "pissa", "rank": 4, "lr": 1e-3}]


def finished(
    folder: Path, implementation: str, dtype: str = "float32"
) -> tuple[StudyRecords, dict[str, Any]]:
    changes = {
        "arms": ARMS,
        "max_group_size": 16,
        "dtype": dtype,
        "analyze": {"spectra": {"enabled": False}},
        **changed("train", lora_implementation=implementation, max_steps=8, evaluate_every=4),
        **changed("evaluate", max_items=24, cross_domain=[]),
    }
    small_study(folder, **changes).run(folder / "out")
    study, advice = write_outputs(folder / "out")
    return study, advice.model_dump(mode="json")


NUMBERS = ("text", "explanation", "detail", "values", "peak_memory_bytes")


def decisions(value: object) -> object:
    """The advice without its numbers, and without the texts that quote them."""
    if isinstance(value, dict):
        kept = {key: decisions(part) for key, part in value.items() if key not in NUMBERS}
        return {key: part for key, part in kept.items() if not isinstance(part, float)}
    return [decisions(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_study_decides_the_same(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 on a kernel that takes what a GPU's does and nothing else, and leaves NaN where
    nobody may read."""
    loop, by_loop = finished(tmp_path / "loop", "loop", dtype)
    kernel = Mock(wraps=hostile_grouped_mm)
    if dtype == "bfloat16":
        monkeypatch.setattr(F, "grouped_mm", kernel)
    grouped, by_groups = finished(tmp_path / "grouped", "grouped_mm", dtype)
    assert (kernel.call_count > 0) == (dtype == "bfloat16")
    assert by_groups["advice"][0]["verdict"] == by_loop["advice"][0]["verdict"]
    some_dozen_roundings = 2**-5
    for ours, theirs in zip(grouped.trials, loop.trials, strict=True):
        assert (ours.spec, ours.status) == (theirs.spec, "done")
        pairs = zip(ours.train.losses, theirs.train.losses, strict=True)  # type: ignore[union-attr]
        for a, b in pairs:
            assert a.loss == pytest.approx(b.loss, rel=some_dozen_roundings)
    if dtype == "bfloat16":
        return
    assert decisions(by_groups) == decisions(by_loop)
    assert grouped.notes == loop.notes
    for key, found in grouped.evals.items():
        assert found.metrics == pytest.approx(loop.evals[key].metrics, rel=ROUNDING)
    for trial in loop.trials:
        file = Path("out") / adapter_path(trial.spec.trial_id) / "adapter_model.safetensors"
        other = load_file(tmp_path / "loop" / file)
        for name, tensor in load_file(tmp_path / "grouped" / file).items():
            torch.testing.assert_close(tensor, other[name], rtol=ROUNDING, atol=ROUNDING)
