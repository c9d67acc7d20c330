"""Which implementation a device gets, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rankscope.errors import UserError
from rankscope.models import lora_implementation
from rankscope.models.lora_implementation import (
    choose_lora_implementation,
    computes_groups_right,
    lora_implementation_notes,
)

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def with_card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], right: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(lora_implementation, "computes_groups_right", lambda *_: right)


def test_groups_are_chosen_on_hopper_in_bfloat16_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = choose_lora_implementation
    with_card(monkeypatch, (9, 0), right=True)
    assert choose("auto", CUDA, torch.bfloat16) == "grouped_mm"
    assert choose("loop", CUDA, torch.bfloat16) == "loop"
    assert choose("auto", CUDA, torch.float32) == "loop"
    assert choose("auto", CPU, torch.bfloat16) == "loop"
    assert choose("grouped_mm", CPU, torch.float32) == "grouped_mm"
    assert choose("auto", torch.device("mps"), torch.float32) == "loop"
    assert lora_implementation_notes("auto", CUDA, torch.bfloat16) == []
    for device in (CUDA, torch.device("mps")):
        with pytest.raises(UserError, match=r"lora_implementation.*needs bfloat16 on CUDA"):
            choose("grouped_mm", device, torch.float32)
    with_card(monkeypatch, (8, 6), right=True)
    assert choose("auto", CUDA, torch.bfloat16) == "loop"
    assert lora_implementation_notes("auto", CUDA, torch.bfloat16) == []
    with pytest.raises(UserError, match=r"capability 9\.0"):
        choose("grouped_mm", CUDA, torch.bfloat16)


def test_a_card_that_groups_wrong_trains_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    with_card(monkeypatch, (10, 0), right=False)
    assert choose_lora_implementation("auto", CUDA, torch.bfloat16) == "loop"
    (note,) = lora_implementation_notes("auto", CUDA, torch.bfloat16)
    assert "fails or gives wrong numbers" in note
    with pytest.raises(UserError, match="wrong numbers"):
        lora_implementation_notes("grouped_mm", CUDA, torch.bfloat16)


def test_a_wrong_kernel_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    check = computes_groups_right.__wrapped__
    assert check(CPU, torch.float32)
    assert check(CPU, torch.bfloat16)
    right = F.grouped_mm

    def shifted(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
        return right(a, b, offs=(offs // 8 * 8).clamp(min=1))

    def ragged_sums(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
        return right(a, b, offs=offs) if b.ndim == 3 else shifted(a, b, offs=offs)

    def unsupported(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
        raise RuntimeError("no kernel for this device")

    for wrong in (shifted, ragged_sums, unsupported):
        monkeypatch.setattr(F, "grouped_mm", wrong)
        assert not check(CPU, torch.bfloat16)
