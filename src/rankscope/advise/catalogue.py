"""Every reason, diagnostic, caveat and next step of the advice: kind, condition and text.

A text is a ``str.format`` template; ``messages.py`` lists its formats, such as ``{gain:change}``.
Each fact has one entry. A caveat names a limit of the evidence, a next step says what to do about
it, and a diagnostic does both.
"""

from typing import NamedTuple

from rankscope.records import AdviceKind


class MessageTemplate(NamedTuple):
    kind: AdviceKind
    condition: str
    text: str


_BY_KIND: dict[AdviceKind, dict[str, tuple[str, str]]] = {
    # Reasons for a decision.
    "gain": {
        "gain": (
            "base and arm have test scores",
            "{arm} scores {score:score} on {task} and the base {base:score}: {gain:change} "
            "({gain:evidence}).",
        ),
        "best_gain": (
            "no gain is shown, and another arm had the highest utility",
            "{arm}, which has the highest utility on the validation split, scores {gain:change} "
            "against the base ({gain:evidence}).",
        ),
        "largest_gain": (
            "no gain is shown, and an untested arm has the largest one",
            "{arm}, not chosen on the validation split, scores the most of {arms} on the test "
            "split: {gain:change} against the base ({gain:evidence}).",
        ),
    },
    "full": {
        "full": (
            "LoRA and full fine-tuning share test items",
            "Against {rival} it scores {gap:change} ({gap:evidence}): {verdict}.",
        ),
        "full_retention": (
            "both arms have forgetting scores as well",
            "Against {rival} it scores {gap:change} ({gap:evidence}): {verdict}. Its retention is "
            "{forgetting_gap:reverse} against it.",
        ),
    },
    "forgetting": {
        "forgets": (
            "retention falls",
            "On the retention tasks it loses {forgetting:amount} ({forgetting:evidence}; a loss "
            "counts as positive){unclear}: {tasks}.",
        ),
        "improves": (
            "retention rises",
            "On the retention tasks it gains {forgetting:amount} "
            "({forgetting:reverse_evidence}){unclear}: {tasks}.",
        ),
    },
    "transfer": {
        "transfer": (
            "other tasks have test scores",
            "On other tasks it changes the score by: {tasks}.",
        ),
    },
    "cost": {
        "cost": (
            "always",
            "It trains {trainable_parameters}{details}.",
        ),
    },
    "choice": {
        "best_is_chosen": (
            "no smaller rank comes close",
            "On the validation split {best} has the highest utility ({formula}), "
            "{best_utility:.3f}; no {smaller}.",
        ),
        "smaller_is_chosen": (
            "a smaller rank is within the margin of the best arm",
            "On the validation split {best} has the highest utility ({formula}), "
            "{best_utility:.3f}; {chosen} has {chosen_utility:.3f} and is the smallest "
            "rank{counted} within {margin:g} of it.",
        ),
        "smaller_on_test": (
            "the same, and both have test scores",
            "On the test split {chosen} scores {gap_to_best:change} against {best} "
            "({gap_to_best:evidence}): as good within {margin:amount} is{negation} shown.",
        ),
        "net": (
            "forgetting has a weight and was measured",
            "By the study's weights (gain x {gain_weight:g} - forgetting x {forgetting_weight:g}) "
            "it is worth {net:change} ({net:evidence}){unclear}.",
        ),
    },
    "diagnostic": {
        "worse_than_base": (
            "arms are significantly below the base",
            "{worse} of {arms} are worse than the base on {task} (significant after Holm's "
            "correction for all arms and tasks). The worst, {arm}, scores {worst_gain:amount} "
            "less. Next: a learning rate below {lowest_lr:g}, fewer steps, and a check of prompts "
            "and labels.",
        ),
        "saturated": (
            "the base scores 95 % or more",
            "The base already scores {base:score} on {task}: at most {left:amount} are left to "
            "gain. Next: a harder task, or the base as it is.",
        ),
        "negative_transfer": (
            "another task falls significantly, by more than a tenth of the base's score",
            "Negative transfer: {other} falls by {change:amount}, {percent} of the base's "
            "{base:score}. Next: scale the update down at inference, a smaller rank or learning "
            "rate, or training on both tasks.",
        ),
        "over_forgetting": (
            "clear forgetting of half the gain, or of a tenth of the base's score",
            "Over-forgetting: {arm} loses {forgetting:amount} on the retention tasks for "
            "{gain:change} on {task}. Next: scale the update down at inference (no training "
            "needed), then a lower learning rate, fewer steps, or general data among the training "
            "rows.",
        ),
        "large_adapter": (
            "over 100 trainable parameters per answer token",
            "The adapter is large for the data: {parameters} for about {tokens:,.0f} answer "
            "tokens ({ratio:,.0f} to one), enough to memorize them. Next: a smaller rank{hint}, "
            "fewer epochs, dropout, or more rows.",
        ),
        "small_adapter": (
            "fewer trainable parameters than answer tokens",
            "The adapter is small for the data: {parameters} for about {tokens:,.0f} answer "
            "tokens; the capacity rule asks for one parameter per token. Next: a larger rank, or "
            "more target modules.",
        ),
        "flat_ranks": (
            "scores of all ranks are within the margin",
            "From r={low_rank} to r={high_rank} the validation score moves by only "
            "{spread:amount}: on this task the rank hardly matters. Next: take the smallest rank "
            "and tune the learning rate.",
        ),
        "ranks_without_order": (
            "four or more ranks without order",
            "No pattern across ranks: from r={low_rank} to r={high_rank} the validation score "
            "moves by {spread:amount} without order (Spearman {spearman:+.2f}). Noise or the "
            "learning rate matters more than the rank. Next: a list of learning rates for every "
            "rank, and more seeds.",
        ),
        "falling_ranks": (
            "scores fall with the rank",
            "The validation score falls with the rank (r={low_rank} to r={high_rank}: "
            "{change:change}). The learning rate may be too high for the larger ranks, or they "
            "overfit. Next: lower learning rates, fewer epochs.",
        ),
        "underfitting": (
            "the smallest rank is significantly below the largest",
            "Small ranks underfit: on the test split r={small_rank} is below r={rank} by "
            "{underfit:amount} ({underfit:evidence}). Next: ranks above r={small_rank}, or a "
            "higher learning rate for it.",
        ),
        "underfitting_rising": (
            "the same, and the two largest ranks differ significantly too",
            "Small ranks underfit: on the test split r={small_rank} is below r={rank} by "
            "{underfit:amount} ({underfit:evidence}), and the score still rises at r={rank}. "
            "Next: add r={next_rank}.",
        ),
    },
    "caveat": {
        "few_seeds": (
            "fewer than three seeds",
            "{arm} was trained with {seeds}. Fewer than {firm_seeds} do not show how much "
            "training itself varies, so no answer can be firm.",
        ),
        "failed_trials": (
            "trials failed",
            "{failed} of {trials} failed ({named}). Each counts as no gain when arms are compared.",
        ),
        "passed_over": (
            "failed trials cost an arm its lead",
            "Without its failed trials {arm} would have a higher utility than the LoRA arms it is "
            "compared with. It may be worth another try.",
        ),
        "waiting_trials": (
            "trials have not run",
            "{waiting} of {trials} have not run yet.",
        ),
        "one_rate": (
            "ranks share one learning rate",
            "{ranks} were trained at one learning rate ({lr:g}), so a difference between ranks "
            "may be one between learning rates. Give lr a list.",
        ),
        "unequal_rates": (
            "ranks have different learning rates",
            "Ranks were not trained at the same learning rates ({named}), so a difference between "
            "ranks may be one between learning rates. Give all ranks the same list.",
        ),
        "rate_at_edge": (
            "the chosen learning rate ends its list",
            "The learning rate chosen for {arm} is the {side} of the {rates_tried} tried: a "
            "{better} one may do better.",
        ),
        "smallest_rank": (
            "the arm has the smallest rank of several",
            "r={rank} is the smallest rank tried: a smaller one may be enough.",
        ),
        "largest_rank": (
            "the arm has the largest rank of several",
            "r={rank} is the largest rank tried: a larger one may gain more.",
        ),
        "contamination": (
            "test rows were found among the training rows",
            "Some of the {rows} of {task} are also training rows ({named}), so its scores are too "
            "high. Remove those rows from one of the two splits.",
        ),
        "no_retention": (
            "no retention task",
            "Forgetting was not measured.{limit}",
        ),
        "unscored_retention": (
            "retention tasks without shared scores",
            "Forgetting is unknown: the retention tasks have no scores yet.{limit}",
        ),
        "retention_at_chance": (
            "the base only guesses on a retention task",
            "The base is at chance on {other} ({base:score}; guessing gives {chance:score}), so "
            "forgetting cannot show there. Use a retention task that the base knows.",
        ),
        "over_limit": (
            "arms exceed the limit on forgetting",
            "{excluded} of {arms} forgot more than the {max_forgetting:amount} allowed on the "
            "validation split and {were} left out: {named}.",
        ),
        "limit_not_shown": (
            "the interval of forgetting reaches over the limit",
            "That {arm} forgets no more than the {max_forgetting:amount} allowed is not shown: on "
            "the test split retention changes by {forgetting:reverse} "
            "({forgetting:reverse_evidence}).",
        ),
        "different_units": (
            "gain and forgetting have different units",
            "The gain on {task} and the forgetting have different units and cannot be added: "
            "forgetting {role}.",
        ),
        "detectable": (
            "the spread over items is known",
            "With {n} and {seeds} a difference of about {detectable:amount} between {arm} and "
            "{rival} would be seen four times out of five; a smaller one may go unseen.",
        ),
    },
    # Next steps.
    "items": {
        "enough_data": (
            "items and seeds already suffice",
            "These items and seeds would already show {effect} four times out of five; collecting "
            "more will not settle this.",
        ),
        "items_or_seeds": (
            "either alone suffices",
            "About {items} would show {effect} with the current seeds; {seeds} would with the "
            "current items.",
        ),
        "items": (
            "more items suffice, more seeds do not",
            "About {items} would show {effect} with the current seeds; more seeds alone would not.",
        ),
        "items_one_model": (
            "one seed",
            "About {items} would show {effect} for this one trained model; one seed does not show "
            "how much seeds vary.",
        ),
        "items_too_many": (
            "over a million items",
            "No practical number of test items would show {effect}.",
        ),
        "items_and_seeds": (
            "only both together suffice",
            "About {items} and {seeds} together would show {effect}; neither alone would.",
        ),
        "never": (
            "over 200 seeds",
            "The seeds differ too much: no practical number of items and seeds would show "
            "{effect}.",
        ),
        "items_guessed": (
            "too few items to know their spread, right-or-wrong scores",
            "With fewer than {fewest_items} items no test can decide. About {items} would show "
            "{effect}, if the models differed on {discordance} of them.",
        ),
        "items_unknown": (
            "the spread over items is unknown",
            "How many test items would show {effect} is unknown: it depends on how much their "
            "changes vary.",
        ),
    },
    "seeds": {
        "more_seeds": (
            "fewer than three seeds",
            "Train {missing}.",
        ),
        "seeds": (
            "more seeds suffice, more items do not",
            "{seeds} would show {effect} with the current items; more items alone would not, "
            "because {why}.",
        ),
    },
    "learning_rate": {
        "lower_rate": (
            "all trials failed, some diverged",
            "{diverged} diverged: try a learning rate of {lr:.3g} or less.",
        ),
        "add_rates": (
            "one learning rate was tried",
            "Only one learning rate was tried for it ({lr:g}): add {lower:.2g} and {higher:.2g}.",
        ),
        "extend_rates": (
            "the chosen learning rate ends its list",
            "Add the learning rate {next:.2g}.",
        ),
    },
    "runs": {
        "continue": (
            "trials have not run",
            "Run the study again: it continues with the remaining {waiting}.",
        ),
        "less_memory": (
            "all trials failed, some out of memory",
            "{oom} ran out of memory: try {settings}, and run again with --retry-failed.",
        ),
        "fix_error": (
            "all trials failed, some with an error",
            "{failed} ended in an error, first {trial} ({why}): fix its cause, and run again with "
            "--retry-failed.",
        ),
    },
    "retention": {
        "add_retention": (
            "no retention task",
            "Add a retention task to the study file.",
        ),
        "score_retention": (
            "retention tasks without shared scores",
            "Score the base and this arm on the same items of every retention task.",
        ),
        "set_limit": (
            "forgetting has another unit than the gain, and no limit",
            "Set objective.max_forgetting: forgetting in another unit than the gain can still be "
            "held to a limit.",
        ),
    },
}
"""Kind -> name -> when the message is given, and its text."""

CATALOGUE = {
    name: MessageTemplate(kind, condition, text)
    for kind, entries in _BY_KIND.items()
    for name, (condition, text) in entries.items()
}
