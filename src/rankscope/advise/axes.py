"""Axes of a study besides the rank: training rows, target modules, batch size, alpha.

For every value of an axis, the arm of the highest expected net gain represents it. The draws of the
posterior compare the values. docs/methods.md, "Axes".
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import log2

import numpy as np

from rankscope.advise.arms import Arm
from rankscope.advise.posterior import Array
from rankscope.advise.results import TaskResults
from rankscope.config.arm import TARGET_GROUPS
from rankscope.formatting import amount, difference, percent
from rankscope.records import SURE, TrialSpec

FEWEST_ROWS = 3  # Numbers of rows through which a power law is fitted
POSITIVE = 0.9  # Share of the draws with a gain at every point, without which there is no power


def axis_texts(results: TaskResults) -> Iterator[str]:
    """Yield a sentence for every axis with at least two values; none before an arm was scored."""
    if results.net is None:
        return
    arms = results.candidates
    for name, value_of in _AXES.items():
        if name == "alpha" and not _several_alphas(arms):
            continue
        yield from _values_compared(results, arms, name, value_of)
    yield from _rows(results, arms)


def _targets(spec: TrialSpec) -> str | None:
    named = {modules: name for name, modules in TARGET_GROUPS.items()}
    return named.get(tuple(sorted(spec.targets)), ", ".join(spec.targets)) or None


def _alpha(spec: TrialSpec) -> str | None:
    return f"{spec.alpha / spec.rank:g} r" if spec.alpha and spec.rank else None


def _several_alphas(arms: Sequence[Arm]) -> bool:
    """Whether some rank was tried with several alphas: a fixed alpha is the rank in disguise."""
    pairs = {(arm.summary.rank, arm.summary.alpha) for arm in arms if arm.summary.is_lora}
    return len({rank for rank, _ in pairs}) < len(pairs)


def _batch_size(spec: TrialSpec) -> str | None:
    size = spec.overrides.get("batch_size")
    return None if spec.rank is None else f"{size or 'that of the study'}"


_AXES: dict[str, Callable[[TrialSpec], str | None]] = {
    "targets": _targets,
    "batch size": _batch_size,
    "alpha": _alpha,
}
"""Maps the name of an axis to a function of a LoRA trial's value; None leaves the trial out."""


def _values_compared(
    results: TaskResults,
    arms: Sequence[Arm],
    name: str,
    value_of: Callable[[TrialSpec], str | None],
) -> Iterator[str]:
    best: dict[str, Arm] = {}
    for arm in arms:  # Highest first
        if arm.summary.is_lora and (value := value_of(arm.trials[0].spec)) is not None:
            best.setdefault(value, arm)
    if len(best) < 2:
        return
    draws = np.stack([results.draws_of(arm) for arm in best.values()], axis=1)
    within = (draws >= draws.max(axis=1, keepdims=True) - results.margin).mean(axis=0)
    texts = list[str]()
    for (value, arm), p, net in zip(best.items(), within.tolist(), draws.T, strict=True):
        gap = difference(float((net - draws[:, 0]).mean()), results.net_unit)
        less = "" if not texts else f", expected {gap} against it"
        rank = f"r={arm.summary.rank}, {arm.summary.trainable_parameters:,} parameters"
        texts.append(f"{value} ({rank}{less}; {percent(p)})")
    yield (
        f"By {name}, each at its best settings, highest expected {results.net_name} first, with "
        f"the probability of being among the best of these: {'; '.join(texts)}."
    )


# --- training rows


