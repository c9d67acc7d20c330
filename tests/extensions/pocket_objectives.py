"""Objectives on the pocket model: in the loop, beside TRL's trainers, and in whole studies."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Outcome, rankscope
from finished_studies import pocket
from tiny_models import base_of
from toy_training import assert_same_weights, bits, losses, peft_twin, stop_after, trial
from transformers import AutoTokenizer

from rankscope.config.study import TrainConfig
from rankscope.data.encode import Encoder
from rankscope.errors import Interrupted
from rankscope.models.base import Base
from rankscope.models.init_context import InitContext, new_adapter
from rankscope.models.model_folder import pocket_folder
from rankscope.records import TrialSpec
from rankscope.train.checkpoint import GroupCheckpoint
from rankscope.train.loop import GroupResult
from rounding import rounding, terms_of_pass

TOKENIZER = AutoTokenizer.from_pretrained(pocket_folder())
ENCODER = Encoder(TOKENIZER, "plain", None)
WORDS = ["red", "old", "new", "cold", "warm", "good", "small", "open"]
STEPS = 5
TRIALS = [trial(), trial("b", rank=8, alpha=16.0, seed=1), trial("c", rank=1, alpha=2.0, lr=1e-2)]
COMMON: dict[str, Any] = {
    "learning_rate": 3e-3,
    "lr_scheduler_type": "linear",
    "max_steps": STEPS,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "logging_steps": 1,
    "activation_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
}
"""Settings of TRL's trainers: a step takes all four rows, in any order."""
TRAIN = {"max_steps": 4, "batch_size": 4, "gradient_accumulation": 1, "max_length": 64}
STUDY = {"name": "s", "model": "pocket", "seeds": [0], "dtype": "float32", "train": TRAIN}


def base() -> Base:
    return base_of(pocket(), TOKENIZER)


def relative(steps: int = STEPS) -> float:
    return rounding(steps * terms_of_pass(pocket().config))


def protocol(objective: Any, **changes: Any) -> TrainConfig:
    settings = {"max_steps": STEPS, "batch_size": 2, "gradient_accumulation": 2}
    return TrainConfig.model_validate(
        {**settings, "warmup_fraction": 0.0, "objective": objective, **changes}
    )


def peft_of(spec: TrialSpec) -> tuple[Any, dict[str, tuple[torch.nn.Parameter, ...]]]:
    """PEFT's model of a trial at the start of its training, and its A and B by module."""
    frozen = base()
    return peft_twin(
        pocket(), spec, new_adapter(frozen.model, spec, InitContext(frozen, {spec: []}, [spec]))
    )


def equal_alone(train: Callable[..., GroupResult]) -> None:
    """Also what is written: a token changes only if a number is within rounding of its border."""
    for spec, state in zip(TRIALS, train(TRIALS).states, strict=True):
        alone = train([spec]).states[0]
        assert [p["length"] for p in alone.rewards] == [p["length"] for p in state.rewards]
        assert losses(state) == pytest.approx(losses(alone), rel=relative(), abs=relative())
        assert_same_weights(state, alone, relative())


def continued(train: Callable[..., GroupResult], folder: Path) -> GroupResult:
    """A stopped group comes to equal bits."""
    whole, checkpoint = train(TRIALS), GroupCheckpoint(folder / "state")
    with pytest.raises(Interrupted):
        train(TRIALS, checkpoint=checkpoint, should_stop=stop_after(3))
    assert bits(train(TRIALS, checkpoint=checkpoint)) == bits(whole)
    return whole


def run(folder: Path, *options: object, **study: Any) -> Outcome:
    """A study of two ranks and full fine-tuning."""
    arms = [{"method": "lora", "rank": [1, 8], "lr": 4e-3}, {"method": "full", "lr": 5e-4}]
    file = folder / "study.yaml"
    file.write_text(json.dumps({"arms": arms} | STUDY | study), "utf-8")  # YAML, too
    return rankscope("run", file, "--out", folder / "out", *options)
