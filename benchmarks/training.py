"""Trials and rows of the races of training, and when losses agree.

All sides start from the same A and B and see the same rows in the same order. A turn trains every
trial from its start. Loading, tokenizing, building trainers and every run's first step, in which a
trainer sets itself up, are not timed.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoConfig

from race import Pairs, Segment, heading as machine
from rankscope.config.study import TrainConfig
from rankscope.config.task import TaskConfig
from rankscope.data.encode import EncodedRow, Encoder
from rankscope.data.sampler import RowSampler
from rankscope.data.tasks import load_task
from rankscope.device import choose_device, choose_dtype, dtype_name
from rankscope.formatting import with_leading_space
from rankscope.models.load import load_tokenizer
from rankscope.records import TrialSpec
from rounding import rounding, terms_of_pass

BFLOAT16_TOLERANCE = 1e-2
"""bfloat16 keeps 8 bits: each product is rounded by up to 2^-9 = 0.2 %, and sums in another order
are rounded otherwise. Measured over the first steps on SmolLM2-135M: 0.3 %.
"""
UNTIMED = 1
"""First steps of every run that do not count."""
ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")


@dataclass(frozen=True, slots=True)
class Setting:
    """A race of training.

    Attributes:
        model: Hugging Face folder.
        task: named task whose training rows are used, in the plain prompt format.
        data_dir: folder of the named tasks' files; None for the pocket model's own tasks.
        trials: (rank, learning rate, seed) of each trial; alpha is twice the rank, on attention.
            Rank None is full fine-tuning.
        batch_size: rows per micro-batch.
        gradient_accumulation: micro-batches per optimizer step.
        max_length: tokens; longer rows are left out on every side.
        steps: optimizer steps of each trial in a turn, the untimed one included.
        objective: what is minimized; with ``dpo`` rows have a rejected answer.
        kernels: Rankscope's, as ``train.kernels``.
    """

    model: str
    task: str
    data_dir: str | None
    trials: tuple[tuple[int | None, float, int], ...]
    batch_size: int
    gradient_accumulation: int
    max_length: int
    steps: int
    dtype: str = "auto"
    device: str = "auto"
    objective: str = "sft"
    kernels: str = "plain"

    def torch_device(self) -> torch.device:
        """Where to compute."""
        return choose_device(self.device)

    def torch_dtype(self) -> torch.dtype:
        """Precision of the base's weights."""
        return choose_dtype(self.dtype, self.torch_device())

    def specs(self) -> list[TrialSpec]:
        """The trials, with ids that are also labels, such as ``r=8 lr=0.0002 seed=0``."""
        return [
            TrialSpec(
                trial_id=f"{'full' if rank is None else f'r={rank}'} lr={lr:g} seed={seed}",
                task=self.task,
                method="full" if rank is None else "lora",
                rank=rank,
                alpha=None if rank is None else 2.0 * rank,
                lr=lr,
                targets=() if rank is None else ATTENTION,
                dropout=0.0,
                seed=seed,
            )
            for rank, lr, seed in self.trials
        ]

    def middle(self) -> TrialSpec:
        """The trial that stands for all where one must do."""
        return self.specs()[len(self.trials) // 2]

    def protocol(self) -> TrainConfig:
        """The default schedule, linear with a tenth of the steps as warm-up, and no checkpoints."""
        return TrainConfig(
            max_steps=self.steps,
            batch_size=self.batch_size,
            gradient_accumulation=self.gradient_accumulation,
            schedule="linear",
            warmup_fraction=0.1,
            max_length=self.max_length,
            checkpoint_seconds=1e9,
            objective=self.objective,
        )


@dataclass(slots=True)
class Rows:
    """The rows of a race, as text and as tokens, and the order in which each trial sees them."""

    setting: Setting
    prompts: list[str] = field(default_factory=list)
    completions: list[str] = field(default_factory=list)
    encoded: list[EncodedRow] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)  # Of pairs, the other completion

    @classmethod
    def read(cls, setting: Setting, max_train_rows: int | None = None) -> "Rows":
        """The first rows of the task that fit, as many as the steps need or there are.

        max_train_rows: as in a study file, which draws that many. All of them are read, and those
            that are too long are cut, as in a study.
        """
        data_dir = None if setting.data_dir is None else Path(setting.data_dir)
        encoder = Encoder(load_tokenizer(Path(setting.model)), "plain", setting.max_length)
        rows = cls(setting)
        task = TaskConfig(name=setting.task, max_train_rows=max_train_rows)
        wanted = setting.steps * setting.batch_size * setting.gradient_accumulation
        for item in load_task(task, data_dir, data_seed=0).train:
            is_pair = setting.objective == "dpo"
            row = (encoder.pair if is_pair else encoder.training_row)(item, "completion")
            if row is not None and not (row.truncated and max_train_rows is None):
                rows.prompts.append(item.prompt)
                rows.completions.append(with_leading_space(item.prompt, item.completion))
                rows.encoded.append(row)
                if item.answer is not None:
                    other = item.choices[(item.answer + 1) % len(item.choices)]
                    rows.rejected.append(with_leading_space(item.prompt, other))
            if max_train_rows is None and len(rows.encoded) == wanted:
                break
        return rows

    def order(self, spec: TrialSpec) -> list[list[list[int]]]:
        """Row indices of every micro-batch of every optimizer step of a trial."""
        setting = self.setting
        order = RowSampler(
            len(self.encoded), setting.batch_size, setting.gradient_accumulation, spec.seed
        )
        return [order.step(step) for step in range(setting.steps)]

    def tokens(self, spec: TrialSpec, start: int = UNTIMED) -> int:
        """Valid tokens of a trial's steps from ``start``, rejected answers with their prompts."""
        steps = self.order(spec)[start:]
        rows = (self.encoded[i] for micros in steps for micro in micros for i in micro)
        return sum(len(part.input_ids) for row in rows for part in row.parts)


