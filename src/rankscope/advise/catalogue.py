"""Every sentence of the advice.

Texts are ``str.format`` templates; ``messages.py`` lists their formats, such as ``{gain:change}``.
Each fact has one entry. A caveat names a limit of the evidence, a next step gives what to do about
it, and a diagnostic does both.
"""

from rankscope.records import AdviceKind

OUTCOMES = {
    "no_arms": ("no arm was trained", "Only the base has scores on {task}."),
    "none_finished": (
        "no trial has finished",
        "Of the trials on {task}, {failed} failed and {waiting} are still to run.",
    ),
    "none_scored": (
        "no arm has validation scores",
        "{done} on {task} finished without them. Run the study again to evaluate.",
    ),
    "all_over_limit": (
        "every arm forgets too much",
        "Each arm forgets more than the {limit:amount} allowed. {arm} forgets least and loses "
        "{forgetting:amount} on the validation split. A lower learning rate, fewer steps or a "
        "scaled-down adapter may stay within the limit.",
    ),
    "no_shared_items": (
        "no test item has both scores",
        "The base and {arm} share no scored test item of {task}.",
    ),
    "few_items": ("only {items}", "No test can decide with only {items} of {task}."),
    "few_data": (
        "{items} and {seeds} are too few",
        "{items} and {seeds} cannot show what other items and seeds would give. Measured so far, "
        "{arm}: {changes}.",
    ),
    "few_steps": (
        "{steps}, and the loss still falls",
        "{arm} was trained for {steps} and its loss still falls, from {loss_before:.3g} to "
        "{loss_after:.3g}, so the order of the arms can change: {changes}.",
    ),
    "very_few_steps": (
        "only {steps}",
        "{arm} was trained for {steps}, too few to see whether its loss has levelled off, so the "
        "order of the arms can change: {changes}.",
    ),
    "equal_changes": (
        "every test item changed alike",
        "Of {task}, all {items} changed by the same {gain:change}, so the spread over other items "
        "is unknown. Check the scores first.",
    ),
    "gain_unclear": (
        "no arm is shown to beat the base",
        "The data cannot tell whether fine-tuning helps on {task}: {tested}.",
    ),
    "no_gain": ("no arm beats the base", "With these settings {tested}; {possible}."),
    "not_worth_it": (
        "forgetting outweighs the gain",
        "By this study's weights ({formula}) no arm is worth it on {task}, not even {arm}: "
        "{changes}.",
    ),
    "use": ("", "{arm}: {result}."),
    "use_despite_full": (
        "",
        "{arm}: {result}. Full fine-tuning led on the validation split, but the test split does "
        "not confirm its lead.",
    ),
    "use_full": ("", "{arm}: {result}; {why}."),
    "over_limit_on_test": (
        "forgetting exceeds the limit on the test split",
        "{arm}, chosen on the validation split, loses {forgetting:amount} on the retention tasks "
        "of the test split; {limit:amount} is allowed.",
    ),
    "not_worth_it_on_test": (
        "forgetting outweighs the gain",
        "By this study's weights ({formula}) {arm}, chosen on the validation split, is not worth "
        "it on {task}: {changes}.",
    ),
    "worth_unclear": ("the gain may not outweigh the forgetting", "{arm}: {changes}."),
}
"""How one training task ends: the verdict's reason in a few words, and the explanation."""

CLAUSES = {
    "one_tested": "the arm chosen on the validation split, {arm}, is not shown to beat the base",
    "two_tested": (
        "the arm chosen on the validation split, {arm}, and the arm with the highest net gain "
        "there, {best}, are not shown to beat the base"
    ),
    "gain_ruled_out": "gains of {margin:amount} are ruled out for {arms}",
    "gain_possible": "a gain up to {highest:amount} cannot be ruled out",
    "gain_unknown": "how large a gain is possible is unknown",
    "lora_missing": "no LoRA arm was left to compare",
    "lora_worse": "the best LoRA arm, {lora}: {changes}",
    "lora_scores_lower": (
        "the best LoRA arm, {lora}: {changes}; its score is clearly lower, but by the study's "
        "weights the difference is not clear of zero"
    ),
    "lora_unproven": (
        "the best LoRA arm on the validation split, {lora}, is not shown to beat the base"
    ),
    "lora_not_worth_it": (
        "the best LoRA arm on the validation split, {lora}, is not worth it by this study's "
        "weights ({formula})"
    ),
    "score": "its score is {score:score}, {gain:change} against the base",
    "gain": "{gain:change} against the base",
    "retention": "retention changes by {forgetting:reverse}",
    "retention_unsettled": "retention may change by {forgetting:range}",
    "retention_unknown": "; forgetting was not measured",
    "net": ": net gain {net:change}",
    "few_seeds": "it rests on {seeds}",
    "failed_seeds": "{failed} of its trials failed",
    "waiting_trials": "not every trial has run",
    "contaminated": "more than 1 % of the test rows are also in the training rows",
    "net_reaches_zero": "the interval reaches zero",
    "over_limit_possible": "it may forget more than the study allows",
    "forgetting_unscored": "its forgetting was not scored",
    "forgetting_below_chance": (
        "the right answers became less likely on retention tasks on which the base is not shown to "
        "be above chance"
    ),
    "carried": (
        " The log-probability of the right answers decides: it changes by {in_nats:reverse} "
        "({in_nats:reverse_evidence})."
    ),
    "not_carried": " Use a retention task that the base knows.",
    "unclear": ", not clear of zero",
}
"""Parts of explanations and of longer messages."""

