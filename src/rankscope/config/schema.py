"""The study file as typed, validated models: one class per section, defaults as in arXiv 2512.15634.

Every model forbids unknown keys. Each field is followed by a sentence with its unit or meaning;
the published JSON schema (``rankscope init --schema``) is generated from these classes.
"""

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

Method = Literal["lora", "rslora", "full"]
Scorer = Literal["option_text", "option_letter", "number", "exact_match", "loss"]

# A name becomes a path component and a label in reports, so it may hold nothing that could leave
# the study's directory or confuse a terminal.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
NAME_RULE = "1 to 64 letters, digits, '_', '-' or '.', starting with a letter or digit"

TARGET_GROUPS: dict[str, tuple[str, ...]] = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
    "all-linear": (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ),
}


def as_list(value: Any) -> Any:
    """A single grid value stands for a list of one."""
    return value if isinstance(value, list) else [value]


def distinct(values: list[Any]) -> list[Any]:
    """Equal grid points are one point; order is kept."""
    seen: list[Any] = []
    for value in values:
        if value not in seen:
            seen.append(value)
    return seen


def checked_name(value: str) -> str:
    """Refuse a name that is not safe as a path component."""
    if not re.fullmatch(NAME_PATTERN, value):
        shown = value if len(value) <= 40 else value[:37] + "..."
        raise ValueError(f"{shown!r} is not a usable name: expected {NAME_RULE}")
    return value