class StepClock:
    """Seconds of each optimizer step; on CUDA a step ends when its kernels have."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks = [self.now()]

    def now(self) -> float:
        """Seconds, once everything asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def step_done(self) -> None:
        """Call at the end of every step."""
        self.marks.append(self.now())

    def seconds(self, start: int = UNTIMED) -> float:
        """Seconds of all steps but the first ``start``."""
        return self.marks[-1] - self.marks[start]


@dataclass(slots=True)
class Trained:
    """Trials that a turn has trained.

    Attributes:
        losses: trial -> loss of each optimizer step.
        rates: trial -> valid tokens per second, where trials train one after another.
    """

    seconds: float = 0.0
    tokens: int = 0
    losses: dict[str, list[float]] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)

    def add(self, spec: TrialSpec, rows: Rows, losses: list[float], clock: StepClock) -> None:
        """Count a trial that trained by itself."""
        tokens, seconds = rows.tokens(spec), clock.seconds()
        self.losses[spec.trial_id] = losses
        self.rates[spec.trial_id] = tokens / seconds
        self.seconds += seconds
        self.tokens += tokens

    def segment(self) -> Segment:
        """The turn as the harness counts it."""
        return Segment(self.seconds, self.tokens, {"losses": self.losses, "rates": self.rates})


def parity_of(raced: Iterable[Pairs]) -> float:
    """Largest relative difference of a step's loss between two sides, in any pair."""
    pairs = [pair for found in raced for pair in zip(found.ours, found.theirs, strict=True)]
    found = [difference(ours.found["losses"], theirs.found["losses"]) for ours, theirs in pairs]
    return float(torch.tensor(found, dtype=torch.float64).max())


Losses = dict[str, list[float]]


def difference(ours: Losses, theirs: Losses) -> float:
    """Largest relative difference of any trial's loss at any step; NaN stays NaN.

    Raises:
        ValueError: the sides trained different trials.
    """
    if set(ours) != set(theirs):
        raise ValueError(f"sides trained different trials: {theirs}, {ours}")
    steps = [zip(ours[label], theirs[label], strict=True) for label in ours]
    differences = [abs(a - b) / abs(a) for of_trial in steps for a, b in of_trial]
    return float(torch.tensor(differences, dtype=torch.float64).max())


def tolerance(model: str, dtype: torch.dtype) -> float:
    """Largest relative difference of a step's loss between two sides that compute the same."""
    if dtype == torch.bfloat16:
        return BFLOAT16_TOLERANCE
    return rounding(terms_of_pass(AutoConfig.from_pretrained(model)))


def heading(benchmark: str, setting: Setting) -> dict[str, object]:
    """The first fields of a result."""
    dtype = setting.torch_dtype()
    return {
        **machine(benchmark, dtype_name(dtype), setting.torch_device()),
        "steps": setting.steps,
        "parity_tolerance": tolerance(setting.model, dtype),
    }
