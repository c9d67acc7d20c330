"""One task under many models: records, refusals, and models that do not disturb each other."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_worlds import (
    adapter,
    base,
    choice_items,
    encoder,
    joined_of,
    lettered,
    loaded,
    tokenizer,
)

from rankscope.config.study import EvaluateConfig
from rankscope.data.items import Item
from rankscope.data.tasks import LoadedTask
from rankscope.errors import IntegrityError, UserError
from rankscope.evaluate.evaluator import encode_split, evaluate_task, truncation_notes
from rankscope.evaluate.task_record import task_sha256
from rankscope.records import BASE, read_items, write_items

SETTINGS = EvaluateConfig(batch_tokens=64, max_new_tokens=12)


def number_items() -> tuple[Item, ...]:
    return tuple(
        Item(f"toy/test/{n}", prompt, f"so #### {n}", reference=str(n), question=prompt)
        for n, prompt in enumerate(("Question: 1 2", "the cat", "Ω", "the other cat sat on"), 1)
    )


def text_items() -> tuple[Item, ...]:
    return tuple(
        Item(f"toy/test/{n}", prompt, text)
        for n, (prompt, text) in enumerate(
            [
                ("", "the cat sat on the mat"),
                ("Question: 1", "2 3"),
                ("a", "日本語"),
                ("b" * 50, "c"),
            ]
        )
    )


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


def test_record_tells_the_headline_and_its_error(tmp_path: Path) -> None:
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


def test_one_item_has_no_standard_error() -> None:
    found = evaluate_task(
        base(), encoder(), TASKS["option_text"], "validation", {None: BASE}, SETTINGS
    )
    assert found[None][0].n == 1
    assert found[None][0].standard_error is None


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


def test_slot_without_adapter_is_refused_instead_of_scoring_the_base() -> None:
    with pytest.raises(ValueError, match="no adapter is attached under the name 'gone'"):
        evaluate_task(base(), encoder(), TASKS["loss"], "test", {"gone": "x"}, SETTINGS)


def test_items_beyond_the_context_are_counted_and_refused() -> None:
    items = list(choice_items())
    assert items[3].answer is not None
    items[3] = dataclasses.replace(items[3], prompt="the " * 300)
    items[1] = dataclasses.replace(items[1], prompt="1 " * 400)
    task = loaded(tuple(items), "option_text")
    with pytest.raises(UserError, match=r"2 of 6 items do not fit .* 256 tokens.*toy/test/2"):
        evaluate_task(base(), encoder(), task, "test", {None: BASE}, SETTINGS)


def test_rows_scored_up_to_max_length_are_counted_and_told() -> None:
    """By their likelihood; one that does not fit the context either counts once."""
    items = text_items()
    task = loaded((dataclasses.replace(items[0], completion="the " * 300), *items[1:]), "loss")
    short, cut = encoder(64), SETTINGS.model_copy(update={"too_long": "truncate_left"})
    record, _ = evaluate_task(base(), short, task, "test", {None: BASE}, SETTINGS)[None]
    assert record.truncated == 1
    note = "1 of 4 test items are longer than max_length = 64 tokens and scored up to there"
    assert note in truncation_notes(short, task, "test", 256, SETTINGS)[0]
    both = encode_split(short, task, "test", 32, cut)
    assert (both.cut_left, both.cut_right, both.truncated) == ({0, 3}, {0}, 2)
    assert len(truncation_notes(short, task, "test", 32, cut)) == 2
    with pytest.raises(UserError, match="context of 256 tokens"):
        truncation_notes(encoder(None), task, "test", 256, SETTINGS)


def joined(contaminated: frozenset[str] = frozenset()) -> LoadedTask:
    """Multiple choice and answers that are generated."""
    return dataclasses.replace(
        joined_of(TASKS["option_text"], TASKS["number"]), contaminated_ids=contaminated
    )


def test_a_joined_record_tells_what_leaked_and_what_was_cut() -> None:
    contaminated = frozenset({"toy/test/1", "0/toy/test/2"})
    found = evaluate_task(base(), encoder(), joined(contaminated), "test", {None: BASE}, SETTINGS)
    record, results = found[None]
    clean = [result.score for result in results if result.item_id not in contaminated]
    assert record.n == len(results) == 10
    assert record.without_contamination is not None
    assert (record.without_contamination.contaminated, record.without_contamination.n) == (2, 8)
    assert record.without_contamination.score == pytest.approx(sum(clean) / 8)
    task = joined()
    parts = [
        dataclasses.replace(
            part,
            test=(dataclasses.replace(part.test[0], prompt="the " * 300), *part.test[1:]),
        )
        for part in task.parts
    ]
    settings = SETTINGS.model_copy(update={"too_long": "truncate_left"})
    task = dataclasses.replace(task, parts=tuple(parts))
    record, _ = evaluate_task(base(), encoder(), task, "test", {None: BASE}, settings)[None]
    assert (record.truncated, record.without_contamination) == (2, None)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    "change",
    [{"primary_metric": "acc_norm"}, {"extract": "[0-9]"}, {"stop": ("x",)}, {"version": 7}],
)
def test_how_any_part_is_scored_is_in_a_joined_tasks_hash(
    change: dict[str, Any], place: int
) -> None:
    task = joined()
    parts = list(task.parts)
    spec = dataclasses.replace(parts[place].spec, **change)
    parts[place] = dataclasses.replace(parts[place], spec=spec)
    other = dataclasses.replace(task, parts=tuple(parts))
    first, second = (task_sha256(t, encoder(), "t" * 64, SETTINGS) for t in (task, other))
    assert first != second


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
    if scorer == "loss":
        with pytest.raises(IntegrityError, match=f"adapter {broken.name}.*not finite"):
            evaluate_task(engine, encoder(), TASKS[scorer], "test", models, SETTINGS)
        return
    record, items = evaluate_task(engine, encoder(), TASKS[scorer], "test", models, SETTINGS)[
        broken.name
    ]
    assert (record.score, record.metrics["not_finite"]) == (0.0, 1.0)
    assert {item.prediction for item in items} == {""}
    assert record.model_validate_json(record.model_dump_json()) == record


def test_loss_equals_one_row_at_a_time() -> None:
    engine = base()
    record, items = evaluate_task(engine, encoder(), TASKS["loss"], "test", {None: BASE}, SETTINGS)[
        None
    ]
    engine.model.set_attn_implementation("sdpa")
    sums, counts = [], []
    for item, result in zip(text_items(), items, strict=True):
        row = encoder().training_row(item, "completion")
        assert row is not None
        ids = torch.tensor([row.input_ids])
        logprobs = engine.model(ids).logits[0].double().log_softmax(-1)
        chosen = [
            float(logprobs[t - 1, row.input_ids[t]]) for t, kept in enumerate(row.is_label) if kept
        ]
        sums.append(sum(chosen))
        counts.append(len(chosen))
        assert result.gold_logprob == pytest.approx(sums[-1], rel=1e-5)
        assert result.score == pytest.approx(sums[-1] / counts[-1], rel=1e-5)
    assert record.metrics["logprob_per_token_pooled"] == pytest.approx(
        sum(sums) / sum(counts), rel=1e-5
    )
    # The end token is part of what is scored: the model must know when to stop.
    assert row.input_ids[-1] == tokenizer().eos_token_id
    assert row.is_label[-1]
