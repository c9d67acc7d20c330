"""Judge the claims whose rules read the posterior, by the kept records.

    python evidence/posterior_claims.py

writes the verdicts of the studies that have run, and their arms, to studies/axes/README.md; the
rules are at the head of each study file. A test compares.

A claim about a task is judged on the gain, a claim about balance on the net gain.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from scipy.stats import norm

from claims_board import RECORDS, ROOT, with_numbers
from claims_judges import OPEN, UNTESTABLE, Verdict, interval, judged, name_of, p_between, smallest
from claims_records import paired_estimate
from kept_records import kept_study
from power import POWER
from rankscope.advise.arms import Arm, summarize_arms
from rankscope.advise.axes import axis_texts
from rankscope.advise.posterior import Array
from rankscope.advise.results import TaskResults, change_of, expected, task_results
from rankscope.advise.statistics.matching import scores_of_models
from rankscope.advise.statistics.resampling import ScoreArray
from rankscope.config.arm import TARGET_GROUPS
from rankscope.extensions.variants.results import compare_mitigations
from rankscope.formatting import Unit, percent, signed
from rankscope.records import BASE, Estimate, ExpectedChange, ScoredModel, Variant

PAGE = ROOT / "studies" / "axes" / "README.md"
RULE = (
    "A claim about a task is judged on its gain, a claim about balance on the net gain. "
    "The margin is 2 points, or 0.02 nats per token."
)
LIKELY, UNLIKELY = 0.8, 0.2
"""Probabilities from which a rule calls something so, or not so."""
REMEDIES_TRIED = 4  # In medicine-to-maths, whose record holds three of them
Judge = Callable[[TaskResults], Verdict]
Effect = tuple[str, Array]
"""What decides a claim, and the draws of it.

