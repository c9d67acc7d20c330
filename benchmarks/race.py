"""A race: every side trains the same trials on the same rows, in a process of its own.

    python benchmarks/race.py MODULE FUNCTION ROWS RESULT

is how :func:`run_side` starts one: it reads the rows, with their setting, from one JSON file, calls
``MODULE.FUNCTION(rows)`` and writes what that returns to another. Sides run one after another. Each
keeps freed memory (:func:`rankscope.device.keep_freed_memory`), so that no side is measured with a
slower allocator than another.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from rankscope.config.section import Kernels
from rankscope.config.study import TrainConfig
from rankscope.config.task import TaskConfig
from rankscope.data.encode import EncodedRow, Encoder
from rankscope.data.sampler import RowSampler
from rankscope.data.tasks import load_task
from rankscope.device import choose_device, choose_dtype, keep_freed_memory, provenance
from rankscope.formatting import with_leading_space
from rankscope.models.load import load_tokenizer
from rankscope.records import TrialSpec
from rounding import rounding, terms_of_pass

BFLOAT16_TOLERANCE = 1e-2
"""bfloat16 keeps 8 bits: each product is rounded by up to 2^-9 = 0.2 %, and sums in another order
are rounded otherwise. Measured over the first steps on SmolLM2-135M: 0.3 %.
"""
ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")


@dataclass(frozen=True, slots=True)
class Setting:
    """What is raced; JSON-compatible.

    Attributes:
        model: Hugging Face folder.
        task: named task whose training rows are used, in the plain prompt format.
        data_dir: folder of the named tasks' files; None for the pocket model's own tasks.
        trials: (rank, learning rate, seed) of each trial; alpha is twice the rank, on attention.
            Rank None is full fine-tuning.
        batch_size: rows per micro-batch.
        gradient_accumulation: micro-batches per optimizer step.
        max_length: tokens; longer rows are left out on every side.
        steps: optimizer steps of each trial, warm-up included.
        warmup_steps: first steps of each run that are not timed.
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
    warmup_steps: int = 1
    dtype: str = "auto"
    device: str = "auto"
    objective: str = "sft"
    kernels: Kernels = "plain"

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

    @classmethod
    def from_json(cls, text: str) -> "Rows":
        """What ``json.dumps(asdict(rows))`` wrote."""
        fields = json.loads(text)
        setting = fields["setting"]
        setting["trials"] = tuple(tuple(trial) for trial in setting["trials"])
        texts = (fields["prompts"], fields["completions"])
        return cls(Setting(**setting), *texts, [*map(_row, fields["encoded"])], fields["rejected"])

    def order(self, spec: TrialSpec) -> list[list[list[int]]]:
        """Row indices of every micro-batch of every optimizer step of a trial."""
        setting = self.setting
        order = RowSampler(
            len(self.encoded), setting.batch_size, setting.gradient_accumulation, spec.seed
        )
        return [order.step(step) for step in range(setting.steps)]

    def timed(self, spec: TrialSpec) -> list[EncodedRow]:
        """The rows of a trial's timed steps, rows of several epochs several times."""
        steps = self.order(spec)[self.setting.warmup_steps :]
        return [self.encoded[i] for micros in steps for micro in micros for i in micro]

    def timed_tokens(self, spec: TrialSpec) -> int:
        """Of those rows, rejected answers with their prompts too."""
        return sum(len(part.input_ids) for row in self.timed(spec) for part in row.parts)


def _row(fields: Mapping[str, Any]) -> EncodedRow:
    rejected = None if fields["rejected"] is None else _row(fields["rejected"])
    ids, labels = tuple(fields["input_ids"]), tuple(fields["is_label"])
    return EncodedRow(ids, labels, fields["truncated"], rejected)


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

    def seconds_after(self, warmup_steps: int) -> float:
        """Of all steps but the first ``warmup_steps``."""
        return self.marks[-1] - self.marks[warmup_steps]