CLAIMS = {
    "better": "{arm} is better than the base: {net} {difference:change} ({difference:interval}).",
    "better_unclear": (
        "{arm} is probably better than the base: {net} {difference:change} "
        "({difference:interval}). What keeps this from being certain: {doubts}."
    ),
    "no_arm_better": "No arm is shown to be better than the base.",
    "measured": "Measured so far, {arm} has a {net} of {difference:change} "
    "({difference:interval}).",
    "not_better": (
        "{arm} is not shown to be better than the base: {net} {difference:change} "
        "({difference:interval})."
    ),
    "not_compared": "The arms cannot be compared yet.",
    "only_arm": "No other arm was tried.",
    "best": (
        "No tried arm has a {net} more than {margin:amount} higher: even at the upper end of its "
        "interval the closest, {rival}, is only {difference:highest} higher."
    ),
    "best_clearly": (
        "No tried arm has a higher {net}: the closest, {rival}, trails by at least "
        "{difference:highest}."
    ),
    "best_unclear": (
        "{rival} may have a {net} more than {margin:amount} higher: the difference is "
        "{difference:change} ({difference:interval})."
    ),
    "best_unknown": "{unknown} has no score, so it may be better.",
    "best_left_out": (
        "{unscored} without test scores, behind on the validation split, may still be better."
    ),
    "best_contradicted": (
        "On the test split the {net} of {rival} is {difference:amount} higher "
        "({difference:interval}). The test split does not choose, so train more seeds of both."
    ),
    "base_best": "No tried arm is better than the base by {margin:amount}.",
    "base_best_unclear": "A tried arm may still be better than the base by {margin:amount}.",
}
"""The two claims of an answer."""

CHECKS = {
    "seeds.fine": "Enough to see how much training itself varies.",
    "seeds.bad": (
        "Fewer than {fewest_seeds} do not show how much training itself varies, so no answer can "
        "be firm."
    ),
    "items.seen": (
        "A difference of about {detectable:amount} between {arm} and {rival} would be seen four "
        "times out of five; a smaller one may go unseen."
    ),
    "items.unknown": "How large a difference would be seen is unknown.",
    "items.few": "Too few to tell a difference from chance.",
    "retention.fine": "The base is above chance on the retention tasks.",
    "retention.logprob": "The right answers' log-probability shows it, above chance or not.",
    "retention.text": "Forgetting is measured by the likelihood of text.",
    "retention.wide": (
        "Retention is only known to change by {forgetting:range}, so a zero change tells you "
        "nothing."
    ),
    "retention.chance": (
        "The base is not shown to be above chance on {named}, so accuracy cannot show forgetting "
        "there.{carried}"
    ),
    "retention.none": "The study has no retention task.{limit}",
    "retention.unscored": "The retention tasks have no scores yet.{limit}",
    "contamination.fine": "No test row overlaps the training set.",
    "contamination.weak": (
        "{rows} of {test_rows} overlap the training set ({named}), so the scores are too high. "
        "Remove those rows from one of the two splits."
    ),
    "learning_rate.fine": "The chosen rate lies inside the {rates_tried} tried.",
    "learning_rate.edge": (
        "The chosen rate is the {side} of the {rates_tried} tried: a {better} one may do better."
    ),
    "learning_rate.one": "Only one rate was tried for it, so another one may do better.",
    "loss.fine": "The training loss has levelled off by the end of {steps}.",
    "loss.unknown": (
        "Too few to see whether the training loss has levelled off: longer training may change "
        "the order of arms."
    ),
    "loss.falling": (
        "The training loss still falls at the end of {steps}, from {loss_before:.3g} to "
        "{loss_after:.3g} over the last two thirds: longer training may change the order of arms."
    ),
    "trials.fine": "Every trial finished.",
    "trials.left_out": (
        "The study was adaptive: {stopped} stopped at a rung and {skipped} never began, because "
        "other arms had better validation scores or the budget was spent. Training took {percent} "
        "of the grid's tokens."
    ),
    "trials.failed": (
        "{failed} of {trials} failed ({named}). Each counts as no gain when arms are compared."
    ),
    "trials.waiting": "{waiting} of {trials} have not run yet.",
}
"""What a trust check means, by its name and what was found."""