They are of net gains in the results that a judge gets; of a claim about a task, retention has no
weight in them.
"""


def within(results: TaskResults, arms: Sequence[Arm]) -> list[float]:
    """Of each arm, the probability of being within the margin of the best of them."""
    return [float((less_best(results, arms, a)[1] >= -results.margin).mean()) for a in arms]


def less_best(results: TaskResults, arms: Sequence[Arm], arm: Arm) -> Effect:
    """The net gain of ``arm`` less the largest one of the other ``arms``."""
    others = [results.draws_of(other) for other in arms if other is not arm]
    return f"{arm.summary.label} less the best other", results.draws_of(arm) - np.max(others, 0)


def verdict(
    results: TaskResults, holds: bool, fails: bool, told: str, effect: Effect, p: float
) -> Verdict:
    """With the effect that decides, its 95 % interval, and what would settle an open claim.

    ``p``: the probability by which the claim is open. If the effect is what it is expected to be,
    k times the items and seeds multiply the distance of p from one half, in standard deviations,
    by the root of k; the prior's share of that error is taken to shrink alike.
    """
    (what, draws), unit, found = effect, results.net_unit, judged(holds, fails)
    seen = unit.scale * (norm.ppf(0.975) + norm.ppf(POWER)) * draws.std()
    settled = ""
    if found == OPEN and UNLIKELY < p < LIKELY and p != 0.5:
        settled = f"{(norm.ppf(LIKELY) / norm.ppf(p)) ** 2:.3g} times the items and seeds"
    short = unit.difference.removesuffix(" per token")
    measured = f"{told} | {what}: {shown(change_of(draws), unit)} {short}"
    return Verdict(found, measured, f"{seen:.{unit.digits}f}", settled)


def shown(change: ExpectedChange, unit: Unit) -> str:
    low, high = signed(change.low, unit), signed(change.high, unit)
    return f"{signed(change.value, unit)} [{low}, {high}]"


def few_rows(results: TaskResults) -> Verdict:
    """Whether few rows want no more rank than r = 8, and bear r = 128."""
    few = [arm for arm in results.candidates if arm.trials[0].spec.rows == 32]
    p = dict(zip([arm.summary.rank for arm in few], within(results, few), strict=True))
    least = min((8, 128), key=lambda rank: p[rank])
    told = ", ".join(f"{name_of(rank)} {percent(p[rank])}" for rank in p)
    effect = less_best(results, few, next(arm for arm in few if arm.summary.rank == least))
    return verdict(results, p[least] >= LIKELY, p[least] <= UNLIKELY,
                   f"at 32 rows: {told}", effect, p[least])  # fmt: skip


def arm_of_rank(results: TaskResults, rank: int | None) -> Arm:
    found = [arm for arm in results.candidates if arm.summary.rank == rank]
    assert found, f"{results.task}: no arm of rank {rank}"
    return found[0]


def matches_full(results: TaskResults) -> Verdict:
    """Whether r = 32 is not behind full fine-tuning by more than the margin."""
    lora, full = (results.draws_of(arm_of_rank(results, rank)) for rank in (32, None))
    p = float((lora > full - results.margin).mean())
    ahead = float((lora > full).mean())
    told = f"not behind by the margin {percent(p)}; ahead {percent(ahead)}"
    effect = ("r=32 less full", lora - full)
    return verdict(results, p >= LIKELY, p <= UNLIKELY, told, effect, p)


def balances_best(results: TaskResults) -> Verdict:
    """Whether r = 32, or r = 64 where it was trained, is within the margin of the best net gain."""
    ranks = (*sorted({arm.summary.rank for arm in results.candidates if arm.summary.rank}), None)
    arms = {rank: arm_of_rank(results, rank) for rank in ranks}
    p = dict(zip(ranks, within(results, [*arms.values()]), strict=True))
    told = ", ".join(f"{name_of(r)} {percent(p[r])}" for r in ranks)
    middle = max(p.keys() & {32, 64}, key=lambda rank: p[rank])
    effect = less_best(results, [*arms.values()], arms[middle])
    return verdict(results, p[middle] >= LIKELY, p[middle] <= UNLIKELY,
                   f"of these {len(p)}: {told}", effect, p[middle])  # fmt: skip


def recall_ignores_rank(results: TaskResults) -> Verdict:
    """Whether all ranks are within the margin of the best of them."""
    arms = sorted(
        (arm for arm in results.candidates if arm.summary.rank),
        key=lambda arm: arm.summary.rank or 0,
    )
    p = within(results, arms)
    told = [f"{a.summary.label} {percent(near)}" for a, near in zip(arms, p, strict=True)]
    effect = less_best(results, arms, arms[p.index(min(p))])
    return verdict(results, min(p) >= LIKELY, min(p) <= UNLIKELY, ", ".join(told), effect, min(p))


def where_learned(judge: Judge, full: bool = True) -> Judge:
    """Not testable where no arm (without ``full``: of LoRA) is above the base: without learning all
    are alike."""

    def judge_learned(results: TaskResults) -> Verdict:
        above = {
            arm.summary.label: float((results.draws_of(arm) > 0).mean())
            for arm in results.candidates
            if full or arm.summary.rank
        }
        best = max(above, key=lambda label: above[label])
        found = judge(results)
        told = f"likeliest above the base {best} {percent(above[best])}; {found.measured}"
        if above[best] >= LIKELY:
            return replace(found, measured=told)
        return replace(found, verdict=UNTESTABLE, measured=told, would_settle="")

    return judge_learned


def mlp_beats_attention(results: TaskResults) -> Verdict:
    """Target modules, each at the better of two numbers of parameters, as on the page."""
    finished = [arm for arm in results.candidates if arm.finished]
    best = {
        name: next(a for a in finished if a.trials[0].spec.targets == modules)
        for name, modules in TARGET_GROUPS.items()
    }
    p = dict(zip(best, within(results, [*best.values()]), strict=True))
    lead = results.draws_of(best["mlp"]) - results.draws_of(best["attention"])
    told = ", ".join(f"{name} {percent(value)}" for name, value in p.items())
    told += f"; that the MLP is above the attention at all {percent(float((lead > 0).mean()))}"
    holds = p["mlp"] >= LIKELY and p["attention"] <= UNLIKELY
    effect = ("MLP less attention", lead)
    return verdict(results, holds, p["attention"] >= LIKELY, told, effect, p["attention"])


def large_batches(results: TaskResults) -> Verdict:
    """Whether LoRA loses more by batches of 32 for 4 than full fine-tuning does."""

    def lost(rank: int | None) -> Array:
        of_rank = [arm for arm in results.candidates if arm.summary.rank == rank]
        small, large = (
            next(a for a in of_rank if a.trials[0].spec.overrides["batch_size"] == size)
            for size in (4, 32)
        )
        return results.draws_of(small) - results.draws_of(large)

    more = {rank: lost(rank) - lost(None) for rank in (8, 128)}
    p = {rank: float((draws > results.margin).mean()) for rank, draws in more.items()}
    told = ", ".join(f"r={rank} loses more {percent(value)}" for rank, value in p.items())
    most = max(p, key=lambda rank: p[rank])
    effect = (f"loss of r={most} less that of full", more[most])
    return verdict(results, p[most] >= LIKELY, p[most] <= UNLIKELY, told, effect, p[most])


def rank_suffices(results: TaskResults) -> Verdict:
    """Whether r = 1 reaches the best rank; and whether high ranks collapse: the highest is behind
    the one before it by more than the margin, each at its best rate."""
    ranks = [arm for arm in results.candidates if arm.summary.rank is not None]
    ranks.sort(key=lambda arm: arm.summary.rank or 0)
    p = within(results, ranks)
    fall = results.draws_of(ranks[-2]) - results.draws_of(ranks[-1])
    told = ", ".join(
        f"r={arm.summary.rank} {percent(value)}" for arm, value in zip(ranks, p, strict=True)
    )
    behind = percent(float((fall > results.margin).mean()))
    high, before = ranks[-1].summary.rank, ranks[-2].summary.rank
    told += f"; high ranks collapse (r={high} is behind r={before} by the margin) {behind}"
    effect = less_best(results, ranks, ranks[0])
    return verdict(results, p[0] >= LIKELY, p[0] <= UNLIKELY, told, effect, p[0])


def rates_held_back(earlier: str, rank: int) -> Judge:
    """Whether r = 1 gains at some higher rate what ``rank`` measured in an earlier study, less the
    margin."""

    def judge(results: TaskResults) -> Verdict:
        before = results_of(RECORDS / earlier, is_balance=False)[results.task]
        gain = arm_of_rank(before, rank).summary.gain
        assert gain is not None
        reached = gain.value - before.margin  # As measured: to shrink it would lower the bar
        best = arm_of_rank(results, 1)
        draws = results.draws_of(best)
        told = f"{100 * reached:.1f} points or more {percent(float((draws >= reached).mean()))}"
        holds = bool(draws.mean() >= reached)
        return verdict(results, holds, not holds, told, (best.summary.label, draws), 0.5)

    return judge


def p_within(results: TaskResults) -> dict[str, tuple[Arm, float]]:
    """By label, every arm with the probability of being within the margin of the best of all."""
    return {
        arm.summary.label: (arm, arm.summary.expected.p_within_margin)
        for arm in results.arms
        if arm.summary.expected
    }


def low_rates_suffice(results: TaskResults) -> Verdict:
    """Whether a rate of at most 1e-4 reaches the best."""
    found = [*p_within(results).values()]
    arm, p = max((of for of in found if of[0].summary.lr <= 1.001e-4), key=lambda of: of[1])
    told = f"likeliest of the low rates: {arm.summary.label} {percent(p)}"
    effect = less_best(results, [other for other, _ in found], arm)
    return verdict(results, p >= LIKELY, p <= UNLIKELY, told, effect, p)


def at_end(results: TaskResults, arm: Arm) -> bool:
    """Whether the arm's rate is the lowest or highest that its settings were trained with."""
    rates = results.rates_of(arm)
    return arm.summary.lr in (rates[0], rates[-1])


