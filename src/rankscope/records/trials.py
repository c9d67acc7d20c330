"""A trial as it was asked for, and what training it gave."""

import json
from pathlib import PurePath
from typing import Literal

from rankscope.models.methods import get_lora_method, get_method
from rankscope.models.methods.lora import LoraMethod
from rankscope.records.record import MethodName, Record


class TrialSpec(Record):
    """One method, one point of the grid, one seed, one training task."""

    trial_id: str
    """Content id: canonical settings + base weights + data + code version."""
    task: str
    """Training task."""
    method: MethodName
    """Registered name, see ``models/methods``."""
    peft: str | None = None
    """``peft`` alone: its settings as canonical JSON, ``peft_type`` among them."""
    rank: int | None
    """None for full fine-tuning, and for a method of PEFT's that names no ``r``."""
    alpha: float | None
    lr: float
    """Peak learning rate; for ``lora+`` that of A."""
    lr_ratio: float | None = None
    """``lora+`` alone: the learning rate of B over that of A."""
    targets: tuple[str, ...]
    dropout: float
    seed: int
    init_from: str | None = None
    """Folder of the adapter that training goes on from; None for the method's own start."""
    init_sha256: str | None = None
    """Hash of that adapter's configuration and weights."""
    batch_size: int | None = None
    """Here and below: what the trial's arm sets itself, where the study's protocol says other."""
    gradient_accumulation: int | None = None
    schedule: Literal["linear", "cosine", "constant"] | None = None
    warmup_fraction: float | None = None
    weight_decay: float | None = None
    replay: str | None = None
    """Here and below: what holds the trial back from forgetting. Task whose rows are mixed in."""
    replay_share: float | None = None
    """Their share of all rows seen, and of the loss."""
    replay_sha256: str | None = None
    """Hash of those rows as encoded."""
    kl_to_base: float | None = None
    """Weight of KL(base || tuned), nats per label token, in the loss."""
    early_stop: int | None = None
    """Points without a better in-domain score after which training stops."""
    validation_sha256: str | None = None
    """Early stopping alone: hash of what it is scored on then."""

    @property
    def is_full(self) -> bool:
        """Full fine-tuning: every weight of the base trains."""
        return get_method(self.method).trains_base

    @property
    def trains_alone(self) -> bool:
        """Shares the base with no other trial."""
        return get_method(self.method).trains_alone

    @property
    def scaling(self) -> float:
        """s in W = W0 + s B A."""
        if self.rank is None or self.alpha is None:
            return 1.0
        return self.alpha / get_lora_method(self.method).rank_scale(self.rank)

    @property
    def overrides(self) -> dict[str, int | float | str]:
        """What the trial's arm sets of the training protocol, by the protocol's names."""
        own: dict[str, int | float | str | None] = {
            "batch_size": self.batch_size,
            "gradient_accumulation": self.gradient_accumulation,
            "schedule": self.schedule,
            "warmup_fraction": self.warmup_fraction,
            "weight_decay": self.weight_decay,
        }
        return {name: value for name, value in own.items() if value is not None}

    @property
    def mitigations(self) -> dict[str, object]:
        """What holds the trial back from forgetting, as labels name it; empty for a plain one."""
        share = "" if self.replay_share is None else f"{self.replay_share:.12g}"
        own: dict[str, object] = {
            "replay": None if self.replay is None else f"{share}x{self.replay}",
            "kl": None if self.kl_to_base is None else f"{self.kl_to_base:.12g}",
            "patience": self.early_stop,
        }
        return {name: value for name, value in own.items() if value is not None}

    @property
    def arm(self) -> tuple[object, ...]:
        """Everything but the seed: trials of one arm point are replicates."""
        return (*self.arm_without_lr, self.lr)

    @property
    def arm_without_lr(self) -> tuple[object, ...]:
        """Everything but the seed and the learning rate, which is chosen for each arm."""
        return (*self.arm_without_rank, self.rank, self.alpha)

    @property
    def arm_without_rank(self) -> tuple[object, ...]:
        """Everything but seed, learning rate, rank and alpha, which mostly follows the rank."""
        return (
            self.task,
            self.method,
            self.peft,
            self.lr_ratio,
            self.targets,
            self.dropout,
            self.init_sha256,
            *self.overrides.items(),
            *self.mitigations.items(),
        )

    @property
    def arm_label(self) -> str:
        """Short name for tables, such as ``r=32 lr=0.0002``; the task is not part of it.

        Two arms of one task never share a label: what differs from the default is spelled out.
        """
        if self.peft is not None:
            parts = peft_label(self.peft)
        elif self.rank is None:
            parts = ["full"]
        else:
            method = [] if self.method == LoraMethod.name else [self.method]
            alpha = [] if self.alpha == 2 * self.rank else [f"alpha={self.alpha:g}"]
            parts = [*method, f"r={self.rank}", *alpha]
        return " ".join([*parts, f"lr={self.lr:.12g}", *self.special_settings])

    @property
    def special_settings(self) -> tuple[str, ...]:
        """What else differs from the default, such as ``dropout=0.1``, as labels name it."""
        parts = []
        if self.lr_ratio is not None:
            parts.append(f"ratio={self.lr_ratio:.12g}")
        if self.dropout:
            parts.append(f"dropout={self.dropout:g}")
        if self.targets and set(self.targets) != {"q_proj", "k_proj", "v_proj", "o_proj"}:
            parts.append("on " + ",".join(t.removesuffix("_proj") for t in sorted(self.targets)))
        if self.init_from is not None:
            name = "_".join(PurePath(self.init_from).name.split())[:MAX_FOLDER_NAME]
            parts.append(f"from {name}@{(self.init_sha256 or '')[:8]}")  # names may repeat
        for name, value in self.overrides.items():
            number = value if isinstance(value, str) else f"{value:.12g}"
            parts.append(f"{OVERRIDE_LABELS[name]}={number}")
        parts += [f"{name}={value}" for name, value in self.mitigations.items()]
        return tuple(parts)

    @property
    def label(self) -> str:
        """Name of the trial for logs, such as ``arc_easy r=32 lr=0.0002 seed=0``."""
        return f"{self.task} {self.arm_label} seed={self.seed}"


