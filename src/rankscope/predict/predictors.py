"""Predictors of the best rank: rules on the rows and the base, and screens that train a little.

They are hypotheses: no predictor of the best rank is established. ``backtest`` counts how often
each was right, next to rules that look at nothing, or at the number of rows alone.

A predictor is one ``_Predictor`` in ``PREDICTORS``: its name, what it needs, and a function of the
``Evidence``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from rankscope.advise.statistics.estimates import Comparison, item_draws, weighted_estimate
from rankscope.advise.statistics.resampling import ScoreArray
from rankscope.records import PredictorFeatures, RankPrediction

VARIANCE = 0.9  # Share of the inputs' variance that a sufficient rank explains
ROW_TABLE = ((1_000, 8), (10_000, 16), (100_000, 32))
"""(fewer rows than, rank), else 64: axolotl's documentation."""

ScreenCurve = Mapping[int, Comparison]
"""Rank -> validation scores of its models, one row per seed, beside those of the base."""


@dataclass(frozen=True, slots=True)
class Evidence:
    features: PredictorFeatures
    ranks: tuple[int, ...]  # Ranks to choose from, ascending
    margin: float  # Scores that differ by less count as equal
    curves: Mapping[str, ScreenCurve] = field(default_factory=dict)
    """By name (``screens.measured_curves``)."""


@dataclass(frozen=True, slots=True)
class _Predictor:
    name: str
    needs: str  # Name of a curve in ``Evidence.curves``; empty if rows and base are enough
    predict: Callable[[Evidence], RankPrediction | None]  # None if a feature is missing


def predict_ranks(evidence: Evidence) -> tuple[RankPrediction, ...]:
    """What every predictor says whose needs are met."""
    asked = [p for p in PREDICTORS if not p.needs or p.needs in evidence.curves]
    answers = [(p.name, p.predict(evidence)) for p in asked]
    return tuple(a.model_copy(update={"predictor": name}) for name, a in answers if a is not None)


def _answer(
    rank: int | None, why: str, scores: Mapping[int, float] | None = None
) -> RankPrediction:
    return RankPrediction(predictor="", rank=rank, why=why, scores=dict(scores or {}))


def best_rank(curve: Mapping[int, float], margin: float) -> int:
    """The smallest rank within ``margin`` of the best."""
    best = max(curve.values())
    return min(rank for rank, score in curve.items() if score >= best - margin)


def nearest(ranks: Sequence[int], wanted: float) -> int:
    return min(ranks, key=lambda rank: abs(math.log2(rank / wanted)))


def _capacity(evidence: Evidence) -> RankPrediction:
    """The smallest rank with a parameter for each completion token."""
    tokens, sizes = evidence.features.num_label_tokens, evidence.features.lora_parameters
    rank = min((r for r in evidence.ranks if sizes[r] >= tokens), default=max(evidence.ranks))
    return _answer(rank, f"{tokens:,} completion tokens, {sizes[rank]:,} parameters at r = {rank}")


def _gradient(kind: str) -> _Predictor:
    name = f"gradient_{kind}_rank"

    def predict(evidence: Evidence) -> RankPrediction | None:
        value: float | None = getattr(evidence.features, name)
        if value is None:
            return None
        why = f"the gradient's mean {kind} rank over the target matrices is {value:.1f}"
        ranks = evidence.ranks
        return _answer(min((r for r in ranks if r >= value), default=max(ranks)), why)

    return _Predictor(name, "", predict)


def _input_variance(evidence: Evidence) -> RankPrediction:
    share = evidence.features.input_variance
    rank = min((r for r in evidence.ranks if share[r] >= VARIANCE), default=max(evidence.ranks))
    why = f"{rank} directions explain {share[rank]:.0%} of the inputs' variance"
    return _answer(rank, f"{why}; {VARIANCE:.0%} counts as enough")


def _base_score(evidence: Evidence) -> RankPrediction:
    """The lower the base's score, the higher the rank, log-linear over the ranks."""
    base, ranks = evidence.features, evidence.ranks
    chance = base.chance or 0.0
    known = (base.base_score - chance) / (1 - chance) if chance < 1 else 0.0
    missing = 1 - min(1.0, max(0.0, known)) if base.base_score >= 0 else 1.0
    rank = nearest(ranks, min(ranks) * (max(ranks) / min(ranks)) ** missing)
    score = f"the base scores {base.base_score:.3f}, {base.base_loss:.2f} nats per token"
    return _answer(rank, f"{score}: {missing:.0%} is left to learn")