@dataclass(slots=True)
class Times:
    """What a side measured.

    Attributes:
        losses: trial -> loss of each optimizer step, warm-up included.
        seconds: of all timed steps of all trials.
        tokens: valid tokens of those steps; padding is none.
        rates: trial -> valid tokens per second, where trials ran one after another.
        notes: whatever else the side wants to say.
    """

    losses: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    tokens: int = 0
    rates: dict[str, float] = field(default_factory=dict)
    notes: dict[str, object] = field(default_factory=dict)

    def add(self, spec: TrialSpec, rows: Rows, losses: list[float], clock: StepClock) -> None:
        """Count the finished run of one trial."""
        seconds = clock.seconds_after(rows.setting.warmup_steps)
        tokens = rows.timed_tokens(spec)
        self.losses[spec.trial_id] = losses
        self.seconds += seconds
        self.tokens += tokens
        self.rates[spec.trial_id] = tokens / seconds

    @property
    def tokens_per_second(self) -> float:
        """Valid tokens per second of timed steps."""
        return self.tokens / self.seconds


def run_side(module: str, function: str, rows: Rows) -> Times:
    """Run one side in a new process; what it prints goes to standard error.

    Raises:
        subprocess.CalledProcessError: the side failed.
    """
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "rows.json", Path(folder) / "result.json"
        given.write_text(json.dumps(asdict(rows)), encoding="utf-8")
        arguments = [module, function, str(given), str(result)]
        subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), *arguments],
            check=True,
            stdout=sys.stderr,
            env=environment,
        )
        return Times(**json.loads(result.read_text(encoding="utf-8")))


def parity_of(ours: Times, others: Iterable[Times]) -> float:
    """Largest relative difference of any trial's loss at any step from the same one of ours.

    Raises:
        ValueError: another side trained other trials.
    """
    differences = []
    for other in others:
        if set(other.losses) != set(ours.losses):
            raise ValueError(f"sides trained different trials: {other.losses}, {ours.losses}")
        for label, losses in ours.losses.items():
            pairs = zip(losses, other.losses[label], strict=True)
            differences += [abs(a - b) / abs(a) for a, b in pairs]
    return float(torch.tensor(differences, dtype=torch.float64).max())  # NaN stays NaN


def tolerance(model: str, dtype: torch.dtype) -> float:
    """Largest relative difference of a step's loss between two sides that compute the same."""
    if dtype == torch.bfloat16:
        return BFLOAT16_TOLERANCE
    return rounding(terms_of_pass(AutoConfig.from_pretrained(model)))


def heading(benchmark: str, setting: Setting) -> dict[str, object]:
    """The first fields of a result: the race, and the machine that its figures belong to."""
    device = setting.torch_device()
    here = provenance()
    name = f"{here.processor}, {here.num_threads} threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "benchmark": benchmark,
        "device": f"{name}, torch {torch.__version__}",
        "dtype": str(setting.torch_dtype()).removeprefix("torch."),
        "steps": setting.steps,
        "parity_tolerance": tolerance(setting.model, setting.torch_dtype()),
    }


def announce(result: Mapping[str, object]) -> int:
    """Print the result as one JSON line; the exit code, 1 where the sides do not agree."""
    print(json.dumps(rounded(result)))
    parity, largest = result["parity"], result["parity_tolerance"]
    assert isinstance(parity, float)
    assert isinstance(largest, float)
    if parity <= largest:  # False for NaN
        return 0
    print(f"no race: sides differ by {parity:.2g}, more than {largest:.2g}", file=sys.stderr)
    return 1


def rounded(value: object) -> object:
    """Numbers to four significant digits, inside of mappings too."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main(module: str, function: str, rows: str, result: str) -> None:
    """Be one side of a race."""
    keep_freed_memory()
    side = getattr(importlib.import_module(module), function)
    times: Times = side(Rows.from_json(Path(rows).read_text(encoding="utf-8")))
    Path(result).write_text(json.dumps(asdict(times)), encoding="utf-8")


if __name__ == "__main__":
    # The sides import this module by its name; without this there would be two of it.
    sys.modules["race"] = sys.modules["__main__"]
    main(*sys.argv[1:])
