"""The data of a study: tasks and rows, refusals with a way out, notes."""

import random
from pathlib import Path

from rankscope.config.study import StudyConfig
from rankscope.config.task import TaskConfig
from rankscope.data.encode import EncodedRow, EncodedRows, Encoder, encode_rows
from rankscope.data.items import Item
from rankscope.data.study_data import (
    _by_length as by_length,
    _CachingEncoder as CachingEncoder,
    _num_characters as num_characters,
    _stand_ins as stand_ins,
    _unknown_token_notes as unknown_token_notes,
    prepare_data,
)
from rankscope.data.tasks import load_task
from rankscope.models.load import load_tokenizer
from rankscope.models.model_folder import model_folder, pocket_folder


def test_training_rows_of_one_task_contaminate_another(tmp_path: Path) -> None:
    """``a`` and ``c`` are evaluated on rows of ``b``; the training rows of ``c`` do not count."""
    rows = [f'{{"question": "q{n}", "choices": ["x", "y"], "answer": {n % 2}}}' for n in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows[:20]))
    (tmp_path / "b.jsonl").write_text("\n".join(rows[10:]))
    (tmp_path / "c.jsonl").write_text("\n".join(rows))
    config = StudyConfig.model_validate(
        {
            "name": "s",
            "model": "pocket",
            "tasks": [{"name": "b", "train": str(tmp_path / "b.jsonl")}],
            "arms": [{"method": "full", "lr": 1e-3}],
            "evaluate": {
                "cross_domain": [
                    {"name": "a", "test": str(tmp_path / "a.jsonl")},
                    {"name": "c", "train": str(tmp_path / "c.jsonl")},
                ]
            },
        }
    )
    data = prepare_data(config, load_tokenizer(model_folder(config.model)))
    trained = {item.content for item in data.tasks["b"].train}
    for name in ("a", "c"):
        shared = {i.item_id for i in data.tasks[name].test if i.content in trained}
        assert shared
        assert data.tasks[name].contaminated_ids == shared
        count = f"{len(shared)} of {len(data.tasks[name].test)} test rows of {name}"
        assert f"{count} are copies of training rows of b" in data.notes
    assert list(data.rows) == ["b"]
    assert not data.replay_rows


def test_tokens_that_the_tokenizer_does_not_know_are_counted() -> None:
    """The pocket model's tokenizer knows its own world alone. Of two rows' tokens one is unknown to
    it; GPT-2 names its end as the unknown token, and knows every byte."""
    encoder = Encoder(load_tokenizer(pocket_folder()), "auto", 64)
    assert encoder.unknown_id is not None
    rows = [(5, 6, 7, encoder.unknown_id), (5, 6, 7, 8)]
    encoded = EncodedRows(tuple(EncodedRow(ids, (False,) * 4, False) for ids in rows), 0, 0)
    (note,) = unknown_token_notes({"mine": encoded}, encoder.unknown_id)
    assert note.startswith("mine: 12% of the tokens to train on are unknown")
    assert list(unknown_token_notes({"mine": encoded}, None)) == []
    tokenizer = load_tokenizer(pocket_folder())
    tokenizer.unk_token = tokenizer.eos_token
    assert Encoder(tokenizer, "auto", 64).unknown_id is None


TOKENIZER = load_tokenizer(pocket_folder())


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
