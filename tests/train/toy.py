"""Toy rows, trials and protocols that the training tests share."""

import random
from typing import Any

from rankscope.config.schema import TrainConfig
from rankscope.data.encode import EncodedRow
from rankscope.provenance import canonical_json
from rankscope.records import TrialSpec
from tiny_models import VOCABULARY

ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")


def trial(slot: str = "a", **changes: Any) -> TrialSpec:
    """A LoRA trial; ``changes`` are fields of the spec."""
    settings: dict[str, Any] = {
        "trial_id": slot,
        "task": "toy",
        "method": "lora",
        "rank": 4,
        "alpha": 8.0,
        "lr": 3e-3,
        "targets": ATTENTION,
        "dropout": 0.0,
        "seed": 0,
    }
    return TrialSpec.model_validate(settings | changes)


def full_trial(slot: str = "full", **changes: Any) -> TrialSpec:
    """Full fine-tuning."""
    settings = {"method": "full", "rank": None, "alpha": None, "lr": 1e-3, "targets": ()}
    return trial(slot, **(settings | changes))


def peft_trial(slot: str = "peft", lr: float = 3e-3, seed: int = 0, **settings: Any) -> TrialSpec:
    """A trial of one of PEFT's own methods; ``settings`` are the method's."""
    text = canonical_json(settings)
    return trial(slot, method="peft", peft=text, rank=None, alpha=None, lr=lr, seed=seed)


def protocol(**changes: Any) -> TrainConfig:
    """Two rows by three micro-batches, two epochs."""
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 2, "gradient_accumulation": 3}
    return TrainConfig.model_validate(settings | changes)


def toy_rows(count: int = 20, seed: int = 0) -> list[EncodedRow]:
    """Rows of 3 to 24 tokens; the last one to six carry loss."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        length = rng.randint(3, 24)
        labelled = rng.randint(1, min(6, length - 1))
        ids = tuple(rng.randrange(3, VOCABULARY) for _ in range(length))
        made.append(EncodedRow(ids, (False,) * (length - labelled) + (True,) * labelled, False))
    return made