def _row_lines(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Group arms that differ only in the number of rows, by rising number.

    There is a line for each rank, with the settings of the best arm that has several numbers, and
    one for full fine-tuning.

    Args:
        arms: highest expected net gain first.
    """
    lines: dict[tuple[object, ...], dict[int, Arm]] = {}
    for arm in arms:
        lines.setdefault(_line_of(arm), {}).setdefault(arm.summary.rows or 0, arm)
    several = [line for line in lines.values() if len(line) > 1]
    kinds = dict[bool, tuple[object, ...]]()
    for line in several:
        arm = next(iter(line.values()))
        kinds.setdefault(arm.summary.is_full, arm.trials[0].spec.kind)
    found = [[line[n] for n in sorted(line)] for line in several]
    return [line for line in found if line[0].trials[0].spec.kind in kinds.values()]


def _line_of(arm: Arm) -> tuple[object, ...]:
    spec = arm.trials[0].spec
    return (*spec.kind, spec.rank, spec.alpha)


def _rows(results: TaskResults, arms: Sequence[Arm]) -> Iterator[str]:
    """Yield from how many rows more capacity pays, and what twice the rows would add."""
    kept = [{arm.summary.rows or 0: arm for arm in line} for line in _row_lines(arms)]
    # A line is named by its arm with the most rows; the best of these is compared with the others.
    ends = [line[max(line)] for line in kept]
    lora = sorted((a.summary.rank or 0, k) for k, a in enumerate(ends) if a.summary.is_lora)
    full = next((k for k, arm in enumerate(ends) if arm.summary.is_full), None)
    top = max(
        (k for _, k in lora), key=lambda k: float(results.draws_of(ends[k]).mean()), default=0
    )
    pairs = [(top, lora[0][1])] if len(lora) > 1 and top != lora[0][1] else []
    pairs += [(full, top)] if full is not None and lora else []
    for more, less in pairs:
        yield from _pays_from(results, kept[more], kept[less])
    if kept:
        yield from _law(results, [kept[k] for _, k in lora], kept[top])


def _pays_from(results: TaskResults, more: dict[int, Arm], less: dict[int, Arm]) -> Iterator[str]:
    """Yield the number of rows from which one line leads another by more than the margin."""
    shared = sorted(more.keys() & less.keys())
    if len(shared) < 2:
        return
    margin = results.margin
    gaps = np.stack([results.draws_of(more[n]) - results.draws_of(less[n]) for n in shared], axis=1)
    ahead = (gaps > margin).mean(axis=0).tolist()
    fewest, most = shared[0], shared[-1]
    first, last = (line[most].summary.short_label for line in (more, less))
    if min(ahead) >= SURE:
        yield f"{first} pays over {last} at {fewest} rows already ({percent(ahead[0])})."
    elif ahead[-1] < 0.5 <= max(ahead):
        best = max(range(len(shared)), key=ahead.__getitem__)
        yield (
            f"{first} pays over {last} at {shared[best]} rows ({percent(ahead[best])}), hardly at "
            f"{most} ({percent(ahead[-1])})."
        )
    elif ahead[-1] < 0.5:
        yield f"{first} hardly pays over {last} at up to {most} rows ({percent(ahead[-1])} there)."
    else:
        starts = _crossings(gaps - margin, [log2(n) for n in shared])
        shares = (0.025, 0.5, 0.975)
        # No interpolation: no number lies between another and infinity.
        found = np.quantile(starts, shares, method="inverted_cdf").tolist()
        low, start, high = (
            f"{fewest} or fewer"
            if end <= log2(fewest)
            else f"more than {most}"
            if end == np.inf
            else f"about {float(f'{2**end:.2g}'):,.0f}"
            for end in found
        )
        yield (
            f"{first} pays over {last} from {start} rows on (95 % interval {low} to {high}; "
            f"{percent(ahead[-1])} at {most} rows)."
        )


def _crossings(gaps: Array, places: Sequence[float]) -> Array:
    """Find, in each draw, the place from which the gap (D, N) stays above 0, interpolated.

    The place is infinite if the gap ends below 0, and the first one if it is always above.
    """
    starts = np.where(gaps[:, -1] > 0, places[0], np.inf)
    for k, (left, right) in enumerate(pairwise(places)):
        below, above = gaps[:, k], gaps[:, k + 1]
        rises = (below <= 0) & (above > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            at = left + (right - left) * below / (below - above)
        starts = np.where(rises & np.isfinite(starts), at, starts)
    return starts


def _law(
    results: TaskResults, lines: Sequence[dict[int, Arm]], best: dict[int, Arm]
) -> Iterator[str]:
    """Fit gain = C r^a n^b over ranks r and rows n, and say what twice the rows would add to
    ``best``."""
    points = [(log2(arm.summary.rank or 1), log2(n), arm) for of in lines for n, arm in of.items()]
    if len({n for _, n, _ in points}) < FEWEST_ROWS:
        return
    draws = np.stack([results.draws_of(arm) for *_, arm in points], axis=1)
    positive = (draws > 0).all(axis=1)
    if positive.mean() < POSITIVE:
        yield (
            "What twice the rows would add is unknown: with some ranks and rows nothing may be "
            f"gained at all ({percent(1 - float(positive.mean()))})."
        )
        return
    logs = np.log2(draws[positive])
    ranks, rows = (np.array(axis) for axis in zip(*(p[:2] for p in points), strict=True))
    # Centered on the mean, so that the column of a single rank is 0, and so is its exponent.
    design = np.stack([np.ones(len(points)), ranks - ranks.mean(), rows], axis=1)
    solution = logs @ np.linalg.pinv(design).T  # (D, 3)
    means = np.log2(draws.mean(axis=0))
    left = means - design @ (np.linalg.pinv(design) @ means)
    explained = 1 - float(left @ left) / max(float(np.square(means - means.mean()).sum()), 1e-12)
    top = results.draws_of(best[max(best)])[positive]
    added = top * (2 ** solution[:, 2] - 1)
    a, b = (f"{s.mean():.2f} [{', '.join(f'{q:.2f}' for q in np.quantile(s, (0.025, 0.975)))}]"
            for s in solution[:, 1:].T)  # fmt: skip
    low, high = (
        difference(end, results.net_unit) for end in np.quantile(added, (0.025, 0.975)).tolist()
    )
    yield (
        f"Twice the rows ({2 * max(best)}) would add about "
        f"{amount(float(added.mean()), results.net_unit)} to "
        f"{best[max(best)].summary.short_label} (95 % interval {low} to {high}), if the gain goes "
        f"on as a power of rank and rows (exponents {a} and {b}). This law explains "
        f"{percent(max(0.0, explained))} of how the expected gains differ."
    )
