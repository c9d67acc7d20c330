"""A method from one file is configured, labeled, estimated, trained, stored and loaded."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft import PeftModel
from tiny_models import base_of, tiny_llama
from torch import Tensor
from toy_training import protocol, toy_rows, trial

from rankscope.config.arm import ArmConfig
from rankscope.models.adapters.settings import AdapterSettings
from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.methods import get_method
from rankscope.train.loop import train_group
from rankscope.train.memory import MemoryModel, RowCounts

IDS = [5, 9, 31, 7, 250, 3, 77, 12]
ROWS = toy_rows()


@pytest.fixture(autouse=True)
def olora(load_extension: Callable[[str], ModuleType]) -> None:
    """The method of the file beside this one, found while a test runs."""
    load_extension("method")


def logits(base: Base, adapter_name: str | None) -> Tensor:
    with torch.inference_mode():
        batch = RowBatch.of([Row(IDS, range(len(IDS)), adapter_name)], base.device)
        return base.logits(batch)


def test_a_study_file_may_name_it() -> None:
    assert get_method("olora").name == "olora"
    arm = ArmConfig.model_validate({"method": ["lora", "olora"], "rank": 4, "lr": 1e-3})
    assert [grid["method"] for grid in arm.grids()] == [["lora"], ["olora"]]
    with pytest.raises(ValueError, match=r"'olorra', expected one of .*olora.* mean 'olora'"):
        ArmConfig.model_validate({"method": "olorra", "rank": 4, "lr": 1e-3})
    with pytest.raises(ValueError, match="found 'init_from' with method 'olora'"):
        ArmConfig.model_validate({"method": "olora", "lr": 1e-3, "init_from": "x"})


def test_its_label_and_its_memory_come_from_the_same_object() -> None:
    spec = trial("o", method="olora")
    assert spec.arm_label.startswith("olora r=4")
    assert get_method("olora").label == "OLoRA"
    model = MemoryModel(tiny_llama().config, torch.float32, torch.device("cpu"))
    counts = RowCounts.of(ROWS)
    groups = [[trial("a", method=name)] for name in ("lora", "olora")]
    needed = [model.of_group(group, counts, protocol()).total_bytes for group in groups]
    assert needed[0] < needed[1]  # A0 and B0 besides A and B


def test_it_starts_as_the_base_trains_and_is_stored_as_peft_reads_it(tmp_path: Path) -> None:
    base, specs = base_of(tiny_llama()), [trial("o", method="olora"), trial("l")]
    bare = logits(base, None)
    fresh = base_of(tiny_llama())
    _, adapter = get_method("olora").prepare(fresh, specs[0], None, 1)  # type: ignore[arg-type]
    assert float((logits(fresh, "o") - bare).norm()) < 1e-5 * float(bare.norm())
    assert adapter.parameters()

    result = train_group(base, specs, ROWS, protocol(max_steps=4))
    trained = result.states[0].adapter
    assert trained is not None
    tuned = logits(base, "o")
    assert float((tuned - bare).norm()) > 1e-3 * float(bare.norm())

    get_method("olora").save(trained, base.record, tmp_path)
    loaded = base_of(tiny_llama())
    get_method("olora").load(loaded, specs[0], tmp_path)
    assert float((logits(loaded, "o") - tuned).norm()) < 1e-5 * float(tuned.norm())
    theirs = PeftModel.from_pretrained(tiny_llama(), str(tmp_path)).eval()
    with torch.inference_mode():
        expected = theirs(input_ids=torch.tensor([IDS])).logits[0]
    assert float((expected - tuned).norm()) < 1e-5 * float(tuned.norm())


def test_a_mark_of_peft_is_read_as_the_method_that_defines_it() -> None:
    dora = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "use_dora": True}
    assert get_method("half_dora").rank_scale(8) == 16
    assert AdapterSettings.model_validate(dora).scaling == 1
