"""The study file as typed, validated models, one class per section.

The defaults are the protocol of arXiv 2512.15634. Unknown keys are errors, and values are not
converted (``rank: "8"`` is not a rank). The docstring of a field gives its meaning and unit; the
published JSON schema (docs/study.schema.json) is generated from these classes.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, ByteSize, Field, create_model, model_validator

from rankscope.analyses import all_analyses
from rankscope.config.arm import ArmConfig, ScheduleName, TrainedBy
from rankscope.config.objective import Budget, ObjectiveConfig
from rankscope.config.section import (
    ConfigSection,
    HubId,
    Interval,
    Name,
    PathText,
    PlainText,
    RegisteredName,
    Seed,
    Seeds,
    Unfit,
    matches,
    short_repr,
)
from rankscope.config.task import TaskConfig
from rankscope.evaluate.engines import AUTO, OWN, all_engines
from rankscope.models.kernels import PLAIN, all_kernels
from rankscope.run.executors import ExecutorChoice, executor_section

if TYPE_CHECKING:
    ExecutorConfig = ExecutorChoice
else:
    ExecutorConfig = executor_section()

DEVICE_PATTERN = r"^(auto|cpu|mps|cuda(:[0-9]{1,3})?)$"
MAX_TRIALS = 10_000
"""Limit of a grid: a larger one is a mistake, and would fill memory before ``plan`` reports it."""


class ModelConfig(ConfigSection):
    """The base model: exactly one of ``pocket``, ``path`` and ``hub``."""

    pocket: bool = False
    """Use the embedded pocket model."""
    path: PathText = None
    """Local Hugging Face folder with safetensors weights."""
    hub: HubId | None = None
    """Hub id, such as ``Qwen/Qwen2.5-7B-Instruct``, or one without an owner."""
    revision: PlainText | None = None
    """Branch, tag or commit on the hub; only with ``hub``."""
    prompt_format: Literal["auto", "chat", "plain"] = "auto"
    """``chat`` renders the tokenizer's chat template, ``plain`` does not. ``auto`` is ``chat`` if
    there is a template."""

    @classmethod
    def from_short_form(cls, text: str) -> dict[str, Any]:
        """Expand ``pocket``, a folder, or ``owner/name`` on the hub."""
        if text == "pocket":
            return {"pocket": True}
        is_path = text.startswith((".", "/", "~")) or "/" not in text
        return {"path" if is_path else "hub": text}

    @model_validator(mode="after")
    def check_one_source(self) -> Self:
        given = [self.pocket, self.path is not None, self.hub is not None]
        if sum(given) != 1:
            rule = "exactly one of 'pocket: true', 'path' and 'hub'"
            raise Unfit(f"{sum(given)} models", rule)
        if self.revision is not None and self.hub is None:
            raise Unfit("'revision' alone", "'hub' beside it")
        return self

    @property
    def label(self) -> str:
        return "pocket" if self.pocket else (self.hub or str(self.path))


class TrainConfig(ConfigSection):
    """The training protocol; an arm may override the fields in ``arm.TRAIN_OVERRIDES``."""

    objective: TrainedBy = "sft"
    """The loss. ``sft`` trains on the answers of the rows. Extensions have other objectives, by
    name or as ``{NAME: {KEY: VALUE}}``."""
    epochs: float = Field(3.0, gt=0)
    """Passes over the training rows, fractions allowed; ``max_steps`` and ``tokens`` take
    precedence."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps."""
    tokens: int | None = Field(None, ge=1)
    """Training tokens, counted with the mean length of a row; an alternative to ``max_steps``."""
    batch_size: int = Field(2, ge=1)
    """Rows per micro-batch and adapter."""
    gradient_accumulation: int = Field(4, ge=1)
    """Micro-batches per optimizer step."""
    batch_tokens: int = Field(4096, ge=64)
    """Most tokens in one forward pass; rows of a step are concatenated or divided to fit. Results
    change by rounding alone."""
    schedule: ScheduleName = "linear"
    """Learning rate after warm-up."""
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from zero."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient norm at which an adapter's gradient is clipped."""
    max_length: int = Field(1024, ge=8)
    """Tokens per row; longer prompts are dropped, longer completions cut, both counted."""
    labels: Literal["completion", "all"] = "completion"
    """Tokens that carry loss: those of the completion, or ``all``."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """Optimizer of full fine-tuning. ``adamw8bit`` keeps its state in 8 bits, by bitsandbytes
    (extra ``gpu``). Adapters always use AdamW."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same numbers."""
    devices: int = Field(1, ge=1)
    """GPUs of one machine that train a group together, each with a shard (FSDP2) of the weights
    that train in full, and of a base that one cannot hold. With ``device: cpu`` these are
    processes."""
    lora_implementation: Literal["auto", "loop", "grouped_mm"] = "auto"
    """Order of the adapters' products: ``loop`` takes one adapter after another, ``grouped_mm`` all
    of similar rank at once. ``auto`` is ``grouped_mm`` in bfloat16 on CUDA of compute capability
    9.x and 10.x, else ``loop``. Results change by rounding alone."""
    kernels: Annotated[str, RegisteredName(all_kernels)] = PLAIN
    """Way to compute norms, rotary embeddings and gates of the frozen base: ``plain`` PyTorch, or
    one of an extension. Results change by rounding alone."""
    evaluate_every: Interval = None
    """Evaluate each trial every so many optimizer steps or every ``epoch``, and after the last
    step."""
    evaluate_items: int = Field(400, ge=1)
    """Number of validation items of a task for ``evaluate_every``, from the start of the seeded
    order."""
    checkpoint_every: Interval = None
    """Keep each trial's weights every so many optimizer steps or every ``epoch``, for
    ``export --step N``."""
    checkpoint_seconds: float = Field(120.0, gt=0)
    """Shortest time between two resumable checkpoints of a group, seconds. It is ten times what the
    last one took to write, if that took a second or more. A trained group has none."""

    @model_validator(mode="after")
    def check_one_length(self) -> Self:
        if self.tokens is not None and self.max_steps is not None:
            raise Unfit("'tokens' and 'max_steps'", "one training length", "remove one")
        return self


