"""The study file as typed, validated models: one class per section.

Defaults are the protocol of arXiv 2512.15634. Every model forbids unknown keys and takes values as
they are (``rank: "8"`` is not a rank). Each field is followed by a sentence with its unit or
meaning; the published JSON schema (docs/study.schema.json) is generated from these classes.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from rankscope.config.analyze import AnalyzeConfig
from rankscope.config.arm import ArmConfig, Schedule
from rankscope.config.section import (
    HubId,
    Name,
    PathText,
    PlainText,
    Section,
    as_list,
    matching,
    shown,
)
from rankscope.config.task import Scorer, TaskConfig

__all__ = ["Scorer", "StudyConfig", "TaskConfig"]

DEVICE_PATTERN = r"^(auto|cpu|mps|cuda(:[0-9]{1,3})?)$"
MAX_SEED = 2**32 - 1
"""Largest seed that NumPy's and PyTorch's generators both take."""
MAX_TRIALS = 10_000
"""A larger grid is a slip of the pen, and would fill memory before ``plan`` could say so."""


class ModelConfig(Section):
    """The base model: exactly one of ``pocket``, ``path``, ``hub`` and ``cached``."""

    pocket: bool = False
    """Use the embedded pocket model."""
    path: PathText = None
    """Local Hugging Face folder with safetensors weights."""
    hub: HubId | None = None
    """Hub id, such as ``Qwen/Qwen2.5-7B-Instruct``."""
    cached: Name | None = None
    """A model that ``rankscope fetch`` put into the cache, such as ``smollm2-135m``."""
    revision: PlainText | None = None
    """Branch, tag or commit on the hub; only with ``hub``."""
    prompt_format: Literal["auto", "chat", "plain"] = "auto"
    """``chat`` renders the tokenizer's chat template; ``auto`` does so where there is one."""

    @classmethod
    def from_short_form(cls, text: str) -> dict[str, Any]:
        """``pocket``, ``./folder``, ``owner/name`` (hub) or a name known to ``rankscope fetch``."""
        if text == "pocket":
            return {"pocket": True}
        if text.startswith((".", "/", "~")):
            return {"path": text}
        return {"hub": text} if "/" in text else {"cached": text}

    @model_validator(mode="after")
    def one_source(self) -> Self:
        """Exactly one place to take the model from."""
        given = [self.pocket, self.path is not None, self.hub is not None, self.cached is not None]
        if sum(given) != 1:
            raise ValueError("give exactly one of 'pocket: true', 'path', 'hub' and 'cached'")
        if self.revision is not None and self.hub is None:
            raise ValueError("'revision' needs 'hub'")
        return self

    @property
    def label(self) -> str:
        """What reports call this model."""
        return "pocket" if self.pocket else (self.hub or self.cached or str(self.path))


Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


def checked_interval(value: Any) -> Any:
    """Every so many optimizer steps, or every epoch."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if value is None or value == "epoch" or is_count:
        return value
    raise ValueError(f"found {shown(value)}, expected a number of optimizer steps, or 'epoch'")


Interval = Annotated[
    int | Literal["epoch"] | None,
    BeforeValidator(
        checked_interval,
        json_schema_input_type=Annotated[int, Field(ge=1)] | Literal["epoch"] | None,
    ),
]


class TrainConfig(Section):
    """The training protocol; an arm may set some of it for itself, see ``arm.OVERRIDES``."""

    epochs: float = Field(3.0, gt=0)
    """Passes over the training rows; ``max_steps`` and ``tokens`` win over it."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps."""
    tokens: int | None = Field(None, ge=1)
    """Training tokens, by the mean length of a row; instead of ``max_steps``."""
    batch_size: int = Field(2, ge=1)
    """Rows per micro-batch and adapter."""
    gradient_accumulation: int = Field(4, ge=1)
    """Micro-batches per optimizer step."""
    batch_tokens: int = Field(4096, ge=64)
    """Most tokens in one forward pass; a step's rows are joined or cut to it, whatever the batch
    size: it moves memory and speed, and results by rounding alone."""
    schedule: Schedule = "linear"
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
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """Of full fine-tuning: ``adamw8bit`` keeps its moments in 8 bits; adapters have AdamW."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same numbers."""
    evaluate_every: Interval = None
    """Score each trial after every so many optimizer steps, or after every ``epoch``."""
    evaluate_items: int = Field(100, ge=1)
    """Items of a task's validation split scored then, the first of the seeded order."""
    checkpoint_every: Interval = None
    """Keep each trial's weights after every so many optimizer steps, or after every ``epoch``."""
    checkpoint_seconds: float = Field(120.0, gt=0)
    """A group writes its resumable state at most this often, seconds."""

    @model_validator(mode="after")
    def one_length(self) -> Self:
        """``tokens`` and ``max_steps`` say the same thing twice."""
        if self.tokens is not None and self.max_steps is not None:
            raise ValueError("'tokens' and 'max_steps' both say how long to train: give one")
        return self


