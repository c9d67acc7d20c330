"""One task under many models: records, errors, and models that do not disturb each other."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from evaluation_worlds import (
    adapter,
    base,
    choice_items,
    encoder,
    evaluations_of,
    joined_of,
    lettered,
    loaded,
    number_items,
    scored,
    text_items,
)

from rankscope.config.study import EvaluateConfig
from rankscope.data.tasks import LoadedTask
from rankscope.errors import UserError
from rankscope.evaluate.context_window import EncodedSplit, fit_to_context
from rankscope.evaluate.evaluator import _task_sha256 as task_sha256, encode_split, evaluate_task
from rankscope.evaluate.scorers import get_scorer
from rankscope.evaluate.scorers.scorer import Question
from rankscope.records import BASE, results_of, write_items

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
    found = evaluations_of(engine, encoder(), TASKS[scorer], "test", models, SETTINGS)
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


def test_the_record_holds_the_primary_metric_and_its_error(tmp_path: Path) -> None:
    engine = base()
    found = evaluations_of(
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
    assert results_of(pq.read_table(tmp_path / "items.parquet")) == items


def test_dropout_is_off_and_training_state_returns() -> None:
    engine = base()
    member = adapter(engine, 4, seed=1)  # carries dropout 0.5
    engine.multi_lora.attach(member)
    models = {member.name: "t"}
    quiet = evaluations_of(engine, encoder(), TASKS["loss"], "test", models, SETTINGS)
    engine.multi_lora.training = True
    found = evaluations_of(engine, encoder(), TASKS["loss"], "test", models, SETTINGS)
    assert engine.multi_lora.training
    assert found[member.name][1] == quiet[member.name][1]


def test_an_unknown_adapter_name_is_an_error_instead_of_the_base() -> None:
    with pytest.raises(KeyError, match="no adapter is attached under the name 'gone'"):
        evaluations_of(base(), encoder(), TASKS["loss"], "test", {"gone": "x"}, SETTINGS)


def test_no_items_are_refused() -> None:
    with pytest.raises(UserError, match="no test items"):
        scored(loaded((), "loss"))


@pytest.mark.parametrize("scorer", ["option_text", "loss"])
def test_log_probabilities_that_are_not_finite_never_count_as_right(scorer: str) -> None:
    engine = base()
    broken = adapter(engine, 4, seed=1)
    next(iter(broken.b.values())).data.fill_(math.nan)
    engine.multi_lora.attach(broken)
    models = {broken.name: "t", None: BASE}
    arguments = (engine, encoder(), TASKS[scorer], "test", models, SETTINGS)
    evaluations, failures = evaluate_task(*arguments)
    assert set(evaluations) == {None}
    assert "finite" in failures.pop(broken.name)
    assert not failures


def test_scores_without_contaminated_rows() -> None:
    items = choice_items()
    task = dataclasses.replace(
        loaded(items, "option_text"), contaminated_ids=frozenset({items[0].item_id, "gone"})
    )
    record, found = scored(task)
    kept = [item.score for item in found[1:]]
    assert record.without_contamination is not None
    assert (record.without_contamination.contaminated, record.without_contamination.n) == (1, 5)
    assert record.without_contamination.score == pytest.approx(sum(kept) / 5)
    assert record.score == pytest.approx(sum(item.score for item in found) / 6)
    chosen, _ = evaluations_of(base(), encoder(), task, "validation", {None: BASE}, SETTINGS)[None]
    assert chosen.without_contamination is None


SETTINGS = EvaluateConfig(batch_tokens=64, max_new_tokens=12)


def test_rows_scored_up_to_max_length_are_counted() -> None:
    """By their likelihood; one that does not fit the context either counts once."""
    items = text_items()
    task = loaded((dataclasses.replace(items[0], completion="the " * 300), *items[1:]), "loss")
    short, cut = encoder(64), SETTINGS.model_copy(update={"too_long": "truncate_left"})
    assert scored(task, coder=short)[0].truncated == 1
    both = encode_split(short, task, "test", 32, cut)
    assert (both.cut_at_start, both.cut_at_end, both.truncated) == ({0, 3}, {0}, 2)
    with pytest.raises(UserError, match="context of 256 tokens"):
        encode_split(encoder(None), task, "test", 256, SETTINGS)


def test_long_prompts_are_refused_or_cut_at_their_beginning() -> None:
    item = choice_items()[0]
    question = Question([1, *range(10, 30)], [[5, 6], [7]])
    spec = loaded((item,), "option_text").spec
    scorer, coder = get_scorer("option_text"), encoder()
    coder.bos_ids = [1]
    split = EncodedSplit(scorer, coder, spec, SETTINGS, (item,), [[question]], 12)
    with pytest.raises(
        UserError, match="1 of 1 items that do not fit the model's context of 12 tokens"
    ):
        fit_to_context(split, "task")
    settings = SETTINGS.model_copy(update={"too_long": "truncate_left"})
    split = dataclasses.replace(split, settings=settings)
    cut = fit_to_context(split, "task")
    # Ten tokens of prompt are left for the longest option's two: the begin token and the last 9.
    assert cut.encoded == [[Question([1, *range(21, 30)], [[5, 6], [7]])]]
    assert cut.truncated == 1
    wide = dataclasses.replace(split, max_tokens=23)
    assert fit_to_context(wide, "task") is wide
    with pytest.raises(UserError, match="an answer that fills"):
        fit_to_context(dataclasses.replace(split, max_tokens=2), "task")


def mixture(contaminated: frozenset[str] = frozenset()) -> LoadedTask:
    """Multiple choice and answers that are generated."""
    parts = loaded(choice_items(), "option_text"), loaded(number_items(), "number")
    return dataclasses.replace(joined_of(*parts), contaminated_ids=contaminated)


def test_a_record_counts_what_is_contaminated_and_what_was_cut() -> None:
    contaminated = frozenset({"toy/test/1", "0/toy/test/2"})
    record, results = scored(mixture(contaminated))
    clean = [result.score for result in results if result.item_id not in contaminated]
    assert record.n == len(results) == 10
    assert record.without_contamination is not None
    assert (record.without_contamination.contaminated, record.without_contamination.n) == (2, 8)
    assert record.without_contamination.score == pytest.approx(sum(clean) / 8)
    task = mixture()
    parts = [
        dataclasses.replace(
            part,
            test=(dataclasses.replace(part.test[0], prompt="the " * 300), *part.test[1:]),
        )
        for part in task.parts
    ]
    record, _ = scored(dataclasses.replace(task, parts=tuple(parts)), too_long="truncate_left")
    assert (record.truncated, record.without_contamination) == (2, None)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    "change",
    [{"primary_metric": "acc_norm"}, {"extract": "[0-9]"}, {"stop": ("x",)}, {"version": 7}],
)
def test_how_any_part_is_scored_is_in_the_hash(change: dict[str, Any], place: int) -> None:
    task = mixture()
    parts = list(task.parts)
    spec = dataclasses.replace(parts[place].spec, **change)
    parts[place] = dataclasses.replace(parts[place], spec=spec)
    other = dataclasses.replace(task, parts=tuple(parts))
    first, second = (task_sha256(t, encoder(), "t" * 64, SETTINGS, t.sha256) for t in (task, other))
    assert first != second
