"""Judges of the claims: what the kept records of a study say of each.

The rules are in the study files, which say what was added after the data. Every judge takes the
records of a study and returns its verdict, the numbers behind it, and the smallest effect that
could have been seen.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import stats

from claims_records import Arm, Grid, best_rate
from power import data_needed, detectable
from rankscope.advise.statistics.resampling import ScoreArray
from rankscope.records import Estimate

MARGIN = 0.02
"""Nats per token within which two arms count as equal: the product's default margin."""
HOLDS, FAILS, OPEN = "holds here", "does not hold here", "cannot tell"
UNTESTABLE = "not testable here"
RATIO = (5.0, 20.0)
STEP = 4.0
"""Factor between neighboring rates."""


@dataclass(frozen=True)
class Verdict:
    """The judgment of one claim on one study."""

    verdict: str
    measured: str
    detectable: str = ""
    """The smallest effect that would have been seen in four studies of five."""
    would_settle: str = ""
    """What would decide an open claim, or why it cannot be asked here."""
    p: float | None = None
    """Probability of the claim; None if its rule is no limit on differences."""


def judged(holds: bool, fails: bool) -> str:
    return HOLDS if holds else FAILS if fails else OPEN


def interval(estimate: Estimate, digits: int = 3, sign: str = "+") -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{sign}.{digits}f} [unknown]"
    low, high = (f"{end:{sign}.{digits}f}" for end in (estimate.low, estimate.high))
    return f"{estimate.value:{sign}.{digits}f} [{low}, {high}]"


def ends(estimate: Estimate) -> tuple[float, float]:
    """Both ends of an interval; an unknown one excludes nothing."""
    low = -math.inf if estimate.low is None else estimate.low
    return low, math.inf if estimate.high is None else estimate.high


def p_between(estimate: Estimate, low: float = -math.inf, high: float = math.inf) -> float:
    """Probability that the true difference is between ``low`` and ``high``, by a flat prior.

    Student's t, whose degrees of freedom are the seeds' by Welch and Satterthwaite (1946): the
    error of the items is known.
    """
    seeds = estimate.seed_error or 0.0
    error = math.hypot(estimate.item_error or 0.0, seeds)
    if not error:
        return float(low < estimate.value < high)
    freedom = max(1, estimate.seeds - 1) * (error / seeds) ** 4 if seeds else math.inf
    below = [float(stats.t.cdf((end - estimate.value) / error, freedom)) for end in (low, high)]
    return below[1] - below[0]


def smallest(estimate: Estimate) -> str:
    effect = detectable(estimate)
    return "unknown" if effect is None else f"{effect:.3f} nats"


def settled_by(estimate: Estimate, effect: float) -> str:
    """The items or seeds that would show ``effect`` with the noise of ``estimate``."""
    needed = data_needed(estimate, effect)
    if needed.items is not None:
        return f"{needed.items:,} test items"
    if needed.both is not None:
        return f"{needed.both[0]:,} test items and {needed.both[1]} seeds"
    return "more seeds and items than can be said"


def name_of(rank: int | None) -> str:
    return "full" if rank is None else f"r={rank}"


def label(arm: Arm) -> str:
    rank, lr = arm
    return f"{name_of(rank)} at {lr:g}"


def harm(grid: Grid) -> Verdict:
    full, lora = grid.tuned(None), grid.best_lora()
    of_full, of_lora = grid.gain(full), grid.gain(lora)
    return Verdict(
        judged(
            ends(of_full)[1] < 0 and ends(of_lora)[0] > 0,
            ends(of_full)[0] > 0 or ends(of_lora)[1] < 0,
        ),
        f"tuned - base: {label(full)} {interval(of_full)}, {label(lora)} {interval(of_lora)} nats",
        smallest(of_full),
        p=p_between(of_full, high=0) * p_between(of_lora, low=0),
    )