Scale = Annotated[float, Field(gt=0, lt=1)]
IntruderScale = Annotated[float, Field(ge=0, lt=1)]


class EvaluateConfig(Section):
    """What each trial and the base are scored on, besides the training tasks themselves."""

    cross_domain: list[TaskConfig] = []
    """Further tasks; every training task is scored on every other in any case."""
    retention: list[TaskConfig] = []
    """Tasks whose fall against the base is forgetting."""
    max_items: int | None = Field(None, ge=1)
    """At most so many items per task and split, the first of the seeded order."""
    scales: Annotated[
        list[Scale], BeforeValidator(as_list, json_schema_input_type=Scale | list[Scale])
    ] = []
    """Every trial is scored once more with its whole update scaled by each: W0 + scale (W - W0)."""
    layer_scales: Annotated[
        list[Scale], BeforeValidator(as_list, json_schema_input_type=Scale | list[Scale])
    ] = []
    """The same with a scale that rises linearly from this one in the first layer to 1 in the last
    (LiNeS)."""
    intruder_scales: Annotated[
        list[IntruderScale],
        BeforeValidator(as_list, json_schema_input_type=IntruderScale | list[IntruderScale]),
    ] = []
    """The same with the intruder dimensions alone scaled by each, 0 removing them; beside it a
    control, the whole update of every matrix scaled to the same norm."""
    batch_tokens: int = Field(4096, ge=64)
    """Tokens per forward pass; recorded, since it can move the last digits."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest generated answer, tokens."""
    too_long: Literal["refuse", "truncate_left"] = "refuse"
    """Items longer than the model's context: an error, or cut at their beginning and counted."""


def checked_memory(value: Any) -> Any:
    """Bytes, or a number with a unit: ``12GiB`` is 12 x 2^30, ``12 GB`` is 12 x 10^9."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]i?B)", value.strip())
    if match is None:
        raise ValueError(f"memory_limit {shown(value)}: expected bytes, or a text such as '12GiB'")
    power = 1 + "KMGT".index(match[2][0])
    return round(float(match[1]) * (1024 if "i" in match[2] else 1000) ** power)


def checked_share(value: Any) -> Any:
    """A share of 1, or a text that says its unit: ``2 points`` and ``2 %`` are 0.02."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(points?|%|nats?)", value.strip())
    if match is None:
        raise ValueError(
            f"found {shown(value)}, expected a share of 1 such as 0.02, or a text such as "
            "'2 points', '2 %' or, for log probabilities, '0.02 nats'"
        )
    number = float(match[1])
    return number if match[2].startswith("nat") else round(number / 100, 12)


class ObjectiveConfig(Section):
    """What the recommendation trades off; weights are relative."""

    in_domain: float = Field(1.0, ge=0)
    """Weight of the gain on the training task."""
    retention: float = Field(1.0, ge=0)
    """Weight of what was forgotten: the mean fall over the retention tasks."""
    cost: float = Field(0.0, ge=0)
    """Weight of what training and storing the arm costs."""
    margin: Annotated[
        float,
        BeforeValidator(checked_share, json_schema_input_type=float | str),
        Field(gt=0, lt=1),
    ] = 0.02
    """Two arms are equally good when their scores differ by less: a share of 1, or ``2 points``."""
    max_forgetting: Annotated[
        float | None,
        BeforeValidator(checked_share, json_schema_input_type=float | str | None),
        Field(ge=0, le=1),
    ] = None
    """Arms that lose more on retention than this are not recommended: a share of 1, or a text such
    as ``2 points``."""

    @model_validator(mode="after")
    def something_to_choose_by(self) -> Self:
        """Weights of nothing choose nothing."""
        if self.in_domain == 0 and self.retention == 0:
            raise ValueError(
                "'in_domain' and 'retention' are both 0: nothing is left to choose an arm by. "
                "Give one of them a weight above 0"
            )
        return self


