"""The settings of a trial, what training it produced, and its variants at inference."""

import json
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import AfterValidator, ValidationInfo, field_validator

from rankscope.config.arm import TARGET_GROUPS, TRAIN_OVERRIDES
from rankscope.hashing import sha256_json
from rankscope.models.methods import LORA, get_method
from rankscope.records.record import Record


class GivenModel(Record):
    """Origin of a model that was not trained in the study."""

    name: str
    folder: str
    sha256: str  # Hash of its configuration and weights
    other_base: str | None = None  # Recorded hash of its base, if it is another one
    scores_of: str | None = None
    """Trial of the study in ``folder`` whose stored scores it has; its weights are not read."""


class Prompt(Record):
    """Texts that the base sees besides an item."""

    system: str  # Before every item of every task; may be empty
    num_fewshot: int | None  # Solved examples before the items of its task; None: the task's own
    examples: tuple[tuple[str, str, str], ...] = ()
    """Solved examples as (task, question, answer). The task is the training task, or a part of a
    mixture."""

    @property
    def opening(self) -> str:
        """Return the first words of the system text, on one line."""
        text = " ".join(self.system.split())
        return text if len(text) <= MAX_OPENING else f"{text[: MAX_OPENING - 3].rstrip()}..."


class TrialSpec(Record):
    """One method, one point of the grid, one seed, one training task; or a given model."""

    trial_id: str  # Content hash of settings, base weights, data and code version
    task: str  # Training task; empty for a given model
    method: Annotated[str, AfterValidator(lambda name: get_method(name).name)]
    peft: str | None = None  # Only for ``peft``: its settings as JSON, with ``peft_type``
    rank: int | None  # None for full fine-tuning and for PEFT methods without ``r``
    alpha: float | None
    lr: float  # Peak learning rate; for ``lora+`` the rate of A
    lr_ratio: float | None = None  # Only for ``lora+``: learning rate of B over that of A
    targets: tuple[str, ...]
    dropout: float
    seed: int
    rows: int | None = None  # Training rows, the first of the task's shuffled order; None: all
    rank_pattern: tuple[tuple[str, int], ...] | None = None
    """Rank of every target by module path; ``rank`` is then the one rank with as many
    parameters."""
    init_from: str | None = None  # Folder of the adapter that training continues
    init_sha256: str | None = None  # Hash of that adapter's configuration and weights
    batch_size: int | None = None  # The arm's own, like the next five; None: the study's
    gradient_accumulation: int | None = None
    schedule: Literal["linear", "cosine", "constant"] | None = None
    warmup_fraction: float | None = None
    weight_decay: float | None = None
    objective: str | None = None
    replay: str | None = None
    """Task whose rows are mixed in, or ``PREFIX:REST`` of a source of rows. This and the next
    fields are mitigations."""
    replay_share: float | None = None  # Share of the replayed rows among all rows, and in the loss
    replay_sha256: str | None = None
    """Hash of the encoded replayed rows."""
    kl_to_base: float | None = None  # Weight of KL(base || tuned), nats per label token
    early_stop: int | None = None  # Stops after so many points without a better score
    validation_sha256: str | None = None  # Hash of the items that decide when to stop
    given: GivenModel | None = None  # Only for a model that was trained elsewhere
    prompt: Prompt | None = None  # Only for ``prompt``

    @field_validator("peft")
    @classmethod
    def check_peft(cls, peft: str | None) -> str | None:
        if peft is not None:
            _peft_label(peft)
        return peft

    @field_validator("alpha")
    @classmethod
    def check_alpha(cls, alpha: float | None, known: ValidationInfo) -> float | None:
        if alpha is None and known.data.get("rank") is not None and not known.data.get("peft"):
            raise ValueError("expected a number, as the trial has a rank")
        return alpha

    @property
    def is_full(self) -> bool:
        return get_method(self.method).trains_base

    @property
    def trains(self) -> bool:
        """Whether the study trains it."""
        return self.given is None and get_method(self.method).trains

    @property
    def trains_alone(self) -> bool:
        return get_method(self.method).trains_alone

    @property
    def scaling(self) -> float:
        if self.rank is None or self.alpha is None:
            return 1.0
        return self.alpha / get_method(self.method).rank_scale(self.rank)

    @property
    def overrides(self) -> dict[str, int | float | str]:
        """The arm's own values of the training protocol, by field name."""
        own = {name: getattr(self, name) for name in TRAIN_OVERRIDES}
        return {name: value for name, value in own.items() if value is not None}

    @property
    def mitigations(self) -> dict[str, object]:
        """Mitigations of forgetting, as in labels; empty for a plain trial."""
        share = "" if self.replay_share is None else f"{self.replay_share:.12g}"
        own: dict[str, object] = {
            "replay": self.replay and f"{share}x{self.replay}",
            "kl": None if self.kl_to_base is None else f"{self.kl_to_base:.12g}",
            "patience": self.early_stop,
        }
        return {name: value for name, value in own.items() if value is not None}

    @property
    def arm(self) -> tuple[object, ...]:
        """Every setting except the seed: trials with equal values are replicates."""
        return (*self.arm_without_lr, self.lr)

    @property
    def arm_without_lr(self) -> tuple[object, ...]:
        """Every setting except the seed and the learning rate, which is chosen per arm."""
        return (*self.arm_without_rank, self.rank, self.alpha, self.rank_pattern)

    @property
    def arm_without_rank(self) -> tuple[object, ...]:
        """Every setting except seed, learning rate, rank and alpha (usually tied to the rank)."""
        return (*self.kind, self.rows)

    @property
    def kind(self) -> tuple[object, ...]:
        """Every setting that is not a number on an axis of the posterior."""
        own = (self.task, self.method, self.peft, self.lr_ratio, self.targets, self.dropout)
        changes = (*self.overrides.items(), *self.mitigations.items())
        by_module = ["by module"] if self.rank_pattern else []
        return (*own, self.init_sha256, self.given, *changes, *by_module, self.prompt)

    @property
    def short_label(self) -> str:
        """Short label without settings, for a mark in a figure: ``r=8``, ``full``, ``vera``."""
        return f"r={self.rank}" if get_method(self.method).has_rank else self._label_parts[0][1]

    def is_called(self, term: str, value: object) -> bool:
        """Whether a term such as ``lora``, ``lr=2e-4`` or ``on mlp`` is a setting of the trial.

        Terms are parts of the label, or ``NAME=VALUE`` with a name of a field or of the label.
        """
        name, _, _ = term.partition("=")
        fields = {label: field for field, label in TRAIN_OVERRIDES.items()} | LABEL_FIELDS
        known = vars(self).get(fields.get(name, name))
        parts = {self.task, f"seed={self.seed}", *(text for _, text in self._label_parts)}
        return (
            not parts.isdisjoint({term, f"on {term}"})
            or term.casefold() == self.method
            or value == known is not None
        )

    @property
    def arm_label(self) -> str:
        """Short name for tables, such as ``r=32 lr=0.0002``, without the task.

        It spells out every setting that differs from the default, so two arms of a task never share
        a label.
        """
        return self.label_without()

    def label_without(self, *axes: str) -> str:
        """Return the label without some of ``rank``, ``alpha``, ``lr``, ``rows`` and special
        settings."""
        return " ".join(text for axis, text in self._label_parts if not {axis, text} & {*axes})

    @property
    def special_settings(self) -> tuple[str, ...]:
        """Further settings that differ from the default, such as ``dropout=0.1``."""
        return tuple(text for _, text in self._special_parts)

    @property
    def _label_parts(self) -> list[tuple[str, str]]:
        """Return (axis, text) of each part of the label."""
        if self.given is not None:
            return [("", self.given.name)]
        if self.peft is not None:
            parts = _peft_label(self.peft)
        elif self.prompt is not None:
            shots, system = self.prompt.num_fewshot, self.prompt.system
            parts = [("", self.method)]
            parts += [] if shots is None else [("", f"{shots}-shot")]
            parts += [("", f"system={sha256_json(system)[:8]}")] if system else []
        elif self.rank is None:
            parts = [("", "full")]
        else:
            parts = [] if self.method == LORA else [("", self.method)]
            parts += [("rank", f"r={self.rank}")]
            parts += [] if self.alpha == 2 * self.rank else [("alpha", f"alpha={self.alpha:g}")]
        # The rate of imported scores may be unknown.
        return [*parts, *([("lr", f"lr={self.lr:.12g}")] if self.lr else []), *self._special_parts]

    @property
    def _special_parts(self) -> list[tuple[str, str]]:
        parts = []
        if self.rank_pattern is not None:
            parts.append(("", f"by-module={sha256_json(self.rank_pattern)[:8]}"))
        if self.lr_ratio is not None:
            parts.append(("", f"ratio={self.lr_ratio:.12g}"))
        if self.dropout:
            parts.append(("", f"dropout={self.dropout:g}"))
        if self.rows is not None:
            parts.append(("rows", f"rows={self.rows}"))
        group = next((g for g, t in TARGET_GROUPS.items() if set(t) == set(self.targets)), None)
        if self.targets and group != "attention":
            names = [target.removesuffix("_proj") for target in sorted(self.targets)]
            parts.append(("", f"on {group or ','.join(names)}"))
        if self.init_from is not None:
            name = "_".join(PurePath(self.init_from).name.split())[:MAX_FOLDER_NAME]
            parts.append(("", f"from {name}@{(self.init_sha256 or '')[:8]}"))  # names may repeat
        for name, value in self.overrides.items():
            number = value if isinstance(value, str) else f"{value:.12g}"
            number = number.translate(str.maketrans("", "", '{}"'))  # of an objective's settings
            parts.append(("", f"{TRAIN_OVERRIDES[name]}={number}"))
        return [*parts, *(("", f"{name}={value}") for name, value in self.mitigations.items())]

    @property
    def label(self) -> str:
        """Name of the trial for logs, such as ``arc_easy r=32 lr=0.0002 seed=0``."""
        return f"{self.task} {self.arm_label} seed={self.seed}" if self.task else self.arm_label