def standing(results: TaskResults) -> Sequence[Arm]:
    """Every configuration at its best rate, highest expected net gain first; none is missing."""
    asked = {arm.trials[0].spec.arm_without_lr for arm in results.arms}
    assert len(results.candidates) == len(asked), f"{results.task}: some were not scored"
    return results.candidates


def unless_at_an_end(
    results: TaskResults, found: Sequence[tuple[float, bool, str, Effect]]
) -> Verdict:
    """Whether all are likely enough; one that is best at an end of its list refutes nothing.

    Of each: its probability, whether it is at an end, its name, and the effect behind it.
    """
    told = "; ".join(
        f"{name}{', an end of its list' if end else ''}: {percent(p)}" for p, end, name, _ in found
    )
    refuting = [of for of in found if of[0] <= UNLIKELY and not of[1]]
    p, _, _, effect = min(refuting or found, key=lambda of: of[0])
    return verdict(results, p >= LIKELY, bool(refuting), told, effect, p)


def alpha_is_a_rate(results: TaskResults) -> Verdict:
    """Whether of each rank all alphas, each at its best rate, reach the best of them; one that is
    best at an end of its list of rates refutes nothing."""
    found: list[tuple[float, bool, str, Effect]] = []
    by_rank: dict[int | None, list[Arm]] = {}
    for arm in sorted(standing(results), key=lambda arm: arm.summary.rank or 0):
        by_rank.setdefault(arm.summary.rank, []).append(arm)
    for rank, arms in by_rank.items():
        for arm, value in zip(arms, within(results, arms), strict=True):
            spec = arm.trials[0].spec
            name = f"r={rank} alpha={spec.alpha:g} lr={spec.lr:g}"
            found.append((value, at_end(results, arm), name, less_best(results, arms, arm)))
    return unless_at_an_end(results, found)