_BY_KIND: dict[AdviceKind, dict[str, str]] = {
    # Reasons for a decision.
    "gain": {
        "gain": (
            "{arm} scores {score:score} on {task} and the base {base:score}: {gain:change} "
            "({gain:evidence})."
        ),
        "best_gain": (
            "{arm}, which has the highest net gain on the validation split, scores {gain:change} "
            "against the base ({gain:evidence})."
        ),
        "largest_gain": (
            "{arm}, not chosen on the validation split, scores the most of {arms} on the test "
            "split: {gain:change} against the base ({gain:evidence})."
        ),
    },
    "full": {
        "full": "Against {rival} it scores {gap:change} ({gap:evidence}): {verdict}.",
        "full_retention": (
            "Against {rival} it scores {gap:change} ({gap:evidence}): {verdict}. Its retention is "
            "{forgetting_gap:reverse} against it."
        ),
    },
    "forgetting": {
        "retention": (
            "On the retention tasks its score changes by {forgetting:reverse} "
            "({forgetting:reverse_evidence}){unclear}: {tasks}."
        ),
        "gold_logprob": (
            "The right answers' log-probability on the retention tasks changes by "
            "{logprob_forgetting:reverse} ({logprob_forgetting:reverse_evidence}){unclear}; this "
            "is weighed against the gain."
        ),
    },
    "transfer": {"transfer": "On other tasks it changes the score by: {tasks}."},
    "cost": {"cost": "It trains {trainable_parameters}{details}."},
    "choice": {
        "best_is_chosen": (
            "On the validation split {best} has the highest net gain ({formula}), "
            "{best_net:change}; no {smaller}."
        ),
        "smaller_is_chosen": (
            "On the validation split {best} has the highest net gain ({formula}), "
            "{best_net:change}; {chosen} has {chosen_net:change} and is the smallest "
            "rank{counted} within {margin:amount} of it."
        ),
    },
    # Failure patterns, each with the next step to try.
    "diagnostic": {
        "worse_than_base": (
            "{worse} of {arms} are worse than the base on {task} (significant after Holm's "
            "correction for all arms and tasks). The worst, {arm}, scores {worst_gain:amount} "
            "less. Next: a learning rate below {lowest_lr:g}, fewer steps, and a check of prompts "
            "and labels."
        ),
        "saturated": (
            "The base already scores {base:score} on {task}: at most {left:amount} are left to "
            "gain. Next: a harder task, or the base as it is."
        ),
        "negative_transfer": (
            "Negative transfer: {other} falls by {change:amount}, {percent} of the base's "
            "{base:score}. Next: scale the update down at inference, a smaller rank or learning "
            "rate, or training on both tasks."
        ),
        "over_forgetting": (
            "Over-forgetting: {arm} loses {forgetting:amount} on the retention tasks for "
            "{gain:change} on {task}. Next: scale the update down at inference (no training "
            "needed), then a lower learning rate, fewer steps, or general data among the training "
            "rows."
        ),
        "large_adapter": (
            "The adapter is large for the data: {parameters} for about {tokens:,.0f} answer "
            "tokens ({ratio:,.0f} to one), enough to memorize them. Next: a smaller rank{hint}, "
            "fewer epochs, dropout, or more rows."
        ),
        "small_adapter": (
            "The adapter is small for the data: {parameters} for about {tokens:,.0f} answer "
            "tokens; the capacity rule asks for one parameter per token. Next: a larger rank, or "
            "more target modules."
        ),
        "flat_ranks": (
            "From r={low_rank} to r={high_rank} the validation score moves by only "
            "{spread:amount}: on this task the rank hardly matters. Next: take the smallest rank "
            "and tune the learning rate."
        ),
        "ranks_without_order": (
            "No pattern across ranks: from r={low_rank} to r={high_rank} the validation score "
            "moves by {spread:amount} without order (Spearman {spearman:+.2f}). Noise or the "
            "learning rate matters more than the rank. Next: a list of learning rates for every "
            "rank, and more seeds."
        ),
        "falling_ranks": (
            "The validation score falls with the rank (r={low_rank} to r={high_rank}: "
            "{change:change}). The learning rate may be too high for the larger ranks, or they "
            "overfit. Next: lower learning rates, fewer epochs."
        ),
        "underfitting": (
            "Small ranks underfit: on the test split r={small_rank} is below r={rank} by "
            "{underfit:amount} ({underfit:evidence}). Next: ranks above r={small_rank}, or a "
            "higher learning rate for it."
        ),
        "underfitting_rising": (
            "Small ranks underfit: on the test split r={small_rank} is below r={rank} by "
            "{underfit:amount} ({underfit:evidence}), and the score still rises at r={rank}. "
            "Next: add r={next_rank}."
        ),
    },
    # Limits of the evidence.
    "caveat": {
        "passed_over": (
            "Without its failed trials {arm} would have a higher net gain than the LoRA arms it is "
            "compared with. It may be worth another try."
        ),
        "one_rate": (
            "{all_ranks} were trained at one learning rate ({lr:g}), so a difference between ranks "
            "may be one between learning rates. Give lr a list."
        ),
        "unequal_rates": (
            "Ranks were not trained at the same learning rates ({named}), so a difference between "
            "ranks may be one between learning rates. Give all ranks the same list."
        ),
        "smallest_rank": "r={rank} is the smallest rank tried: a smaller one may be enough.",
        "largest_rank": "r={rank} is the largest rank tried: a larger one may gain more.",
        "over_limit": (
            "{excluded} of {arms} forgot more than the {max_forgetting:amount} allowed on the "
            "validation split and {were} left out: {named}."
        ),
        "limit_not_shown": (
            "That {arm} forgets no more than the {max_forgetting:amount} allowed is not shown: on "
            "the test split retention changes by {forgetting:reverse} "
            "({forgetting:reverse_evidence})."
        ),
    },
    # Next steps.
    "items": {
        "enough_data": (
            "These items and seeds would already show {claim} four times out of five; collecting "
            "more will not settle this."
        ),
        "items_or_seeds": (
            "About {items} would show {claim} with the current seeds; {seeds} would with the "
            "current items."
        ),
        "items": (
            "About {items} would show {claim} with the current seeds; more seeds alone would not."
        ),
        "items_one_model": (
            "About {items} would show {claim} for this one trained model; one seed does not show "
            "how much seeds vary."
        ),
        "too_small": (
            "The difference is too small to settle with more items: showing {claim} would take "
            "more than {most_times} times as many."
        ),
        "items_and_seeds": (
            "About {items} and {seeds} together would show {claim}; neither alone would."
        ),
        "never": (
            "The seeds differ too much: no practical number of items and seeds would show {claim}."
        ),
        "items_guessed": (
            "With fewer than {fewest_items} items no test can decide. About {items} would show "
            "{claim}, if the models differed on {percent} of them."
        ),
        "items_unknown": (
            "How many test items would show {claim} is unknown: it depends on how much their "
            "changes vary."
        ),
    },
    "steps": {"more_steps": "Train at least {fewest_steps} steps, until the loss no longer falls."},
    "seeds": {
        "more_seeds": "Train {missing}.",
        "seeds": (
            "{seeds} would show {claim} with the current items; more items alone would not, "
            "because {why}."
        ),
    },
    "learning_rate": {
        "lower_rate": "{diverged} diverged: try a learning rate of {lr:.3g} or less.",
        "add_rates": (
            "Only one learning rate was tried for it ({lr:g}): add {lower:.2g} and {higher:.2g}."
        ),
        "extend_rates": "Add the learning rate {next:.2g}.",
    },
    "runs": {
        "continue": "Run the study again: it continues with the remaining {waiting}.",
        "less_memory": ("{oom} ran out of memory: try {settings}, and run again with --retry oom."),
        "fix_error": (
            "{failed} ended in an error, first {trial} ({why}): fix its cause, and run again with "
            "--retry failed."
        ),
    },
    "retention": {
        "add_retention": "Add a retention task to the study file.",
        "score_retention": "Score the base and this arm on the same items of every retention task.",
    },
}

CATALOGUE = {name: (kind, text) for kind, texts in _BY_KIND.items() for name, text in texts.items()}
"""Name of a message -> its kind and text."""