def _row_table(evidence: Evidence) -> RankPrediction:
    rows = evidence.features.num_rows
    wanted = next((rank for fewer, rank in ROW_TABLE if rows < fewer), 64)
    return _answer(nearest(evidence.ranks, wanted), f"{rows:,} rows: r = {wanted}, or the closest")


def _always(wanted: int) -> _Predictor:
    return _Predictor(
        f"always_{wanted}",
        "",
        lambda evidence: _answer(nearest(evidence.ranks, wanted), f"the rank closest to {wanted}"),
    )


def _screen(name: str, needs: str) -> _Predictor:
    """The smallest rank within the margin of the best on a measured curve."""

    def predict(evidence: Evidence) -> RankPrediction:
        curve = evidence.curves[needs]
        if reason := _nothing_learned(curve, evidence.features.chance):
            return _answer(None, reason)
        scores = {rank: float(models.tuned.mean()) for rank, models in curve.items()}
        rank, best = best_rank(scores, evidence.margin), max(scores, key=scores.__getitem__)
        why = f"r = {rank} scores {scores[rank]:.3f}"
        return _answer(rank, why + (f", r = {best} {scores[best]:.3f}" * (best != rank)), scores)

    return _Predictor(name, needs, predict)


def _power_law(name: str, needs: str) -> _Predictor:
    """The same on a fitted power law, with the sentence on doublings."""

    def predict(evidence: Evidence) -> RankPrediction:
        curve = evidence.curves[needs]
        if len(curve) < FEWEST_FITTED:
            return _answer(None, f"cannot tell: {len(curve)} ranks, expected {FEWEST_FITTED}")
        if reason := _nothing_learned(curve, evidence.features.chance):
            return _answer(None, reason)
        fitted = fit_curve(curve)
        gains = {rank: float(fitted.law.gain(rank)[0]) for rank in fitted.ranks}
        return _answer(
            best_rank(gains, evidence.margin), fitted.doubling_sentence(evidence.margin), gains
        )

    return _Predictor(name, needs, predict)


def _nothing_learned(curve: ScreenCurve, chance: float | None) -> str:
    """Why a curve cannot order its ranks: no rank is shown to score above the base and guessing."""
    best = max(curve.values(), key=lambda models: float(models.tuned.mean()))
    levels = [("the base", best.reference)]
    if chance is not None:
        levels.append(("guessing", np.full(best.tuned.shape[1], chance)))
    for name, level in levels:
        estimate = weighted_estimate([Comparison(best.tuned, level, best.clusters)])
        if estimate.low is None or estimate.low <= 0:
            return f"cannot tell: no rank is shown to score above {name}"
    return ""


PREDICTORS = (
    _Predictor("capacity", "", _capacity),
    _gradient("effective"),
    _gradient("stable"),
    _Predictor("input_variance", "", _input_variance),
    _Predictor("base_score", "", _base_score),
    _screen("subset_screen", "subset_trained"),
    _power_law("subset_power_law", "subset_trained"),
    _screen("subset_truncation", "subset_truncated"),
    _screen("subset_nested", "subset_nested"),
    _screen("truncation", "truncated"),
    _screen("nested", "nested"),
    _power_law("power_law", "trained"),
    _screen("full_study", "trained"),
    _Predictor("axolotl_table", "", _row_table),
    _always(16),
    _always(32),
    _Predictor("always_highest", "", lambda evidence: _answer(max(evidence.ranks), "the highest")),
)
"""Every predictor; the last four are the ``BASELINES``. Those that need ``trained`` predict
nothing: they show what is within reach."""
BASELINES = tuple(predictor.name for predictor in PREDICTORS[-4:])
NEEDS = {
    "": "rows and base",
    "subset_trained": "--screen: the grid on a tenth of the rows",
    "subset_truncated": "--screen: its adapters of the highest rank, truncated",
    "subset_nested": "--screen, and a nested arm in the study",
    "truncated": "a finished study with evaluate.truncated_ranks",
    "nested": "a finished study with a nested arm",
    "trained": "a finished study",
}
"""What a predictor needs, in words."""