def tuning_makes_worse(results: TaskResults) -> Verdict:
    """Whether every arm, at its best rate, ends below the base; and what its highest rate does."""

    def p_below(arm: Arm) -> float:
        return float((results.draws_of(arm) < 0).mean()) if arm.summary.expected else 1.0

    def listed(arms: Sequence[Arm]) -> str:
        return ", ".join(
            f"{arm.summary.label} {percent(p_below(arm)) if arm.summary.expected else 'diverged'}"
            for arm in arms
        )

    arms = standing(results)
    p = [p_below(arm) for arm in arms]
    likeliest = arms[p.index(max(p))]
    highest = [arm for arm in results.arms if arm.summary.lr == results.rates_of(arm)[-1]]
    told = f"below the base: {listed(arms)}; at the highest rate {listed(highest)}"
    effect = (f"{likeliest.summary.label} less the base", results.draws_of(likeliest))
    open_by = max(p) if max(p) < 0.5 else min(p)
    return verdict(results, min(p) >= LIKELY, max(p) <= UNLIKELY, told, effect, open_by)


def harm_is_mended(results: TaskResults) -> Verdict:
    """Whether a remedy forgets less than the plain arm scaled down to the same score."""
    trained = {arm.summary.label: arm.summary.forgetting for arm in results.arms}
    plain = {name: trained[name] for name in ("r=8 lr=0.001", "r=32 lr=0.001")}
    told = ", ".join(f"{name} forgets {interval(e)}" for name, e in plain.items() if e)
    compared = compare_mitigations(results.study, results.task)
    found = [c.difference for c in compared]
    told += " | less the scaled arm: "
    told += ", ".join(f"{c.label} {interval(c.difference)}" for c in compared) + " nats"
    seen = ", ".join(smallest(c.difference).removesuffix(" nats") for c in compared)
    if (harm := plain["r=32 lr=0.001"]) is None or not harm.is_above(0):
        return Verdict(UNTESTABLE, told, seen)
    # Holm's least p of all comparisons: twice the smaller tail, times the number of remedies that
    # were tried. One is no longer in the record; its interval held zero, so not all forget more.
    helps = any(2 * p_between(e, low=0) * REMEDIES_TRIED < 0.05 for e in found)
    return Verdict(judged(helps, False), told, seen)


