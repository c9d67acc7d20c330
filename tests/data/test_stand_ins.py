"""Rows that stand for others of their length."""

import random
from pathlib import Path

from rankscope.config.study import ModelConfig
from rankscope.config.task import TaskConfig
from rankscope.data.encode import Encoder, encode_rows
from rankscope.data.items import Item
from rankscope.data.study_data import CachingEncoder, by_length, num_characters, stand_ins
from rankscope.data.tasks import load_task
from rankscope.models.load import load_tokenizer
from rankscope.models.model_folder import model_folder

TOKENIZER = load_tokenizer(model_folder(ModelConfig(pocket=True)))


def items(count: int) -> list[Item]:
    rng = random.Random(0)
    return [Item(str(n), "a" * rng.randint(1, 900), "b" * rng.randint(1, 90)) for n in range(count)]


def test_each_row_has_a_stand_in_of_about_its_length() -> None:
    rows = items(1000)
    chosen = by_length(rows, spans=50)
    assert len(chosen) == len(rows)
    assert len({id(item) for item in chosen}) == 51  # one a span, and the longest
    assert max(map(num_characters, chosen)) == max(map(num_characters, rows))
    # A span holds a fiftieth of lengths that spread over some 990 characters.
    for row, stand_in in zip(rows, chosen, strict=True):
        assert abs(num_characters(row) - num_characters(stand_in)) < 100
    total = sum(map(num_characters, rows))
    assert abs(sum(map(num_characters, chosen)) / total - 1) < 0.02


def test_an_item_is_tokenized_once() -> None:
    encoder, item = CachingEncoder(TOKENIZER, "plain", 64), items(1)[0]
    assert encoder.training_row(item, "completion") is encoder.training_row(item, "completion")
    plain = Encoder(TOKENIZER, "plain", 64)
    assert encoder.prompt_ids(item) == plain.prompt_ids(item)
    assert encoder.answer_ids("yes", item) == plain.answer_ids("yes", item)
    assert encoder.training_row(item, "all") == plain.training_row(item, "all")


def test_tokens_of_real_rows_are_counted_within_two_percent(data_dir: Path) -> None:
    for name in ("arc_easy", "openbookqa", "medmcqa"):
        task = load_task(TaskConfig(name=name), data_dir, 0, trained_on=[name])
        exact = encode_rows(Encoder(TOKENIZER, "plain", 1024), task.train, "completion")
        estimate = encode_rows(
            CachingEncoder(TOKENIZER, "plain", 1024), stand_ins(task).train, "completion"
        )
        assert len(estimate.rows) == len(exact.rows)
        assert abs(estimate.num_tokens / exact.num_tokens - 1) < 0.02
