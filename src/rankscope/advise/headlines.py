"""The answer to one training task in one sentence, and the clauses that it is built from."""

from rankscope.advise.messages import Field

HEADLINES = {
    "no_arms": "No arm was trained on {task}: only the base has scores.",
    "none_finished": "No trial on {task} has finished: {failed} failed, {waiting} still to run.",
    "none_scored": (
        "{done} on {task} finished, but none has a score on the validation split. Run the study "
        "again to evaluate."
    ),
    "all_over_limit": (
        "Use none of these arms on {task}: each forgets more than the {limit:amount} allowed. "
        "{arm} forgets least and loses {forgetting:amount} on the validation split. A lower "
        "learning rate, fewer steps or a scaled-down adapter may stay within the limit."
    ),
    "no_shared_items": (
        "Too little data to decide on {task}: the base and the arm share no scored test item."
    ),
    "few_items": "Too little data to decide on {task}: only {items}.",
    "equal_changes": (
        "Nothing can be tested on {task}: all {items} changed by the same {gain:change}, so the "
        "spread over other items is unknown. Check the scores first."
    ),
    "gain_unclear": "The data cannot tell whether fine-tuning helps on {task}: {tested}.",
    "no_gain": "Do not fine-tune on {task} with these settings: {tested}; {possible}.",
    "not_worth_it": (
        "By this study's weights ({formula}) no arm is worth it on {task}, not even {arm}: "
        "{changes}."
    ),
    "use": "Use {arm} for {task}: {result}.",
    "use_despite_full": (
        "Use {arm} for {task}: {result}; full fine-tuning led on the validation split, but the "
        "test split does not confirm its lead."
    ),
    "use_full": "Use {arm} for {task}: {result}; {why}.",
    "over_limit_on_test": (
        "No arm can be recommended for {task}: {arm}, chosen on the validation split, loses "
        "{forgetting:amount} on the retention tasks of the test split; {limit:amount} is allowed."
    ),
    "not_worth_it_on_test": (
        "By this study's weights ({formula}) {arm}, chosen on the validation split, is not worth "
        "it on {task}: {changes}."
    ),
    "worth_unclear": (
        "The data cannot tell whether {arm} is worth what it forgets on {task}: {changes}; by the "
        "study's weights that is {net:change} in all."
    ),
}

CLAUSES = {
    "one_tested": "the arm chosen on the validation split, {arm}, is not shown to beat the base",
    "two_tested": (
        "the arm chosen on the validation split, {arm}, and the arm with the highest utility "
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
    "retention_unknown": "; forgetting was not measured",
    "unclear": ", not clear of zero",
}
"""Parts of headlines and of longer messages."""


def clause(name: str, **fields: Field) -> str:
    """The clause ``name`` with its fields filled in."""
    return CLAUSES[name].format_map(fields)