class _EvaluateFields(ConfigSection):
    """Evaluations of each trial and of the base, besides those on the training tasks."""

    cross_domain: list[TaskConfig] = []
    """Further tasks to evaluate on; every training task is evaluated on every other in any case."""
    retention: list[TaskConfig] = []
    """Tasks that measure forgetting, the drop of a trial's score against the base's."""
    split: Literal["validation", "test"] | None = None
    """Split that the cross-domain tasks of a study without arms are scored on; by default ``test``.
    """
    max_items: int | None = Field(None, ge=1)
    """At most this many items per task and split, the first of the seeded order."""
    batch_tokens: int = Field(4096, ge=64)
    """Tokens per forward pass. The value is recorded, because it can change the last digits."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest generated answer, tokens. ``check`` refuses a limit that most gold answers exceed."""
    too_long: Literal["refuse", "truncate_left"] = "refuse"
    """Treatment of items longer than the model's context: an error that counts them, or a cut at
    the beginning. The cut keeps a begin token and is counted in every record."""
    engine: Annotated[str, RegisteredName(lambda: [AUTO, *all_engines()])] = OWN
    """Writer of the answers: Rankscope itself (``own``), an engine of an extension, or ``auto``:
    such an engine on a GPU if it can write there."""


if TYPE_CHECKING:

    class EvaluateConfig(_EvaluateFields):
        pass

    AnalyzeConfig = ConfigSection

else:
    # The settings of the analyses that are there.
    EvaluateConfig = create_model(
        "EvaluateConfig",
        __base__=(
            *(a.settings_type for a in all_analyses() if a.section == "evaluate"),
            _EvaluateFields,
        ),
        __doc__=_EvaluateFields.__doc__,
    )
    AnalyzeConfig = create_model(
        "AnalyzeConfig",
        __base__=ConfigSection,
        __doc__="What to analyze besides scores.",
        **{
            a.name: (a.settings_type, Field(a.settings_type(), description=type(a).__doc__))
            for a in all_analyses()
            if a.section == "analyze"
        },
    )


class GivenConfig(ConfigSection):
    """A model that the study does not train: a PEFT adapter of the base, a checkpoint of its
    architecture, or scores that another study has stored."""

    path: PathText = None
    """Folder of the model."""
    scores: PathText = None
    """Folder of a finished study, or of ``eval``, that scored the model; an alternative to
    ``path``. No weights are read, so no analysis may be enabled. Base, items, tokenizer and scoring
    settings must be the same."""
    trial: PlainText | None = None
    """Name of the model in that study, or a trial's id; needed if the study has several models."""
    name: PlainText | None = None
    """Name of the model in tables. The default is the folder's name, with as many parents as make
    it unique."""
    force: bool = False
    """Accept an adapter that records another base."""

    @classmethod
    def from_short_form(cls, text: str) -> dict[str, Any]:
        """``- ./adapter`` means ``- {path: ./adapter}``."""
        return {"path": text}

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        if (self.path is None) == (self.scores is None):
            raise Unfit(found="a given model", expected="either its 'path' or its 'scores'")
        if self.trial is not None and self.scores is None:
            raise Unfit(found="'trial' without 'scores'", expected="both, or neither")
        return self

    @property
    def folder(self) -> str:
        return self.path or self.scores or ""


