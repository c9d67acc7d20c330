"""Rankscope's own side: all trials in one group."""

from collections.abc import Sequence

from race import Segment, Turn
from rankscope.config.study import ModelConfig
from rankscope.device import limit_kernel_cache
from rankscope.models.base import Base
from rankscope.models.kernels import use_kernels
from rankscope.models.load import load_base
from rankscope.train.loop import train_group
from rankscope.train.trial_state import TrialState
from training import Rows, StepClock, Trained


def packed(rows: Rows) -> Turn:
    """Train the trials in one group."""
    base = load(rows)

    def turn() -> Segment:
        trained = Trained()
        train(base, rows, trained)
        return trained.segment()

    return turn


def load(rows: Rows) -> Base:
    """The base, as a study loads it."""
    limit_kernel_cache()
    setting = rows.setting
    config = ModelConfig(path=setting.model, prompt_format="plain")
    base = load_base(config, setting.torch_device(), setting.torch_dtype())
    use_kernels(base.model, setting.kernels)
    return base


def train(base: Base, rows: Rows, trained: Trained) -> Sequence[TrialState]:
    """Train all trials in one group, count them, and return them."""
    setting, clock = rows.setting, StepClock(base.device)
    result = train_group(
        base,
        setting.specs(),
        rows.encoded,
        setting.protocol(),
        progress=lambda *_: clock.step_done(),
    )
    for state in result.states:
        if state.failure is not None:
            raise RuntimeError(f"{state.spec.trial_id}: {state.failure}")
        trained.losses[state.spec.trial_id] = [point.loss for point in state.losses]
        trained.tokens += rows.tokens(state.spec)
    trained.seconds += clock.seconds()
    base.multi_lora.clear()
    return result.states
