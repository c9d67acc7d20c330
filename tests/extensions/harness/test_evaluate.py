"""``eval`` of harness tasks, beside tasks of other kinds."""

import sys
from pathlib import Path

import pytest
from command_line import Outcome, rankscope as command

import rankscope

from ...tools.test_evaluate import json_of
from .test_lm_eval import CHOICE, ROWS, TEXT, task_file


def ask_harness(*words: object) -> Outcome:
    return command("eval", "pocket", "--set", "dtype=float32", "--max-items", 5, *words)


def test_a_harness_task_stands_beside_the_others(given_models: Path, tmp_path: Path) -> None:
    path, out = task_file(tmp_path, CHOICE), tmp_path / "scores"
    tasks = ("--tasks", f"lm_eval:{path},pocket_med")
    words = (*tasks, "--adapter", given_models / "lora", "--out", out)
    found = json_of(ask_harness(*words, "--json"))
    scores = {(s["model"], s["record"]["task"]): s for s in found["scores"]}
    base, lora = scores["base", "lm_eval:toy_choice"], scores["lora", "lm_eval:toy_choice"]
    assert (base["record"]["metric"], base["record"]["n"], base["num_fewshot"]) == ("acc", 5, 0)
    assert {"acc", "acc_norm", "acc_bytes"} <= set(base["record"]["metrics"])
    assert base["score_unit"] == "accuracy"
    change = lora["record"]["score"] - base["record"]["score"]
    assert lora["change"]["value"] == pytest.approx(change)
    results = rankscope.load(out).records.results
    ids = [score["record"]["trial_id"] for score in (base, lora)]
    tables = [results[model, "lm_eval:toy_choice", "test"] for model in ids]
    for number, (one, other) in enumerate(zip(*tables, strict=True)):
        assert one.item_id == other.item_id == f"lm_eval:toy_choice/{number}"
        assert len(one.option_logprobs or ()) == len(ROWS[number]["choices"])  # type: ignore[arg-type]
        assert one.option_logprobs != other.option_logprobs
        assert one.gold_logprob in (one.option_logprobs or ())
    assert "evaluate" not in ask_harness(*words).err
    # Another document is another task.
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text().replace("the cat sat on", "the cat is on"))
    assert ask_harness(*words, "--json").code == 2


def test_a_score_that_is_no_mean_of_items_has_no_paired_change(
    given_models: Path, tmp_path: Path
) -> None:
    path, out = task_file(tmp_path, TEXT), tmp_path / "scores"
    words = ("--tasks", f"lm_eval:{path}", "--adapter", given_models / "lora", "--out", out)
    base, lora = json_of(ask_harness(*words, "--json"))["scores"]
    assert base["record"]["metric"] == "word_perplexity"
    assert base["record"]["score"] != lora["record"]["score"]
    assert (base["record"]["standard_error"], lora["change"], lora["score_unit"]) == (None,) * 3
    assert "word_perplexity" in ask_harness(*words).told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tasks", "lm_eval:./nowhere.yaml"), "no such file, expected a harness task's YAML"),
        (("--tasks", "lm_eval:{0},lm_eval:{0}"), "'lm_eval:toy_choice' is given twice"),
    ],
)
def test_what_cannot_be_used_is_an_error(
    tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    path = task_file(tmp_path, CHOICE)
    outcome = ask_harness(*(word.format(path) for word in words), "--out", tmp_path / "out")
    assert (outcome.code, message in outcome.told) == (2, True), outcome.told
    assert not (tmp_path / "out").exists()


def test_the_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = task_file(tmp_path, CHOICE)
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    outcome = ask_harness("--tasks", f"lm_eval:{path}")
    assert (outcome.code, "pip install 'rankscope[lm-eval]'" in outcome.told) == (2, True)