def rate_ratio(grid: Grid) -> Verdict:
    def ratio(scores: Mapping[Arm, float]) -> float:
        return math.log(
            math.exp(np.mean([math.log(rate_of(scores, rank)) for rank in grid.ranks]))
            / rate_of(scores, None)
        )

    def rate_of(scores: Mapping[Arm, float], rank: int | None) -> float:
        return best_rate({lr: scores[rank, lr] for lr in grid.rates(rank)})

    arms = [grid.tuned(rank) for rank in (*grid.ranks, None)]
    at_end = [arm for arm in arms if arm[1] in np.array(grid.rates_tried(arm[0]))[[0, -1]]]
    best_rates = [lr for rank, lr in arms if rank is not None]
    agree = max(best_rates) / min(best_rates) < STEP * 1.01
    log_ratio = grid.crossed(ratio)
    low, high = (math.exp(end) for end in ends(log_ratio))
    value = math.exp(log_ratio.value)
    best = ", ".join(label(arm) for arm in arms)
    low_rank, high_rank = grid.ranks[0], grid.ranks[-1]
    apart = grid.crossed(
        lambda scores: math.log(rate_of(scores, low_rank) / rate_of(scores, high_rank))
    )
    between = [math.exp(end) for end in (apart.value, *ends(apart))]
    effect = detectable(log_ratio)
    return Verdict(
        judged(
            agree and not at_end and RATIO[0] <= low and high <= RATIO[1],
            not agree or (not at_end and (low > RATIO[1] or high < RATIO[0])),
        ),
        f"best by validation: {best}; ratio of the parabolas' tops {value:.1f} "
        f"[{low:.1f}, {high:.1f}]; the top of r={low_rank} is {between[0]:.1f} "
        f"[{between[1]:.1f}, {between[2]:.1f}] times that of r={high_rank}"
        + (f"; at an end of its list: {', '.join(map(label, at_end))}" if at_end else ""),
        "unknown" if effect is None else f"a factor of {math.exp(effect):.1f}",
        rates_needed(grid, log_ratio, bool(at_end)),
        p_between(log_ratio, math.log(RATIO[0]), math.log(RATIO[1]))
        * p_between(apart, -math.log(STEP), math.log(STEP)),
    )


def rates_needed(grid: Grid, log_ratio: Estimate, at_end: bool) -> str:
    """What would tell the ratio from the ends of ``RATIO``: rates first, then items and seeds."""
    if at_end:
        return "rates beyond the ends of the lists"
    lists = [np.array(grid.rates_tried(rank)) for rank in grid.series]
    if max((rates[1:] / rates[:-1]).max() for rates in lists) > STEP / 2 * 1.01:
        return "rates a factor of 2 apart around each best one"
    distance = min(abs(log_ratio.value - math.log(end)) for end in RATIO)
    return f"{settled_by(log_ratio, distance)}, if the ratio is the measured one"


def spread_by_rate(grid: Grid) -> Verdict:
    rates = sorted(set.intersection(*(set(grid.rates(rank)) for rank in grid.ranks)))

    def spread(scores: Mapping[Arm, float], lr: float) -> float:
        at_rate = [scores[rank, lr] for rank in grid.ranks]
        return max(at_rate) - min(at_rate)

    growth = grid.crossed(lambda scores: spread(scores, rates[-1]) - spread(scores, rates[0]))
    listed = ", ".join(
        f"{interval(grid.crossed(partial(spread, lr=lr)), sign='')} at {lr:g}" for lr in rates
    )
    return Verdict(
        judged(ends(growth)[0] > 0, ends(growth)[1] < 0),
        f"spread over ranks {listed} nats; highest less lowest rate {interval(growth)}",
        smallest(growth),
        f"{settled_by(growth, abs(growth.value))}, if the difference is the measured one",
    )


def forgot(grid: Grid, *arms: Arm) -> bool:
    """Whether one of these arms lost held-out text, clear of zero."""
    return any(ends(grid.retained(arm))[1] < 0 for arm in arms)


def learns_less(grid: Grid, rank: int) -> Verdict:
    """The first half of "learns less and forgets less", by a study that scored no other text: it
    can refute the claim alone."""
    lora, full = grid.tuned(rank), grid.tuned(None)
    learned = grid.gain(lora, full)
    return Verdict(
        judged(False, ends(learned)[0] > 0),
        f"{label(lora)} less {label(full)}: task {interval(learned)} nats; held-out text was not "
        "scored",
        smallest(learned),
        "text that training makes the model forget",
    )


