"""Where training makes the program wait for everything that was asked of a device: it reads a
number there, picks values by a mask, whose number it has to know, or copies numbers to it.

The meta device stands in for one. It has shapes and no numbers: whatever is read there is 1.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tiny_models import base_of, tiny_llama
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from toy_training import GENERAL, REGULARIZED, protocol, toy_rows

import rankscope
from rankscope.data.encode import EncodedRow
from rankscope.models.attention import varlen
from rankscope.models.attention.varlen import OnShapes
from rankscope.records import TrialSpec
from rankscope.train import trial_state
from rankscope.train.loop import train_group
from rankscope.train.trial_state import is_update_checked

READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
COPYING = ("_to_copy", "copy_")
STEPS = 5
BY_STEP = {
    "compute_gradients": "the losses of all trials: one that is not finite leaves",
    "train_group": "and so does one whose gradient norm is not",
}
"""Once in a step."""
NOW_AND_THEN = {
    "LowRankUpdate.frobenius": "after 1, 2, 4, 8, ... steps: has a trial run away?",
    "Base.weight_norm": "once for each weight",
    "_all_finite": "after the last step",
    "TrialState.why_nothing_trained": "after the last step",
}
COPIES = {
    "on_device": "from pinned memory on CUDA, where nothing waits for them",
    "LoraMethod.init_module": "A at the start",
}


class Device(OnShapes):
    """Counts, by the innermost function of the package, what a device would be waited for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        by_mask = name in INDEXING and any(x.dtype == torch.bool for x in given[1:])
        if (name in READS or by_mask) and any(x.is_meta for x in given):
            self.reads[place()] += 1
        out = super().__torch_dispatch__(func, types, args, kwargs)
        # A number of the CPU goes to a kernel as its argument.
        copied = any(x.is_cpu and (x.dim() or name in COPYING) for x in given)
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if copied and any(x.is_meta for x in made):
            self.copies[place()] += 1
        return out


class Lists(TorchFunctionMode):
    """Counts lists that torch copies by itself: in indexing, and as the numbers of a new tensor."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].is_meta:
            index = args[1] if isinstance(args[1], tuple) else args[1:2]
            self.device.copies[place()] += any(isinstance(part, list) for part in index)
        elif func is torch.tensor and out.is_meta:
            self.device.copies[place()] += 1
        return out


def place() -> str:
    root, frame = str(Path(rankscope.__file__).parent), sys._getframe()
    while not frame.f_code.co_filename.startswith(root):
        assert frame.f_back is not None, "a library waits by itself"
        frame = frame.f_back
    return frame.f_code.co_qualname


@pytest.fixture
def device() -> Any:
    """Everything on the meta device that has a kernel on real ones alone is replaced."""
    found, to_list, generator = Device(), Tensor.tolist, torch.Generator

    def noted(tensor: Tensor) -> object:
        if tensor.is_meta:
            found.reads[place()] += 1
            tensor = torch.ones(tensor.shape)
        return to_list(tensor)

    def plain(parameters: Any, *_: object) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters)

    replaced: list[tuple[Any, str, Callable[..., object]]] = [
        (Tensor, "tolist", noted),
        (torch, "Generator", lambda *_: generator()),
        (trial_state, "new_optimizer", plain),
        (varlen, "has_varlen_kernel", lambda _: True),
    ]
    with ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(patch.object(owner, name, value))
        yield found


@pytest.mark.parametrize(
    ("implementation", "dtype"),
    [("loop", torch.float32), ("grouped_mm", torch.bfloat16), ("loop", torch.float16)],
    ids=["loop", "grouped_mm", "float16"],
)
def test_a_step_waits_once_for_its_losses_and_once_for_its_gradient_norms(
    device: Device, implementation: str, dtype: torch.dtype
) -> None:
    """Replay, KL and dropout included."""
    assert_waits_once(device, REGULARIZED, toy_rows(), implementation, dtype)


def assert_waits_once(
    device: Device,
    trials: Sequence[TrialSpec],
    rows: Sequence[EncodedRow],
    implementation: str = "loop",
    dtype: torch.dtype = torch.float32,
    objective: str = "sft",
) -> None:
    """Passes have few tokens, so that a step has several."""
    base = base_of(tiny_llama().to("meta", dtype))
    settings = protocol(max_steps=STEPS, batch_tokens=64, objective=objective)
    chosen = patch.object(trial_state, "choose_lora_implementation", lambda *_: implementation)
    with chosen, device, Lists(device):
        result = train_group(base, trials, rows, settings, replay=GENERAL)
    assert [state.steps_done for state in result.states] == [STEPS] * len(trials)
    by_step = {name: count for name, count in device.reads.items() if name in BY_STEP}
    assert by_step == dict.fromkeys(BY_STEP, STEPS)
    assert device.reads.keys() == BY_STEP.keys() | NOW_AND_THEN.keys()
    assert (+device.copies).keys() == COPIES.keys()
    assert not is_update_checked(3, STEPS)
