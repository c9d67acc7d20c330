"""Predicted ranks, and how they compare with the ranks that finished studies found best."""

from rankscope.records.record import Record


class PredictorFeatures(Record):
    task: str
    num_rows: int
    num_label_tokens: int  # Label tokens of all training rows
    lora_parameters: dict[int, int]  # Rank -> trainable parameters
    rows_seen: int  # Rows used for the gradient and the inputs
    base_loss: float  # Mean over their label tokens, nats
    base_score: float  # On the first items of the validation split
    base_items: int
    chance: float | None
    gradient_effective_rank: float | None  # Mean over target matrices; None in 4 bits
    gradient_stable_rank: float | None  # |G|_F^2 / sigma_1^2, mean over matrices
    input_variance: dict[int, float]  # Rank -> share of it in its leading directions, as for EVA


class RankPrediction(Record):
    predictor: str  # Of ``predict.predictors.PREDICTORS``
    rank: int | None  # None: it cannot tell
    why: str  # One sentence
    scores: dict[int, float] = {}  # Rank -> expected validation score, if it orders the ranks


class TaskPrediction(Record):
    task: str
    ranks: tuple[int, ...]
    features: PredictorFeatures
    predictions: tuple[RankPrediction, ...]


class BacktestTask(Record):
    """One training task of a finished study, and what each predictor said of it."""

    study: str
    family: str  # Tasks of one family count as one: all of the pocket model, repeats of one task
    model: str
    model_sha256: str
    created: str  # When the study began, ISO 8601, UTC
    rankscope: str  # Version that trained it
    seeds: int  # Fewest trials of a rank
    items: int  # Of the test split
    margin: float
    prediction: TaskPrediction
    curve: dict[int, float]  # Rank -> test score at its chosen learning rate, mean over seeds
    best_rank: int  # The smallest whose test score is within the margin of the highest


class PredictorScore(Record):
    """Means over families of the means over their tasks."""

    predictor: str
    tasks: int  # On which it named a rank
    silent: int  # On which it could not tell
    right: int  # Tasks on which it named the best rank
    doublings: float | None  # Mean |log2(named / best)|
    lost: float | None  # Highest test score minus that of the named rank, shares of 1 or nats
    tau: float | None  # Kendall's tau-b between its order of the ranks and their test scores
    p_better: float | None = None
    """Probability that it loses less than the baseline it is closest to, in the mean over families
    like these; None of a baseline, and with fewer than two families."""


class Backtest(Record):
    tasks: tuple[BacktestTask, ...]
    skipped: tuple[str, ...] = ()  # Without a task whose ranks, two or more, were all tested