def keeps_gain(cut: int, trained: int | None, against: int | None) -> Judge:
    """Whether the arm of rank ``trained``, every matrix cut to rank ``cut``, keeps 95 % of the gain
    of the arm of rank ``against`` on test items; seeds are paired."""

    def judge(results: TaskResults) -> Verdict:
        def scores(ids: Sequence[ScoredModel]) -> ScoreArray:
            found = scores_of_models(results.study, ids, results.task, "test")
            assert len(found) == len(ids), f"{results.task}: {len(found)} of {ids} are scored"
            return np.array([model.scores for model in found])

        def trials(rank: int | None) -> list[str]:
            arm = arm_of_rank(results, rank)
            return [t.spec.trial_id for t in sorted(arm.trials, key=lambda t: t.spec.seed)]

        (base,), whole = scores([BASE]), scores(trials(against))
        told, beyond = list[str](), dict[int, Estimate]()
        for rank in (1, 8, 32):
            kept = scores([Variant(trial, "truncated", rank) for trial in trials(trained)])
            beyond[rank] = paired_estimate(kept - 0.95 * whole, 0.05 * base)
            share = 100 * (kept - base).mean() / (whole - base).mean()
            near = percent(p_between(beyond[rank], low=0))
            told.append(f"to r={rank} {share:.0f} % kept, 95 % or more {near}")
        p = p_between(beyond[cut], low=0)
        what = f"{name_of(trained)} cut to r={cut}, less 95 % of the gain of {name_of(against)}"
        measured = f"{name_of(trained)}: {', '.join(told)} | {what}: {interval(beyond[cut])} nats"
        seen = smallest(beyond[cut]).removesuffix(" nats")
        return Verdict(judged(p >= LIKELY, p <= UNLIKELY), measured, seen)

    return judge


def variants_are_alike(results: TaskResults) -> Verdict:
    """Whether every method's best arm reaches the best of all."""
    by_method: dict[str, list[tuple[Arm, float]]] = {}
    found = [*p_within(results).values()]
    for arm, p in found:
        name = arm.summary.short_label if arm.trials[0].spec.peft else arm.summary.method
        by_method.setdefault(name, []).append((arm, p))
    nearest = {name: max(p for _, p in of) for name, of in by_method.items()}
    told = ", ".join(f"{name} {percent(p)}" for name, p in nearest.items())
    least = min(nearest, key=lambda name: nearest[name])
    p = nearest[least]
    shown, _ = max(by_method[least], key=lambda of: results.draws_of(of[0]).mean())
    effect = less_best(results, [arm for arm, _ in found], shown)
    return verdict(results, p >= LIKELY, p <= UNLIKELY, told, effect, p)


def methods_held_back(results: TaskResults) -> Verdict:
    """Whether at further rates every method but LoRA reaches the best; one that is best at an end
    of its list refutes nothing."""
    arms, within_margin = standing(results), p_within(results)
    found: dict[str, tuple[float, bool, str, Effect]] = {}
    for arm in arms:
        name = arm.summary.short_label if arm.trials[0].spec.peft else arm.summary.method
        label, effect = arm.summary.label, less_best(results, arms, arm)
        found.setdefault(name, (within_margin[label][1], at_end(results, arm), label, effect))
    return unless_at_an_end(results, [of for name, of in found.items() if name != "lora"])


