"""The column of spectra in docs/your-model-and-data.md, against the weights that PEFT merges."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from architectures import ARCHITECTURES, stock
from peft import PeftModel
from peft_adapters import saved_adapter

from rankscope.extensions.spectra.inspect import inspect
from rankscope.extensions.spectra.record import SpectraRecord

from ...models.test_architectures import check_cell, targets_of


def check_spectra(architecture: str, folder: Path) -> None:
    """``inspect`` of an adapter that PEFT wrote, against the weights that PEFT merges."""
    model = stock(architecture)
    model.save_pretrained(folder / "base")
    settings: dict[str, Any] = {"target_modules": list(targets_of(architecture))}
    if architecture == "GPT-2":
        settings["fan_in_fan_out"] = True
    saved_adapter(folder / "adapter", model, **settings)
    whole: Any = PeftModel.from_pretrained(stock(architecture), str(folder / "adapter"))
    count = sum(name.endswith("lora_B.default.weight") for name in whole.state_dict())
    merged, before = whole.merge_and_unload().state_dict(), stock(architecture).state_dict()
    settings = {"analyze": {"spectra": {"intruder_k": 4}}, "device": "cpu"}
    (trial,) = inspect(folder / "base", folder / "adapter", settings).trials
    spectra = trial.analysis(SpectraRecord)
    assert spectra is not None
    assert len(spectra.matrices) == count
    for matrix in spectra.matrices:
        delta = (merged[f"{matrix.name}.weight"] - before[f"{matrix.name}.weight"]).double()
        assert matrix.frobenius == pytest.approx(float(delta.norm()), rel=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_architecture(architecture: str, tmp_path: Path) -> None:
    check_cell(architecture, "spectra", partial(check_spectra, architecture, tmp_path))