class StudyConfig(ConfigSection):
    """One study file."""

    name: Name
    """Name in reports: 1 to 64 letters, digits, ``_``, ``-``, ``.``."""
    model: ModelConfig
    """The base model; a text is a short form: ``pocket``, ``./folder``, ``owner/name``."""
    data_dir: PathText = None
    """Folder with ``<task>/{train,validation,test}.jsonl`` for named tasks; by default the hub."""
    tasks: list[TaskConfig] = []
    """Training tasks: every arm is trained on each."""
    arms: list[ArmConfig] = []
    """Methods with their grids; a point that two arms share is one trial."""
    given: list[GivenConfig] | None = None
    """Models that were trained elsewhere. They are scored and analyzed like trials."""
    seeds: Seeds = [0, 1, 2]
    """One trial per seed: row order and adapter initialization. With one seed the spread between
    seeds is assumed."""
    strategy: Literal["grid", "search"] = "grid"
    """``grid`` trains every trial. ``search`` trains a few, then round by round those that may be
    the best, until it is sure or its budget is spent."""
    until: float | None = Field(None, gt=0, lt=1)
    """Probability at which ``search`` ends: that its answer is within the margin of the best; by
    default 0.95."""
    budget: Budget = None
    """Limit of ``search``: ``24 trials``, ``5e6 tokens``, ``15 minutes`` or ``12 hours``, or
    several as a mapping. The default is a quarter of the grid, and at least 12 trials a task."""
    train: TrainConfig = TrainConfig()
    """The training protocol."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Evaluation of each trial and of the base."""
    analyze: AnalyzeConfig = AnalyzeConfig()
    """Analyses of the trained models, besides their scores."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """Weights and limits by which an arm is recommended."""
    device: Annotated[
        str, AfterValidator(matches(DEVICE_PATTERN, "auto, cpu, mps, cuda or cuda:0"))
    ] = "auto"
    """``auto`` takes CUDA, then MPS, then CPU. Others are ``cpu``, ``mps``, ``cuda``, ``cuda:1``.
    """
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The base's dtype; adapters and optimizer state are always float32. ``auto`` is bfloat16 if
    the device computes in it, else float16 on CUDA (T4, V100) and float32 elsewhere."""
    quantize: Literal["none", "4bit"] = "none"
    """``4bit`` keeps the base in 4 bits: NF4 and double quantization, by bitsandbytes (extra
    ``gpu``). It needs CUDA and excludes ``full``; adapters train as usual."""
    max_group_size: int | None = Field(None, ge=1)
    """Most adapters trained together; by default 16."""
    memory_limit: ByteSize | None = Field(None, ge=1)
    """Memory available to a group: bytes, or a text such as ``12GiB``. The default is 0.9 of the
    free memory, divided by ``--workers``. Another limit regroups untrained trials alone."""
    data_seed: Seed = 0
    """Seed of the splits and of every row limit; not a trial axis."""
    executor: ExecutorConfig | None = None
    """Where groups run: ``local``, ``ray`` or ``slurm``, or one of these with its settings. No
    result depends on the choice."""

    @model_validator(mode="after")
    def check(self) -> Self:
        """Check that the sections fit together."""
        self._check_there_is_work()
        self._check_task_names()
        self._check_strategy()
        self._check_mixtures()
        self._check_mitigations()
        for analysis in all_analyses():
            analysis.check_config(self)
        if (trials := self.num_trials_as_written()) > MAX_TRIALS:
            raise Unfit(f"{trials:,} trials", f"at most {MAX_TRIALS:,}")
        self._check_forgetting_is_measured()
        return self

    def _check_there_is_work(self) -> None:
        """Check that arms have tasks to train on, and that a study without arms has other work."""
        scored = self.evaluate.cross_domain or self.evaluate.retention
        if not self.arms and (self.tasks or not (self.given or scored)):
            raise Unfit(found="no 'arms'", expected="at least one, or models as 'given'")
        if self.arms and not self.tasks:
            raise Unfit(found="no 'tasks'", expected="at least one, to train the arms on")
        if self.arms and self.evaluate.split is not None:
            found = "'evaluate.split' in a study with arms"
            raise Unfit(found=found, expected="none", do="remove it")
        others = self.described_tasks() if self.arms else [*self.tasks, *self.evaluate.retention]
        for task in others:
            if task.source is not None:
                found = f"{short_repr(task.name)}, {task.source.label}"
                expected = "one with rows to train on or to choose by"
                do = f"score trained adapters with 'rankscope eval --tasks {task.name}'"
                raise Unfit(found=found, expected=expected, do=do)

    def _check_task_names(self) -> None:
        """Check that each name stands for one training task and one description of a task."""
        names = [task.name for task in self.tasks]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise Unfit(f"training task {repeated[0]!r} twice", "it once", "give each its own name")
        defined = {task.name: task for task in self.tasks}
        for task in [*self.evaluate.cross_domain, *self.evaluate.retention]:
            first = defined.setdefault(task.name, task)
            if task not in (first, TaskConfig(name=task.name)):
                found = f"two different descriptions of task {task.name!r}"
                do = "remove one, or choose another name"
                raise Unfit(found, "one, at its first mention, and then its name alone", do)

    def _check_strategy(self) -> None:
        for name in ("budget", "until") if self.strategy == "grid" else ():
            if getattr(self, name) is not None:
                do = f"set 'strategy: search', or '{name}: null'"
                raise Unfit(f"'{name}' with 'strategy: grid'", "a search", do)
        if self.strategy == "search" and not any(arm.trains for arm in self.arms):
            raise Unfit("'strategy: search' without 'arms' that train", "arms to choose among")

    def _check_mixtures(self) -> None:
        """Check that mixtures are training tasks, and that they combine plain tasks."""
        mixtures = {task.name for task in self.tasks if task.mixture}
        for task in [*self.evaluate.cross_domain, *self.evaluate.retention]:
            if task.mixture:
                found = f"the mixture {task.name!r} as a task to evaluate alone"
                raise Unfit(found, "mixtures in 'tasks' alone")
        for task in self.tasks:
            if nested := sorted(mixtures & set(task.mixture)):
                found = f"the mixture {nested[0]!r} in the mixture {task.name!r}"
                raise Unfit(found, "plain tasks")
            if parts := [r.name for r in self.evaluate.retention if r.name in task.mixture]:
                found = f"retention task {parts[0]!r} in the training task {task.name!r}"
                do = "name another, or move it to 'evaluate.cross_domain'"
                raise Unfit(found, "one that is not trained on", do)

    def _check_mitigations(self) -> None:
        trained = {part: task.name for task in self.tasks for part in (task.name, *task.mixture)}
        for arm in self.arms:
            for replay in arm.replay or ():
                if replay.share and replay.task in trained:
                    task = trained[replay.task]
                    found = f"replay of {replay.task!r}, whose rows training task {task!r} has"
                    raise Unfit(found, "a task that is not trained on", "replay another")
            if arm.early_stop and self.train.evaluate_every is None:
                do = "set it, for example to 20 (optimizer steps) or to 'epoch'"
                raise Unfit("'early_stop' without 'train.evaluate_every'", "both", do)

    def _check_forgetting_is_measured(self) -> None:
        """Check that every training task has a retention task if forgetting has a limit."""
        if self.objective.max_forgetting is None:
            return
        parts = {task.name: {task.name, *task.mixture} for task in self.tasks}
        for name, trained in parts.items():
            retention = [parts.get(t.name, {t.name}) for t in self.evaluate.retention]
            if not any(trained.isdisjoint(measured) for measured in retention):
                found = f"a limit without a task that measures what {name!r} forgets"
                do = "add it under 'evaluate.retention', or remove objective.max_forgetting"
                raise Unfit(found, "one that it does not train on", do)

    @property
    def runs_elsewhere(self) -> bool:
        """Whether groups train on machines with other devices than this one's."""
        return self.executor is not None and self.executor.settings.runs_elsewhere

    def num_trials_as_written(self) -> int:
        """Tasks x arm points x seeds, repeated points counted each time."""
        return len(self.tasks) * sum(arm.num_points() for arm in self.arms) * len(self.seeds)

    def objectives(self) -> list[str]:
        """Return the distinct objectives of the training arms, as ``parse_objective`` writes
        them."""
        own = [arm.objective or [self.train.objective] for arm in self.arms if arm.trains]
        return list(dict.fromkeys(text for texts in own for text in texts))

    def described_tasks(self) -> list[TaskConfig]:
        """List the training tasks, then all others. A task named twice is listed twice."""
        return [*self.tasks, *self.evaluate.cross_domain, *self.evaluate.retention]

    def evaluation_tasks(self) -> dict[str, TaskConfig]:
        """Return every evaluated task by name, in the order of ``described_tasks``."""
        tasks: dict[str, TaskConfig] = {}
        for task in self.described_tasks():
            tasks.setdefault(task.name, task)
        return tasks

    def trained_tasks(self) -> list[str]:
        """List the names of the training tasks, and in place of a mixture those of its parts."""
        return [name for task in self.tasks for name in task.mixture or [task.name]]

    def replayed_tasks(self) -> list[str]:
        """Name the tasks whose rows some arm replays, without duplicates."""
        named = (r.task for arm in self.arms for r in arm.replay or () if r.share)
        return list(dict.fromkeys(named))