balances_where_learned = where_learned(balances_best)
BALANCE = (balances_best, balances_where_learned)
"""Judges of net gains; all others are asked about the task."""
CLAIMS: list[tuple[str, str, str, Judge]] = [
    ("axes/rows-gsm8k", "Few rows do not want more rank", "axolotl's table", few_rows),
    (
        "axes/rows-gsm8k-gemma",
        "Few rows do not want more rank (Gemma 3 270M)",
        "axolotl's table",
        few_rows,
    ),
    ("axes/rows-arc", "Few rows do not want more rank (ARC-easy)", "axolotl's table", few_rows),
    (
        "axes/targets-gsm8k",
        "At equal parameters the MLP beats the attention by our margin",
        "PEFT's method comparison; LoRA Without Regret",
        mlp_beats_attention,
    ),
    (
        "axes/batch-gsm8k",
        "LoRA tolerates large batches less than full fine-tuning",
        "LoRA Without Regret",
        large_batches,
    ),
    ("claims/low-rates", "Rates of 1e-5 to 1e-4 suffice", "2512.15634", low_rates_suffice),
    *(
        (f"claims/paper-protocol{variant}", f"{claim} ({model})", "2512.15634", judge)
        for variant, model in (("", "SmolLM2"), (":gemma", "Gemma 3 270M"))
        for claim, judge in (
            ("r = 32 matches full fine-tuning", matches_full),
            ("r = 32 is the best balance", balances_best),
        )
    ),
    *(
        (f"claims/paper-protocol-seeds{variant}", f"{claim} ({model}, look 2)", "2512.15634", judge)
        for variant, model in (("", "SmolLM2"), (":gemma", "Gemma 3 270M"))
        for claim, judge in (
            ("r = 32 matches full fine-tuning", matches_full),
            ("r = 32 to 64 are the best balance", balances_best),
        )
    ),
    *(
        (f"claims/paper-protocol-recall{variant}", f"{claim} ({model})", "2512.15634", judge)
        for variant, model in (("", "Gemma 3 270M"), (":smollm2", "SmolLM2"))
        for claim, judge in (
            ("Recall hardly depends on the rank", where_learned(recall_ignores_rank, full=False)),
            ("Of recall, r = 32 is the best balance", balances_where_learned),
        )
    ),
    *(
        ("claims/paper-protocol-recall-seeds", f"{claim} (SmolLM2, look 2)", "2512.15634", judge)
        for claim, judge in (
            ("Recall hardly depends on the rank", where_learned(recall_ignores_rank)),
            ("Of recall, r = 32 to 64 are the best balance", balances_where_learned),
            ("Of recall, r = 32 matches full fine-tuning", where_learned(matches_full)),
        )
    ),
    (
        "claims/low-rank-in-effect",
        "A full update is low-rank in effect",
        "LoRA-Squeeze; mergekit",
        keeps_gain(8, None, None),
    ),
    (
        "claims/low-rank-in-effect",
        "A high rank cut down is as good as a low rank trained",
        "LoRA-Squeeze",
        keeps_gain(8, 128, 8),
    ),
    *(
        (
            f"claims/{study}",
            f"Once the rate is tuned, alpha is only another rate{look}",
            "2512.15634, open question 1",
            alpha_is_a_rate,
        )
        for study, look in (
            ("alpha-rates", ""),
            ("alpha-ranks", " (look 2)"),
            ("alpha-ranks:arc", " (ARC-easy, look 2)"),
        )
    ),
    *(
        (
            f"claims/known-task{study}",
            f"Tuning makes a base worse at a task that it knows{look}",
            "2512.15634",
            tuning_makes_worse,
        )
        for study, look in (("", ""), ("-full", " (look 2, with full fine-tuning)"))
    ),
    (
        "claims/medicine-to-maths",
        "The harm that medicine does to maths can be mended (Gemma 3 270M)",
        "2512.15634, open question 3",
        harm_is_mended,
    ),
    (
        "objectives/grpo-pocket",
        "Learning from rewards, rank 1 suffices, at two rates",
        "LoRA Without Regret",
        rank_suffices,
    ),
    (
        "objectives/grpo-pocket-rates",
        "There, rank 1 was held back by its rates alone",
        "",
        rates_held_back("grpo-pocket", 64),
    ),
    ("objectives/dpo-arc", "Learning from preferences, rank 1 suffices", "", rank_suffices),
    (
        "objectives/dpo-arc-rates",
        "There, rank 1 was held back by its rates alone",
        "",
        rates_held_back("dpo-arc", 8),
    ),
    (
        "objectives/grpo-boolq",
        "On a real model, rank 1 learns a loophole of the reward as well",
        "",
        rank_suffices,
    ),
    (
        "claims/methods",
        "Variants of LoRA are alike, each at the best rate tried",
        "2602.04998",
        variants_are_alike,
    ),
    (
        "claims/methods-rates",
        "AdaLoRA, VeRA and LoRA+ were behind LoRA by their rates alone",
        "",
        methods_held_back,
    ),
]
"""Study file, and after a colon the variant of it that ran; claim, source and judge."""