MAX_OPENING = 40  # Characters of a system text beside a label
MAX_FOLDER_NAME = 40  # Characters of a folder's name in a label

LABEL_FIELDS = {"r": "rank", "ratio": "lr_ratio", "kl": "kl_to_base", "patience": "early_stop"}


def _peft_label(settings: str) -> list[tuple[str, str]]:
    """Read type and settings of a PEFT method from their JSON: ``adalora``, ``init_r=12``."""
    fields: dict[str, object] = json.loads(settings)
    kind = str(fields.pop("peft_type")).lower()
    texts = {name: f"{name}={json.dumps(value)}" for name, value in fields.items()}
    axes = {"r": "rank", "alpha": "alpha"}
    return [("", kind), *((axes.get(name, ""), text) for name, text in texts.items())]


class LossPoint(Record):
    step: int
    loss: float  # Mean over the labeled tokens of the step's own rows, nats
    lr: float
    grad_norm: float  # Before clipping


class PenaltyPoint(Record):
    """Loss terms of a step besides the task's own rows: replay and KL to the base."""

    step: int
    replay_loss: float | None = None  # Nats per labeled token; None in a step without such rows
    divergence: float | None = None  # Unweighted KL(base || tuned), mean over labeled tokens, nats


class TrainRecord(Record):
    trial_id: str
    group_id: str  # Equal for trials trained together
    group_size: int
    trainable_parameters: int
    steps: int
    num_tokens: int  # Input tokens seen; there is no padding
    num_label_tokens: int
    rows: int  # Training rows used
    rows_dropped: int  # Rows dropped: no completion, or a prompt longer than max_length
    rows_truncated: int  # Rows whose completion was cut at max_length
    seconds: float  # This trial's share of its group's wall time, by tokens
    peak_memory_bytes: int  # Peak of the process while the group trained
    losses: tuple[LossPoint, ...]
    weights_sha256: str  # Hash of the stored adapter or full model weights
    penalties: tuple[PenaltyPoint, ...] = ()  # By step, for a trial with replay or KL to the base
    rewards: tuple[dict[str, float], ...] = ()
    """Figures of the judged answers, by step. The loss then means nothing."""
    num_replay_tokens: int = 0  # The part of ``num_tokens`` in replayed rows
    loss_scale_halvings: int = 0  # In float16, by gradients not finite
    best_step: int | None = None  # Only with early stopping: the step whose weights were kept


VariantKind = Literal["scale", "truncated"]


@dataclass(frozen=True, slots=True)
class Variant:
    """A change of a trained trial's update W - W0 that needs no training, scored as a model.

    ``scale``: the whole update times ``strength``. ``truncated``: every matrix cut to the rank
    ``strength`` with the least error.
    """

    trial_id: str
    kind: VariantKind
    strength: float

    def __str__(self) -> str:
        """Return the name of the variant's adapter."""
        return f"{self.trial_id}@{variant_label(self)}"


ScoredModel = str | Variant
"""A model that is scored: ``base``, a trial by its id, or a variant of a trial."""


def trial_of(model: ScoredModel) -> str:
    """Return the id of a model's trial, or ``base``."""
    return model.trial_id if isinstance(model, Variant) else model


def variant_label(model: ScoredModel) -> str:
    """Return a variant's kind and strength, such as ``scale=0.5``; empty for other models."""
    return f"{model.kind}={model.strength:.12g}" if isinstance(model, Variant) else ""