def less_and_less(grid: Grid, rank: int = 32) -> Verdict:
    lora, full = grid.tuned(rank), grid.tuned(None)
    learned, kept = grid.gain(lora, full), grid.retained(lora, full)
    measured = f"task {interval(learned)}, held-out text {interval(kept)} nats"
    measured = f"{label(lora)} less {label(full)}: {measured}"
    detected = f"{smallest(learned)}; {smallest(kept)}"
    if not forgot(grid, lora, full) and ends(learned)[0] <= 0:
        return Verdict(UNTESTABLE, measured, detected, "neither arm forgot")
    return Verdict(
        judged(
            ends(learned)[1] < 0 and ends(kept)[0] > 0,
            ends(learned)[0] > 0 or ends(kept)[1] < 0,
        ),
        measured,
        detected,
        p=p_between(learned, high=0) * p_between(kept, low=0),
    )


def full_forgets_less(grid: Grid, rank: int = 32, excluded: float = 0.0) -> Verdict:
    """``excluded``: nats that the claim says r = ``rank`` loses more; 0: its sign alone."""
    lora, full = grid.tuned(rank), grid.tuned(None)
    kept = grid.retained(lora, full)
    own = ", ".join(f"{label(arm)} {interval(grid.retained(arm))}" for arm in (lora, full))
    measured = f"change of held-out text: {own} nats; the former less the latter {interval(kept)}"
    if not forgot(grid, lora, full):
        return Verdict(UNTESTABLE, measured, smallest(kept), "neither arm forgot")
    return Verdict(
        judged(ends(kept)[1] < 0, ends(kept)[0] > -excluded),
        measured,
        smallest(kept),
        f"{settled_by(kept, abs(kept.value))}, if the difference is the measured one",
        p_between(kept, high=-excluded),
    )


def matches_full(grid: Grid, rank: int = 32) -> Verdict:
    lora, full = grid.tuned(rank), grid.tuned(None)
    difference = grid.gain(lora, full)
    return Verdict(
        judged(difference.is_above(-MARGIN), ends(difference)[1] < -MARGIN),
        f"{label(lora)} less {label(full)}: {interval(difference)} nats, margin {MARGIN}",
        smallest(difference),
        p=p_between(difference, low=-MARGIN),
    )


def recall_and_reasoning(maths: Grid, recall: Grid) -> Verdict:
    """Without r = 32 on maths the highest rank stands for it."""
    low, high = maths.ranks[0], maths.ranks[-1]
    middle = 32 if 32 in maths.ranks else high
    rise, over = (maths.gain(maths.tuned(middle), maths.tuned(r)) for r in (low, high))
    flat = recall.gain(recall.tuned(high), recall.tuned(low))
    gained = recall.gain(recall.tuned(high)).value
    is_flat = flat.is_above(-MARGIN) and ends(flat)[1] < MARGIN
    varies = ends(flat)[1] < -MARGIN or ends(flat)[0] > MARGIN
    no_rise = ends(rise)[1] < MARGIN
    would_settle = f"on recall {settled_by(flat, MARGIN)}"
    if is_flat:
        would_settle = f"on maths {settled_by(rise, MARGIN)}"
    if middle != 32:
        would_settle = "r = 32 on these rates of maths"
    than_high = "" if middle == high else f", less r={high} {interval(over)}"
    return Verdict(
        judged(is_flat and ends(rise)[0] > 0 and over.is_above(-MARGIN), varies or no_rise),
        f"maths: r={middle} less r={low} {interval(rise)}{than_high}; "
        f"recall: r={high} less r={low} {interval(flat)} nats, each at its best rate, margin "
        f"{MARGIN}; r={high} gains {gained:.2f}",
        f"{smallest(rise)}; {smallest(flat)}",
        would_settle,
        p_between(flat, -MARGIN, MARGIN) * p_between(rise, low=0) * p_between(over, low=-MARGIN),
    )


def over_seeds(values: ScoreArray) -> Estimate:
    """Mean of one number per seed, with Student's t."""
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    half, mean = float(stats.t.ppf(0.975, len(values) - 1)) * error, float(values.mean())
    return Estimate(value=mean, low=mean - half, high=mean + half, n=len(values), seeds=len(values))


def residuals(ranks: tuple[int, ...], norms: ScoreArray) -> tuple[float, float]:
    """Root mean squared relative residual of a + b log r, and of a r^b."""
    logs, values = np.log(ranks), norms
    line = np.polyval(np.polyfit(logs, values, 1), logs)
    power = np.exp(np.polyval(np.polyfit(logs, np.log(values), 1), logs))
    log_fit, power_fit = (float(np.sqrt(np.mean((fit / values - 1) ** 2))) for fit in (line, power))
    return log_fit, power_fit