class StudyConfig(Section):
    """One study file."""

    name: Name
    """Name of the study in reports."""
    model: ModelConfig
    """The base model; a text is a short form: ``pocket``, ``./folder``, ``owner/name``."""
    data_dir: PathText = None
    """Folder with ``<task>/{train,validation,test}.jsonl`` for the named tasks; else the hub."""
    tasks: list[TaskConfig] = Field(min_length=1)
    """Training tasks: every arm is trained on each."""
    arms: list[ArmConfig] = Field(min_length=1)
    """Methods with their grids; points that two arms share are one trial."""
    seeds: Annotated[
        list[Seed],
        BeforeValidator(as_list, json_schema_input_type=Seed | list[Seed]),
        Field(min_length=1),
    ] = [0, 1, 2]
    """One trial per seed: row order and adapter initialization."""
    train: TrainConfig = TrainConfig()
    """The training protocol."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What each trial and the base are scored on."""
    analyze: AnalyzeConfig = AnalyzeConfig()
    """The analyses of each trial's weights."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """What the recommendation trades off."""
    device: Annotated[
        str, AfterValidator(matching(DEVICE_PATTERN, "auto, cpu, mps, cuda or cuda:0"))
    ] = "auto"
    """``auto`` takes CUDA, then MPS, then CPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The base's dtype; adapters and optimizer state are always float32."""
    quantize: Literal["none", "4bit"] = "none"
    """``4bit`` holds the base in 4 bits (CUDA alone); adapters are trained as ever."""
    max_group_size: int | None = Field(None, ge=1)
    """Most LoRA trials trained together; by default 16."""
    memory_limit: Annotated[
        int | None,
        BeforeValidator(checked_memory, json_schema_input_type=int | str | None),
        Field(ge=1),
    ] = None
    """Memory a group may take, bytes or a text such as ``12GiB``; by default the device's."""
    data_seed: Seed = 0
    """Seed of the splits and of ``max_items``; not a trial axis."""

    @model_validator(mode="after")
    def distinct_tasks(self) -> Self:
        """A name stands for one training task, and for one description of a task."""
        names = [task.name for task in self.tasks]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"training task {repeated[0]!r} stands twice: give each its own name")
        defined = {task.name: task for task in self.tasks}
        for task in [*self.evaluate.cross_domain, *self.evaluate.retention]:
            first = defined.setdefault(task.name, task)
            if task not in (first, TaskConfig(name=task.name)):
                raise ValueError(
                    f"task {task.name!r} is described twice, differently: describe it where it "
                    "first stands and give its name alone after that, or choose another name"
                )
        return self

    @model_validator(mode="after")
    def known_parts(self) -> Self:
        """A joined task is trained on, and made of plain tasks; early stopping has its points."""
        joined = {task.name for task in self.tasks if task.mixture}
        for task in [*self.evaluate.cross_domain, *self.evaluate.retention]:
            if task.mixture:
                raise ValueError(f"task {task.name!r}: 'mixture' is for training tasks, in 'tasks'")
        for task in self.tasks:
            if nested := sorted(joined & set(task.mixture)):
                raise ValueError(f"task {task.name!r} joins {nested[0]!r}, which is joined itself")
            for retained in self.evaluate.retention:
                if retained.name in task.mixture:
                    raise ValueError(
                        f"retention task {retained.name!r} is a part of the training task "
                        f"{task.name!r}, which cannot show what training on it forgets: name "
                        "another one, or score it under 'evaluate.cross_domain'"
                    )
        trained = {part: t.name for t in self.tasks for part in (t.name, *t.mixture)}
        for arm in self.arms:
            for replay in arm.replay or ():
                if replay.share and replay.task in trained:
                    raise ValueError(
                        f"replay of {replay.task!r}: the arm trains on its rows as training task "
                        f"{trained[replay.task]!r}; replay those of a task that is not trained on"
                    )
            if arm.early_stop and self.train.evaluate_every is None:
                raise ValueError(
                    "'early_stop' looks at the points of 'train.evaluate_every': set it, for "
                    "example to 20 (optimizer steps) or to 'epoch'"
                )
        return self

    @model_validator(mode="after")
    def known_head_tasks(self) -> Self:
        """Heads are looked at on tasks that the study scores."""
        heads, known = self.analyze.heads, self.evaluation_tasks()
        for name in [*([] if heads.task is None else [heads.task]), *heads.ablate]:
            if name not in known:
                raise ValueError(
                    f"analyze.heads names task {name!r}, which the study does not have: expected "
                    f"one of {', '.join(known)}"
                )
        return self

    @model_validator(mode="after")
    def bounded_grid(self) -> Self:
        """The grid stays within ``MAX_TRIALS``."""
        trials = self.num_trials_as_written()
        if trials > MAX_TRIALS:
            raise ValueError(
                f"the grid asks for {trials:,} trials: expected at most {MAX_TRIALS:,}"
            )
        return self

    @model_validator(mode="after")
    def measurable_limits(self) -> Self:
        """A limit on forgetting needs something that measures it, for every training task."""
        if self.objective.max_forgetting is None:
            return self
        joins = {task.name: {task.name, *task.mixture} for task in self.tasks}
        unmeasured = [
            name
            for name, own in joins.items()
            if not any(own.isdisjoint(joins.get(t.name, {t.name})) for t in self.evaluate.retention)
        ]
        if unmeasured:
            raise ValueError(
                f"objective.max_forgetting {self.objective.max_forgetting:g} cannot be kept: no "
                f"retention task measures what training on {unmeasured[0]!r} forgets. Name one "
                "under 'evaluate.retention', or remove the limit"
            )
        return self

    def num_trials_as_written(self) -> int:
        """Trials as written, repeated values counted: tasks x arm points x seeds."""
        return len(self.tasks) * sum(arm.num_points() for arm in self.arms) * len(self.seeds)

    def evaluation_tasks(self) -> dict[str, TaskConfig]:
        """Every task that is scored, by name: training tasks first, then further ones."""
        tasks: dict[str, TaskConfig] = {}
        for task in [*self.tasks, *self.evaluate.cross_domain, *self.evaluate.retention]:
            tasks.setdefault(task.name, task)
        return tasks