@cache
def results_of(records: Path, *, is_balance: bool) -> dict[str, TaskResults]:
    """The posteriors of a kept study by training task: of net gains, as its own page has them, or,
    if no balance is asked for, of gains on the task."""
    study = kept_study(records)
    if not is_balance:
        objective = study.config.objective.model_copy(update={"retention": 0.0})
        config = study.config.model_copy(update={"objective": objective})
        study = replace(study, config=config)
    return {task: task_results(study, task, a) for task, a in summarize_arms(study).items()}


def arms_table(results: TaskResults) -> list[str]:
    """Expected net gains, highest first, each configuration at its best rate."""
    rows = [
        "| arm | seeds | expected gain | expected net gain | within the margin |",
        "|---" * 5 + "|",
    ]
    for arm in results.candidates:
        of, s = expected(arm.summary), arm.summary
        gain, net = shown(of.changes[results.task], results.unit), shown(of.net, results.net_unit)
        rows.append(f"| {s.label} | {s.seeds} | {gain} | {net} | {percent(of.p_within_margin)} |")
    return rows


def numbers(records: Path = RECORDS) -> dict[Path, str]:
    """The generated part of the page."""
    verdicts = [
        RULE,
        "",
        "| claim | verdict | probabilities | decided by | detectable | would settle | study |",
        "|---|---|---|---|---|---|---|",
    ]
    parts: list[str] = []
    for place, claim, source, judge in CLAIMS:
        name = place.rpartition("/")[2].replace(":", "-")
        if not (records / name).is_dir():
            continue
        by_task = results_of(records / name, is_balance=judge in BALANCE)
        seconds = json.loads((records / name / "study.json").read_text("utf-8"))["seconds"]
        for task, results in by_task.items():
            title = f"{name}, {task}" if len(by_task) > 1 else name
            found = judge(results)
            asked = f"{claim} ({source})" if source else claim
            link = f"[{title}](../{place.partition(':')[0]}.yaml)"
            cells = (asked, f"**{found.verdict}**", found.measured, found.detectable,
                     found.would_settle, f"{link}, {seconds / 60:.0f} min")  # fmt: skip
            verdicts.append(f"| {' | '.join(cells)} |")
            if f"## {title}" in parts:  # of an earlier claim
                continue
            net = results_of(records / name, is_balance=True)[task]
            parts += ["", f"## {title}", "", *arms_table(net)]
            parts += ["", *(f"- {text}" for text in axis_texts(net))]
    return {PAGE: "\n".join([*verdicts, *parts]).strip("\n")}


if __name__ == "__main__":
    for page, text in numbers().items():
        page.write_text(with_numbers(page.read_text("utf-8"), text, Path(__file__).name), "utf-8")
