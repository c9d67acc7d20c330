"""Studies that several devices cannot train."""

from typing import Any

from pocket_study import SETTINGS, changed

from ...run.test_refusals import LORA, STOP, arm
from ..conftest import refusals


def on_two(**changes: Any) -> dict[str, Any]:
    whole = {"device": "cpu", "evaluate": {}, "arms": [LORA, SETTINGS["arms"][2]]}
    return {**whole, **changed("train", devices=2), **changes}


test_what_cannot_run_is_refused = refusals(
    (on_two(device="auto"), "train.devices: 2: found 0 GPUs, expected at least 2"),
    (on_two(**arm(method="dora")),
     "found method dora, which works on one device only; expected one of the methods full, lora"),
    (on_two(**arm(method="pissa")), "found method pissa"),
    (on_two(**arm(dropout=0.1)), "found dropout"),
    (on_two(**arm(kl_to_base=0.1)), "found kl_to_base"),
    (on_two(**arm(**STOP), **changed("train", devices=2, evaluate_every=4)), "found early_stop"),
    (on_two(**changed("train", devices=2, optimizer="adamw8bit")), "found optimizer: adamw8bit"),
)  # fmt: skip
