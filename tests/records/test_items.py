"""How likely the right answer is, however it was asked for."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rankscope.records import (
    GOLD_COLUMNS,
    ItemResult,
    gold_logprobs_per_token,
    items_table,
    write_items,
)

PLAIN = ItemResult(item_id="a", subject=None, score=1.0, gold="x", prediction="x")


def lettered(letters: tuple[float, ...], answer: int = 0) -> ItemResult:
    return replace(PLAIN, gold_logprob=letters[answer], gold_tokens=1, letter_logprobs=letters)


def with_texts(texts: tuple[float, ...], answer: int = 0, tokens: int = 3) -> ItemResult:
    return replace(PLAIN, gold_logprob=texts[answer], gold_tokens=tokens, option_logprobs=texts)


def logs(*probabilities: float) -> tuple[float, ...]:
    return tuple(math.log(p) if p else -math.inf for p in probabilities)


def value(item: ItemResult) -> float:
    return float(gold_logprobs_per_token(items_table([item]))[0])


def test_an_answer_among_several_offered_counts_among_them() -> None:
    letters = logs(0.2, 0.1, 0.05, 0.05)
    assert value(lettered(letters)) == pytest.approx(math.log(0.5))
    texts = with_texts(logs(0.01, 0.03), answer=1)
    assert value(texts) == pytest.approx(math.log(0.75) / 3)
    # The prompt lists the options: both were scored, and the item counts by one of them.
    assert value(replace(texts, letter_logprobs=letters)) == value(texts)
    chosen = replace(lettered(letters), option_logprobs=texts.option_logprobs)
    assert value(chosen) == value(lettered(letters))
    assert value(replace(PLAIN, gold_logprob=-6.0, gold_tokens=3)) == -2.0


def test_log_probabilities_that_are_not_finite() -> None:
    assert value(lettered(logs(0.2, 0.0, 0.2))) == pytest.approx(math.log(0.5))
    unknown = [
        PLAIN,
        lettered(logs(0.0, 0.2)),
        lettered(logs(0.0, 0.0)),
        lettered((-1.0, math.nan)),
        lettered((math.nan, -1.0)),
        replace(PLAIN, gold_tokens=3, letter_logprobs=(math.nan, -1.0)),
        replace(PLAIN, gold_logprob=-1.0, option_logprobs=(-1.0, -2.0)),  # tokens unknown
    ]
    assert np.isnan(gold_logprobs_per_token(items_table(unknown))).all()
    assert gold_logprobs_per_token(items_table([])).shape == (0,)


@pytest.mark.parametrize("shift", [-30.0, 5.0])
def test_what_all_options_gain_or_lose_alike_changes_nothing(shift: float) -> None:
    logits = tuple(np.random.default_rng(0).normal(-2, 1, 4).tolist())
    moved = tuple(logit + shift for logit in logits)
    for answer in range(4):
        assert value(lettered(moved, answer)) == pytest.approx(value(lettered(logits, answer)))
        assert value(with_texts(moved, answer)) == pytest.approx(value(with_texts(logits, answer)))


def test_tables_agree_with_one_item_at_a_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    makers = (lettered, with_texts)
    items = [makers[k % 2](tuple(rng.normal(-5, 3, 2 + k % 4).tolist()), k % 2) for k in range(50)]
    items[7], items[8] = PLAIN, replace(PLAIN, gold_logprob=-4.0, gold_tokens=8)
    write_items(tmp_path / "items.parquet", items)
    table = pq.ParquetFile(tmp_path / "items.parquet").read(columns=list(GOLD_COLUMNS))
    slow = [one_at_a_time(item) for item in items]
    assert gold_logprobs_per_token(table) == pytest.approx(np.array(slow, dtype=float), nan_ok=True)


def one_at_a_time(item: ItemResult) -> float | None:
    if item.gold_logprob is None or item.gold_tokens is None:
        return None
    offered = item.letter_logprobs or item.option_logprobs
    among = math.log(sum(map(math.exp, offered))) if offered else 0.0
    return (item.gold_logprob - among) / item.gold_tokens