Name = Annotated[str, AfterValidator(checked_name)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors and values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """The base model: exactly one of ``pocket``, a local folder or a hub id."""

    pocket: bool = False
    """Use the embedded pocket model."""
    path: str | None = None
    """Local Hugging Face folder with safetensors weights."""
    hub: str | None = None
    """Hub id, such as ``Qwen/Qwen2.5-7B-Instruct``."""
    revision: str | None = None
    """Branch, tag or commit on the hub; only with ``hub``."""
    prompt_format: Literal["auto", "chat", "plain"] = "auto"
    """``chat`` renders the tokenizer's chat template; ``auto`` does so where there is one."""

    @model_validator(mode="before")
    @classmethod
    def from_text(cls, value: Any) -> Any:
        """``model: pocket``, ``model: ./folder`` and ``model: owner/name`` are short forms."""
        if not isinstance(value, str):
            return value
        if value == "pocket":
            return {"pocket": True}
        if value.startswith((".", "/", "~")):
            return {"path": value}
        return {"hub": value}

    @model_validator(mode="after")
    def one_source(self) -> Self:
        if sum([self.pocket, self.path is not None, self.hub is not None]) != 1:
            raise ValueError("give exactly one of 'pocket: true', 'path' and 'hub'")
        if self.revision is not None and self.hub is None:
            raise ValueError("'revision' needs 'hub'")
        return self

    @property
    def label(self) -> str:
        """What reports call this model."""
        return "pocket" if self.pocket else (self.hub or str(self.path))


class TaskConfig(Section):
    """A data set with its prompt and scorer: a named task, or the user's own files."""

    name: Name
    """A named task (``gsm8k``, ``arc_easy``, ...) or a new name for one's own data."""
    train: str | None = None
    """JSONL or Parquet file with training rows (own data)."""
    selection: str | None = None
    """File with the rows that choose; cut from ``train`` where absent."""
    report: str | None = None
    """File with the rows that are reported; cut from ``train`` where absent."""
    hub: str | None = None
    """Hub data set id (own data)."""
    revision: str | None = None
    """Revision of the hub data set."""
    prompt: str | None = None
    """Prompt template over a row's fields, such as ``"Question: {question}\\nAnswer:"``."""
    scorer: Scorer | None = None
    """How answers are scored; by default what the rows allow."""
    max_train_rows: int | None = Field(None, ge=1)
    """Use only the first rows of the seeded order."""

    @model_validator(mode="before")
    @classmethod
    def from_text(cls, value: Any) -> Any:
        """``- arc_easy`` stands for ``- {name: arc_easy}``."""
        return {"name": value} if isinstance(value, str) else value


Rank = Annotated[int, Field(ge=1, strict=True)]
LearningRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def checked_alpha(value: Any) -> Any:
    """Alpha is a positive number or a multiple of the rank, such as ``2r``."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)?r", value.strip())
        if match is None or (match[1] is not None and float(match[1]) <= 0):
            raise ValueError(f"alpha {value!r}: expected a positive number or a multiple like '2r'")
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"alpha {value!r}: expected a positive number or a multiple like '2r'")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"alpha {value!r}: expected a positive number")
    return float(value)


Alpha = Annotated[float | str, BeforeValidator(checked_alpha)]
Targets = str | list[str]


class ArmConfig(Section):
    """One method with its hyper-parameter lists; the grid is their product."""

    method: Method
    """``lora``, ``rslora`` (scaling alpha / sqrt(rank)) or ``full`` fine-tuning."""
    rank: Annotated[list[Rank], BeforeValidator(as_list), AfterValidator(distinct)] = []
    """LoRA rank r, one or more."""
    alpha: Annotated[list[Alpha], BeforeValidator(as_list), AfterValidator(distinct)] = ["2r"]
    """LoRA alpha: a number, or a multiple of the rank such as ``2r``."""
    lr: Annotated[
        list[LearningRate], BeforeValidator(as_list), AfterValidator(distinct), Field(min_length=1)
    ]
    """Peak learning rate; always explicit, since a rank sweep at one rate measures the rate."""
    targets: Targets = "attention"
    """``attention``, ``mlp``, ``all-linear`` or a list of module names."""
    dropout: Annotated[
        list[Annotated[float, Field(ge=0, lt=1)]],
        BeforeValidator(as_list),
        AfterValidator(distinct),
    ] = [0.0]
    """Dropout on the adapter's input, probability."""

    @model_validator(mode="after")
    def fits_method(self) -> Self:
        if self.method == "full":
            given = sorted(
                {"rank", "alpha", "targets", "dropout"} & self.model_fields_set
            )
            if given:
                raise ValueError(f"method 'full' trains every weight: remove {', '.join(given)}")
        elif not self.rank:
            raise ValueError(f"method {self.method!r} needs 'rank'")
        return self

    @field_validator("targets")
    @classmethod
    def known_group(cls, value: Targets) -> Targets:
        if isinstance(value, str) and value not in TARGET_GROUPS:
            names = ", ".join(TARGET_GROUPS)
            raise ValueError(f"targets {value!r}: expected one of {names}, or a list of names")
        if isinstance(value, list) and not value:
            raise ValueError("targets is empty: name at least one module")
        return value

    def target_names(self) -> tuple[str, ...]:
        """The module names that receive adapters, sorted."""
        if isinstance(self.targets, str):
            return TARGET_GROUPS[self.targets]
        return tuple(sorted(set(self.targets)))


class TrainConfig(Section):
    """The training protocol, the same for every arm."""

    epochs: float = Field(3.0, gt=0)
    """Passes over the training rows; ``max_steps`` wins where both are given."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(2, ge=1)
    """Rows per micro-batch and adapter."""
    gradient_accumulation: int = Field(4, ge=1)
    """Micro-batches per optimizer step."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the learning rate after warm-up."""
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from zero."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient norm at which an adapter's gradient is clipped."""
    max_length: int = Field(1024, ge=8)
    """Tokens per row; longer prompts are dropped, longer completions cut, both counted."""
    labels: Literal["completion", "all"] = "completion"
    """Which tokens carry loss."""
    checkpoint_seconds: float = Field(120.0, gt=0)
    """A pack writes its resumable state at most this often, seconds."""


class EvaluateConfig(Section):
    """What each trial and the base are scored on, besides the training tasks themselves."""

    cross_domain: list[TaskConfig] = []
    """Further tasks; every training task is scored on every other in any case."""
    retention: list[TaskConfig] = []
    """Tasks whose fall against the base is forgetting."""
    max_items: int | None = Field(None, ge=1)
    """At most so many items per task and split, the first of the seeded order."""
    batch_tokens: int = Field(4096, ge=64)
    """Tokens per forward pass; recorded, since it can move the last digits."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest generated answer, tokens."""


class SpectraConfig(Section):
    """Weight spectra of every trial."""

    enabled: bool = True
    top_k: int | None = Field(None, ge=1)
    """Singular vectors compared; by default min(500, smaller dimension / 4)."""
    intruder_k: int = Field(10, ge=1)
    """Leading vectors of the tuned matrix examined for intruders."""
    intruder_epsilon: float = Field(0.5, gt=0, lt=1)
    """Largest |cosine| to any base vector below which a vector is an intruder."""


class ObjectiveConfig(Section):
    """What the recommendation trades off; weights are relative."""

    in_domain: float = Field(1.0, ge=0)
    retention: float = Field(1.0, ge=0)
    cost: float = Field(0.0, ge=0)
    margin: float = Field(0.02, gt=0, lt=1)
    """Two arms are equally good when their scores differ by less, as a share of 1."""
    max_forgetting: float | None = Field(None, ge=0, le=1)
    """Arms that lose more on retention than this are not recommended, as a share of 1."""


class StudyConfig(Section):
    """One study file."""

    name: Name
    model: ModelConfig
    data_dir: str | None = None
    """Folder with ``<task>/{train,validation,test}.jsonl`` for the named tasks; else the hub."""
    tasks: list[TaskConfig] = Field(min_length=1)
    """Training tasks: every arm is trained on each."""
    arms: list[ArmConfig] = Field(min_length=1)
    seeds: Annotated[
        list[Annotated[int, Field(ge=0, strict=True)]],
        BeforeValidator(as_list),
        AfterValidator(distinct),
        Field(min_length=1),
    ] = [0, 1, 2]
    """One trial per seed: row order and adapter initialization."""
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    spectra: SpectraConfig = SpectraConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    device: str = "auto"
    """``auto`` takes CUDA, then MPS, then CPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The base's dtype; adapters and optimizer state are always float32."""
    max_pack: int | None = Field(None, ge=1)
    """Most LoRA trials trained together; by default what memory allows."""
    data_seed: int = Field(0, ge=0)
    """Seed of the splits and of ``max_items``; not a trial axis."""

    @model_validator(mode="after")
    def distinct_tasks(self) -> Self:
        names = [task.name for task in self.tasks]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"training task {repeated[0]!r} stands twice: give each its own name")
        return self

    def evaluation_tasks(self) -> dict[str, TaskConfig]:
        """Every task that is scored, by name: training tasks first, then further ones."""
        tasks: dict[str, TaskConfig] = {}
        for task in [*self.tasks, *self.evaluate.cross_domain, *self.evaluate.retention]:
            tasks.setdefault(task.name, task)
        return tasks
