"""What the data and the base say about the rank before training, and how often that was right."""

from typing import Literal

from rankscope.records.record import Record

Predictor = Literal[
    "capacity",
    "gradient_effective_rank",
    "gradient_stable_rank",
    "input_variance",
    "base_score",
    "truncation_screen",
    "always_32",
]


class PredictorFeatures(Record):
    """Of one training task and the base, on some of its rows; nothing was trained."""

    task: str
    num_rows: int
    num_label_tokens: int
    """Label tokens of all training rows."""
    lora_parameters: dict[int, int]
    """Rank -> trainable parameters."""
    rows_seen: int
    """Rows that the gradient and the inputs were taken from."""
    base_loss: float
    """Mean over their label tokens, nats."""
    base_score: float
    """On the first items of the validation split."""
    base_items: int
    chance: float | None
    gradient_effective_rank: float | None
    """Of the loss gradient of the target matrices, exp of the entropy of sigma / sum(sigma), mean
    over matrices; None where the base is held in 4 bits."""
    gradient_stable_rank: float | None
    """|G|_F^2 / sigma_1^2, mean over matrices."""
    input_variance: dict[int, float]
    """Rank -> share of the variance of a target's inputs in as many directions, mean over targets
    (what EVA starts from)."""


class RankPrediction(Record):
    """One predictor's rank among those asked about, and the figures it comes from."""

    predictor: Predictor
    rank: int
    why: str
    """One sentence."""


class TaskPrediction(Record):
    """Of one training task."""

    task: str
    ranks: tuple[int, ...]
    features: PredictorFeatures
    predictions: tuple[RankPrediction, ...]


class RankScore(Record):
    """One rank in a curve over ranks."""

    rank: int
    trained: float | None
    """In-domain score of what was trained at it, test split, mean over seeds, at the learning
    rate chosen on the validation split."""
    truncated: float | None = None
    """The highest rank's adapter truncated to it, test split, the same seeds' mean."""
    truncated_validation: float | None = None
    """The same on the validation split."""
    truncated_forgetting: float | None = None
    """Base minus truncated, mean over retention tasks, test split."""
    trained_forgetting: float | None = None


class BacktestTask(Record):
    """What was predicted for one training task of a finished study, and what came out."""

    study: str
    task: str
    prediction: TaskPrediction
    curve: tuple[RankScore, ...]
    best_rank: int
    """The smallest whose trained score is within the study's margin of the best."""
    screened_rank: int | None = None
    """The highest rank, whose adapter the truncation screen cut; None where there is none."""


class PredictorScore(Record):
    """One predictor over all tasks of a backtest."""

    predictor: Predictor
    tasks: int
    right: int
    """It named the best rank."""
    doublings: float
    """Mean |log2(named / best)|."""
    regret: float
    """Mean of the best rank's score minus the named rank's, floored at 0, shares of 1 or nats."""


class Backtest(Record):
    """Predictors against finished studies."""

    tasks: tuple[BacktestTask, ...]
    scores: tuple[PredictorScore, ...]
    skipped: tuple[str, ...] = ()
    """Folders of studies without finished LoRA trials at two ranks of one task."""