MAX_FOLDER_NAME = 40
"""Characters of a folder's name in a label."""

OVERRIDE_LABELS = {
    "batch_size": "batch",
    "gradient_accumulation": "accumulation",
    "schedule": "schedule",
    "warmup_fraction": "warmup",
    "weight_decay": "decay",
}


def peft_label(settings: str) -> list[str]:
    """``adalora``, ``init_r=12``: type and settings of a method of PEFT's, from their JSON."""
    fields: dict[str, object] = json.loads(settings)
    kind = str(fields.pop("peft_type")).lower()
    return [kind, *(f"{name}={json.dumps(value)}" for name, value in fields.items())]


class LossPoint(Record):
    """One optimizer step of one trial."""

    step: int
    loss: float
    """Mean over the labelled tokens of the step's own rows, nats."""
    lr: float
    grad_norm: float
    """Before clipping."""


class PenaltyPoint(Record):
    """What a step of a trial with replay or KL had in its loss besides the task's own rows."""

    step: int
    replay_loss: float | None = None
    """Mean over the replayed rows' labelled tokens, nats; None in a step without such rows."""
    divergence: float | None = None
    """KL(base || tuned), mean over the labelled tokens it is taken at, nats; not weighted."""


class TrainRecord(Record):
    """What training one trial gave."""

    trial_id: str
    group_id: str
    """Trials trained together share it."""
    group_size: int
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
    """This trial's share of its group's wall time, by tokens."""
    peak_memory_bytes: int
    """Peak of the process while the group trained."""
    losses: tuple[LossPoint, ...]
    weights_sha256: str
    """Of the stored adapter or full model weights."""
    penalties: tuple[PenaltyPoint, ...] = ()
    """Of a trial with replay or KL to the base, by step."""
    num_replay_tokens: int = 0
    """Of ``num_tokens``, those of replayed rows."""
    best_step: int | None = None
    """Early stopping alone: the step whose weights were kept."""
