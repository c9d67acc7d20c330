"""A trial as it was asked for, and what training it gave."""

from typing import Literal

from rankscope.records.record import Record


class TrialSpec(Record):
    """One method, one point of the grid, one seed, one training task."""

    trial_id: str
    """Content id: canonical settings + base weights + data + code version."""
    task: str
    """Training task."""
    method: Literal["lora", "rslora", "full"]
    rank: int | None
    """None for full fine-tuning."""
    alpha: float | None
    lr: float
    targets: tuple[str, ...]
    dropout: float
    seed: int

    @property
    def scaling(self) -> float:
        """s in W = W0 + s B A."""
        if self.rank is None or self.alpha is None:
            return 1.0
        return self.alpha / (self.rank**0.5 if self.method == "rslora" else self.rank)

    @property
    def arm(self) -> tuple[str, str, int | None, float | None, float, tuple[str, ...], float]:
        """Everything but the seed: trials of one arm point are replicates."""
        return (
            self.task,
            self.method,
            self.rank,
            self.alpha,
            self.lr,
            self.targets,
            self.dropout,
        )

    @property
    def arm_label(self) -> str:
        """Short name for tables, such as ``r=32 lr=0.0002``; the task is not part of it.

        Two arms of one task never share a label: what differs from the default is spelled out.
        """
        if self.rank is None:
            return f"full lr={self.lr:.12g}"
        method = "" if self.method == "lora" else f"{self.method} "
        alpha = "" if self.alpha == 2 * self.rank else f" alpha={self.alpha:g}"
        dropout = f" dropout={self.dropout:g}" if self.dropout else ""
        targets = ""
        if set(self.targets) != {"q_proj", "k_proj", "v_proj", "o_proj"}:
            targets = " on " + ",".join(t.removesuffix("_proj") for t in sorted(self.targets))
        return f"{method}r={self.rank}{alpha} lr={self.lr:.12g}{dropout}{targets}"

    @property
    def label(self) -> str:
        """Name of the trial for logs, such as ``arc_easy r=32 lr=0.0002 seed=0``."""
        return f"{self.task} {self.arm_label} seed={self.seed}"


class LossPoint(Record):
    """One optimizer step of one trial."""

    step: int
    loss: float
    """Mean over the step's labelled tokens, nats."""
    lr: float
    grad_norm: float
    """Before clipping."""


class TrainRecord(Record):
    """What training one trial gave."""

    trial_id: str
    pack_id: str
    """Trials trained together share it."""
    pack_size: int
    trainable_parameters: int
    steps: int
    num_tokens: int
    """Valid input tokens seen, padding not counted."""
    num_label_tokens: int
    rows: int
    """Training rows used."""
    rows_dropped: int
    """Rows left out: no completion, or prompt longer than max_length."""
    rows_truncated: int
    """Rows whose completion was cut at max_length."""
    seconds: float
    """This trial's share of its pack's wall time, by tokens."""
    peak_memory_bytes: int
    """Peak of the process while the pack trained."""
    losses: tuple[LossPoint, ...]
    weights_sha256: str
    """Of the stored adapter or full model weights."""
