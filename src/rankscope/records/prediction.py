"""Ranks predicted from the data and the base before training, and how often they were right."""

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
    predictor: Predictor
    rank: int
    why: str  # One sentence


class TaskPrediction(Record):
    task: str
    ranks: tuple[int, ...]
    features: PredictorFeatures
    predictions: tuple[RankPrediction, ...]


class RankScore(Record):
    rank: int
    trained: float | None  # In-domain test score, mean over seeds, at the chosen learning rate
    truncated: float | None = None  # Of the highest rank's adapter cut to this rank, same seeds
    truncated_validation: float | None = None  # The same on the validation split
    truncated_forgetting: float | None = None  # Mean over retention tasks, test split
    trained_forgetting: float | None = None


class BacktestTask(Record):
    study: str
    task: str
    prediction: TaskPrediction
    curve: tuple[RankScore, ...]
    best_rank: int  # The smallest rank whose trained score is within the study's margin of the best
    screened_rank: int | None = None  # The highest, whose adapter the truncation screen cuts


class PredictorScore(Record):
    predictor: Predictor
    tasks: int
    right: int  # Tasks on which it named the best rank
    doublings: float  # Mean |log2(named / best)|
    regret: float  # Mean loss in score against the best rank, at least 0, shares of 1 or nats


class Backtest(Record):
    tasks: tuple[BacktestTask, ...]
    scores: tuple[PredictorScore, ...]
    skipped: tuple[str, ...] = ()  # Studies without LoRA trials at two ranks of one task