# The gain as a power of the rank, gain = C r^a + d, and where a doubling stops to pay. The law of
# arXiv 2605.30260 has a further factor l^-b for rows of length l. Within a training task l is the
# same for every rank, so the factor is part of C. R ranks, D bootstrap draws, E exponents tried.
FEWEST_FITTED = 3
EXPONENTS = np.linspace(-3, 1, 200)  # Zero, at which C is not defined, is not among them


class PowerLaw(NamedTuple):
    """gain = c r^a + d; every field has the shape of the gains without their ranks."""

    c: ScoreArray
    a: ScoreArray
    d: ScoreArray

    def gain(self, rank: float) -> ScoreArray:
        return np.asarray(self.c * rank**self.a + self.d)


def fit_power_law(ranks: Sequence[int], gains: ScoreArray, errors: ScoreArray) -> PowerLaw:
    """Weighted least squares for gains (D, R) with standard errors (R,).

    For each exponent the best c and d are those of a straight line in (r^a - 1) / a, which becomes
    log r near a = 0; the exponent with the smallest residual counts.
    """
    powers = (np.asarray(ranks, float) ** EXPONENTS[:, None] - 1) / EXPONENTS[:, None]  # (E, R)
    design = np.stack([powers, np.ones_like(powers)], axis=-1) / errors[:, None]
    weighed = gains / errors
    lines = np.einsum("ekr,dr->edk", np.linalg.pinv(design), weighed)
    residuals = weighed - np.einsum("erk,edk->edr", design, lines)
    best = (residuals**2).sum(axis=-1).argmin(axis=0)
    slope, start = lines[best, np.arange(len(gains))].T
    a = EXPONENTS[best]
    return PowerLaw(slope / a, a, start - slope / a)


class _FittedLaw(NamedTuple):
    ranks: tuple[int, ...]
    law: PowerLaw  # Of the measured gains, D = 1
    draws: PowerLaw  # Of gains drawn anew
    ceiling: float  # The gain with every answer right; infinite for log probabilities

    def doubling_sentence(self, margin: float) -> str:
        """From which tried rank on doubling it gains less than ``margin``."""
        once, twice = (
            np.minimum([self.draws.gain(times * r) for r in self.ranks], self.ceiling)
            for times in (1, 2)
        )
        low, high = np.quantile(twice - once, (0.025, 0.975), axis=1)
        for i, rank in enumerate(self.ranks):
            if (high[i:] < margin).all():
                return (
                    f"doubling r gains less than the margin of {margin:g} from r = {rank} on "
                    f"({low[i]:+.3f} to {high[i]:+.3f})"
                )
        if low[-1] > margin:
            return f"doubling r = {self.ranks[-1]} still gains more than the margin of {margin:g}"
        return f"cannot tell from which r on doubling gains less than the margin of {margin:g}"


def fit_curve(curve: Mapping[int, Comparison]) -> _FittedLaw:
    """Fit tuned against base scores by rank, with a bootstrap over items and seeds.

    Items, up to 2,000, are drawn alike for every rank. The noise between seeds is pooled over the
    ranks: two or three seeds of one rank say little of it.
    """
    ranks = tuple(sorted(curve))
    gains = np.array([curve[r].item_means.mean() for r in ranks])
    draws = np.stack([item_draws(curve[r]) for r in ranks], axis=1)  # (D, R)
    seed_errors = [weighted_estimate([c]).seed_error for c in curve.values()]
    freedom = sum(len(c.tuned) - 1 for c in curve.values())
    if freedom:
        pooled = float(np.sqrt(np.mean([(e or 0.0) ** 2 for e in seed_errors])))
        rng = np.random.default_rng(0)
        draws = draws + pooled * rng.standard_t(freedom, draws.shape)
    # Equal items, such as all right, have no spread, yet others may differ.
    floor = [0.5 / curve[r].tuned.shape[1] for r in ranks]
    errors = np.maximum(draws.std(axis=0), floor)
    base, ceiling = curve[ranks[0]].reference, np.inf
    if base is not None and curve[ranks[0]].is_right_or_wrong:
        ceiling = 1 - float(base.mean())
    law, drawn = (fit_power_law(ranks, g, errors) for g in (gains[None], draws))
    return _FittedLaw(ranks, law, drawn, ceiling)
