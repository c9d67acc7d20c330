"""One task under many models: records, errors, and models that do not disturb each other."""

import dataclasses
import math
from pathlib import Path

import pytest
from evaluation_worlds import (
    adapter,
    base,
    choice_items,
    encoder,
    lettered,
    loaded,
    number_items,
    text_items,
)

from rankscope.config.study import EvaluateConfig
from rankscope.errors import NotFiniteError, UserError
from rankscope.evaluate.evaluator import evaluate_task, evaluate_with_failures
from rankscope.records import BASE, read_items, write_items

SETTINGS = EvaluateConfig(batch_tokens=64, max_new_tokens=12)


TASKS = {
    "option_text": loaded(choice_items(), "option_text"),
    "option_letter": loaded(lettered(choice_items()), "option_letter", "{question}\n{options}"),
    "number": loaded(number_items(), "number"),
    "exact_match": loaded(number_items(), "exact_match"),
    "loss": loaded(text_items(), "loss"),
}


@pytest.mark.parametrize("scorer", TASKS)
def test_zero_adapter_equals_base_bit_for_bit(scorer: str) -> None:
    engine = base()
    zero = adapter(engine, 4, seed=0, size=0.0)
    other = adapter(engine, 8, seed=1)
    engine.multi_lora.attach(zero)
    engine.multi_lora.attach(other)
    models = {None: BASE, zero.name: "zero", other.name: "other"}
    found = evaluate_task(engine, encoder(), TASKS[scorer], "test", models, SETTINGS)
    assert found[zero.name][1] == found[None][1]
    # Prompts are kept once, with the base's items.
    assert [i.prompt for i in found[None][1]] == [i.prompt for i in TASKS[scorer].test]
    assert {i.prompt for i in found[zero.name][1]} == {None}
    assert found[zero.name][0].metrics == found[None][0].metrics
    if scorer in ("option_text", "option_letter", "loss"):
        assert [i.gold_logprob for i in found[other.name][1]] != [
            i.gold_logprob for i in found[None][1]
        ]
    else:
        assert [i.generated for i in found[other.name][1]] != [i.generated for i in found[None][1]]


@pytest.mark.parametrize("scorer", ["option_text", "option_letter", "loss"])
def test_scores_do_not_depend_on_the_company(scorer: str) -> None:
    engine = base()
    group = [adapter(engine, rank, seed=rank) for rank in (1, 4, 16)]
    for member in group:
        engine.multi_lora.attach(member)
    adapter_names = {None: BASE, **{member.name: member.name for member in group}}
    together = evaluate_task(engine, encoder(), TASKS[scorer], "test", adapter_names, SETTINGS)
    for adapter_name, name in adapter_names.items():
        alone = evaluate_task(
            engine, encoder(), TASKS[scorer], "test", {adapter_name: name}, SETTINGS
        )
        assert alone[adapter_name][1] == together[adapter_name][1]


def test_the_record_holds_the_primary_metric_and_its_error(tmp_path: Path) -> None:
    engine = base()
    found = evaluate_task(
        engine, encoder(), TASKS["option_text"], "test", {None: "full-1"}, SETTINGS
    )
    record, items = found[None]
    scores = [item.score for item in items]
    p, n = sum(scores) / len(scores), len(scores)
    assert (record.trial_id, record.task, record.split, record.n) == ("full-1", "toy", "test", 6)
    assert record.metric == "acc"
    assert record.score == record.metrics["acc"] == pytest.approx(p)
    # Bernoulli scores: the sample variance is n / (n - 1) p (1 - p).
    assert record.standard_error == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))
    assert [item.item_id for item in items] == [f"toy/test/{k}" for k in range(1, 7)]
    assert [item.subject for item in items] == [None, "even"] * 3
    write_items(tmp_path / "items.parquet", items)
    assert read_items(tmp_path / "items.parquet") == items


def test_dropout_is_off_and_training_state_returns() -> None:
    engine = base()
    member = adapter(engine, 4, seed=1)  # carries dropout 0.5
    engine.multi_lora.attach(member)
    models = {member.name: "t"}
    quiet = evaluate_task(engine, encoder(), TASKS["loss"], "test", models, SETTINGS)
    engine.multi_lora.training = True
    found = evaluate_task(engine, encoder(), TASKS["loss"], "test", models, SETTINGS)
    assert engine.multi_lora.training
    assert found[member.name][1] == quiet[member.name][1]


def test_an_unknown_adapter_name_is_an_error_instead_of_the_base() -> None:
    with pytest.raises(KeyError, match="no adapter is attached under the name 'gone'"):
        evaluate_task(base(), encoder(), TASKS["loss"], "test", {"gone": "x"}, SETTINGS)


def test_no_items_are_refused() -> None:
    with pytest.raises(UserError, match="no test items"):
        evaluate_task(base(), encoder(), loaded((), "loss"), "test", {None: BASE}, SETTINGS)


@pytest.mark.parametrize("scorer", ["option_text", "loss"])
def test_log_probabilities_that_are_not_finite_never_count_as_right(scorer: str) -> None:
    engine = base()
    broken = adapter(engine, 4, seed=1)
    next(iter(broken.b.values())).data.fill_(math.nan)
    engine.multi_lora.attach(broken)
    models = {broken.name: "t", None: BASE}
    arguments = (engine, encoder(), TASKS[scorer], "test", models, SETTINGS)
    with pytest.raises(NotFiniteError, match="finite"):
        evaluate_task(*arguments)
    evaluations, failures = evaluate_with_failures(*arguments)
    assert (set(evaluations), set(failures)) == ({None}, {broken.name})


def test_scores_without_contaminated_rows() -> None:
    items = choice_items()
    task = dataclasses.replace(
        loaded(items, "option_text"), contaminated_ids=frozenset({items[0].item_id, "gone"})
    )
    record, found = evaluate_task(base(), encoder(), task, "test", {None: BASE}, SETTINGS)[None]
    kept = [item.score for item in found[1:]]
    assert record.without_contamination is not None
    assert (record.without_contamination.contaminated, record.without_contamination.n) == (1, 5)
    assert record.without_contamination.score == pytest.approx(sum(kept) / 5)
    assert record.score == pytest.approx(sum(item.score for item in found) / 6)
    chosen, _ = evaluate_task(base(), encoder(), task, "validation", {None: BASE}, SETTINGS)[None]
    assert chosen.without_contamination is None
