"""Where training reads numbers out of tensors: on a device the program waits there for everything
that was asked of it."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from toy_training import GENERAL, REGULARIZED, protocol, trained

import rankscope
from rankscope.train.trial_state import is_update_checked

READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")
STEPS = 5
BY_STEP = {
    "compute_gradients": 1,  # the losses of all trials: one that is not finite leaves
    "clip_gradients": len(REGULARIZED),  # and so does one whose gradient is not
}
"""How often in a step."""
NOW_AND_THEN = {
    "LowRankUpdate.frobenius": "after 1, 2, 4, 8, ... steps: has a trial run away?",
    "Base.weight_norm": "once for each weight",
    "all_finite": "after the last step",
    "note_plain_logits": "once for each model that is loaded",
    "TrialState.why_nothing_trained": "after the last step",
}
ON_THE_CPU = {
    "AttentionPlan.of": "lengths of rows, which stay there on every device",
    "RowLayout.__init__": "the same",
    "RowLayout.places": "the same",
    "RowBatch.kept_segments": "kept positions, likewise",
    "_MeanLosses.backward": "spares a walk over gradients; a device walks",
}


class Reads(TorchDispatchMode):
    """Counts them by the innermost function of the package."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func.overloadpacket.__name__ in READS:
            self.note()
        return func(*args, **(kwargs or {}))

    def note(self) -> None:
        root, frame = str(Path(rankscope.__file__).parent), sys._getframe()
        while not frame.f_code.co_filename.startswith(root):
            assert frame.f_back is not None, "a library reads by itself"
            frame = frame.f_back
        self.places[frame.f_code.co_qualname] += 1


def test_a_step_waits_for_its_losses_and_its_gradient_norms_alone() -> None:
    """Replay, KL and dropout included; passes of few tokens, so that a step has several."""
    reads, to_list = Reads(), Tensor.tolist

    def noted(tensor: Tensor) -> object:
        reads.note()
        found: object = to_list(tensor)
        return found

    with reads, patch.object(Tensor, "tolist", noted):
        trained(REGULARIZED, protocol(max_steps=STEPS, batch_tokens=64), replay=GENERAL)
    by_step = {name: count for name, count in reads.places.items() if name in BY_STEP}
    assert by_step == {name: count * STEPS for name, count in BY_STEP.items()}
    assert reads.places.keys() == BY_STEP.keys() | NOW_AND_THEN.keys() | ON_THE_CPU.keys()
    assert not is_update_checked(3, STEPS)