def norm_and_similarity(grid: Grid, rank: int = 32) -> Verdict:
    rates = grid.rates_tried(rank)
    middle = rates[len(rates) // 2]
    by_rank = np.stack([grid.norms((r, middle)) for r in grid.ranks])  # (ranks, S)
    fits = [residuals(grid.ranks, norms) for norms in by_rank.T]
    log_better = [log_fit < power_fit for log_fit, power_fit in fits]
    lora, full = grid.tuned(rank), grid.tuned(None)
    kept, kept_full = (over_seeds(grid.by_seed(a, "similarity", "mean")) for a in (lora, full))
    better, worse = ends(kept)[0] > ends(kept_full)[1], ends(kept)[1] < ends(kept_full)[0]
    listed = ", ".join(
        f"{size:.2f} at r={r}" for r, size in zip(grid.ranks, by_rank.mean(axis=1), strict=True)
    )
    log_fit, power_fit = np.mean(fits, axis=0)
    return Verdict(
        judged(all(log_better) and better, not any(log_better) or worse),
        f"norm at rate {middle:g}: {listed}; residual of a + b log r {log_fit:.1%}, of a power law "
        f"{power_fit:.1%}. Subspaces of the leading {int(grid.spectra['top_k'].max())} vectors "
        f"kept: {label(lora)} {interval(kept, 4, '')}, {label(full)} {interval(kept_full, 4, '')}",
    )


def intruders(grid: Grid) -> Verdict:
    arms = [grid.tuned(rank) for rank in (*grid.ranks, None)]
    counts = [grid.by_seed(arm, "intruders") for arm in arms]
    first, last, full = counts[0], counts[-2], counts[-1]
    examined = 10 * grid.spectra["matrix"].nunique()
    falls = bool((first > last).all())
    listed = ", ".join(
        f"{label(arm)} {'/'.join(f'{c:.0f}' for c in count)}"
        for arm, count in zip(arms, counts, strict=True)
    )
    measured = f"intruders among {examined:,} vectors, by seed: {listed}"
    if not any(count.any() for count in counts):
        return Verdict(UNTESTABLE, measured, would_settle="no tuned arm has one")
    return Verdict(
        judged(falls and full.mean() <= 0.01 * examined, bool((first <= last).all())), measured
    )


def capacity(grid: Grid) -> Verdict:
    """Ranks against the largest, each at its best rate, and on which side of the line they are."""
    top = grid.tuned(grid.ranks[-1])
    tokens = int(grid.trials["num_label_tokens"].dropna().max())
    told, sides = [], set()
    clear = []  # (as the rule says, the opposite) of ranks a factor of 2 from the line
    p = 1.0
    for rank in grid.ranks[:-1]:
        behind = grid.gain(grid.tuned(rank), top)
        parameters = int(grid.of_rank(rank)["trainable_parameters"].iloc[0])
        told.append((rank, parameters, behind))
        if not tokens / 2 < parameters < 2 * tokens:
            answers = ends(behind)[1] < -MARGIN, behind.is_above(-MARGIN)
            sides.add(parameters < tokens)
            clear.append(answers if parameters < tokens else answers[::-1])
            behind_p = p_between(behind, high=-MARGIN)
            p *= behind_p if parameters < tokens else 1 - behind_p
    first_rank, first_parameters, first = told[0]
    return Verdict(
        judged(
            len(sides) == 2 and all(as_ruled for as_ruled, _ in clear),
            any(otherwise for _, otherwise in clear),
        ),
        f"{tokens:,} completion tokens; less {label(top)}: "
        + ", ".join(
            f"{label(grid.tuned(rank))} with {count:,} parameters {interval(behind)}"
            for rank, count, behind in told
        )
        + " nats",
        smallest(first),
        f"{settled_by(first, abs(first.value + MARGIN))} for whether r={first_rank} is behind by "
        f"more than {MARGIN}"
        + ("" if len(sides) == 2 else f"; for the knee, {first_parameters:,} completion tokens"),
        p if len(sides) == 2 else None,
    )
