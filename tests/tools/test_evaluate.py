"""Scoring models as they are, with own tasks and with the harness's."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from command_line import Outcome, write_rows
from command_line import rankscope as command

import rankscope
from rankscope.data.registry import NAMED_TASKS
from rankscope.models.model_folder import pocket_folder
from rankscope.store import items_path

from ..sources.test_lm_eval import CHOICE, ROWS, TEXT, task_file

TASKS = "pocket_med,pocket_gsm"


def ask(*words: object) -> Outcome:
    return command("eval", "pocket", "--max-items", 12, "--set", "dtype=float32", *words)


def by_model(outcome: Outcome) -> dict[tuple[str, str], dict[str, Any]]:
    assert outcome.code == 0, outcome.told
    found = json.loads(outcome.out)["scores"]
    return {(score["model"], score["record"]["task"]): score for score in found}


def test_base_and_adapters_are_scored_and_kept(given_models: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    chosen = [w for n in ("zero", "lora", "ia3") for w in ("--adapter", given_models / n)]
    scores = by_model(ask("--tasks", TASKS, *chosen, "--out", out, "--json"))
    assert [model for model, _ in scores][:4] == ["base", "zero", "lora", "ia3"]
    for task in TASKS.split(","):
        base, zero = scores["base", task], scores["zero", task]
        assert zero["record"]["score"] == base["record"]["score"]
        assert zero["change"]["value"] == 0
        assert base["change"] is None
    # Again: nothing is scored; more: only what is new.
    again = ask("--tasks", TASKS, *chosen, "--out", out)
    assert "evaluate" not in again.err  # no such stage
    assert "changes against the base on the same items; ± is half the 95 % interval" in again.told
    more = ask("--tasks", f"{TASKS},pocket_law", *chosen, "--out", out, "--json")
    assert len(by_model(more)) == 12
    assert more.err.count("evaluate") == 3  # base, both LoRA adapters, IA3
    # The folder is a study's.
    for verb in ("status", "verify", "report"):
        assert command(verb, out).code == 0
    assert "lora" in command("report", out).told
    # Other items under a task's name belong into another folder.
    shots = ask("--tasks", TASKS, "--num-fewshot", 1, "--out", out)
    assert (shots.code, "--out" in shots.told) == (2, True)
    # An altered table is an error.
    table = out / items_path(
        scores["zero", "pocket_med"]["record"]["trial_id"], "pocket_med", "test"
    )
    table.write_bytes(table.read_bytes()[:-1])
    damaged = ask("--tasks", TASKS, *chosen, "--out", out)
    assert (damaged.code, str(table) in damaged.told) == (4, True)


MCQ = {"question": "q", "choices": ["a", "b"], "answer": 1}


def test_the_folder_of_rows_is_no_part_of_the_key(tmp_path: Path) -> None:
    """The same rows elsewhere were scored already."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder in (tmp_path, elsewhere):
        write_rows(folder / "rows.jsonl", [MCQ | {"question": f"q{n}"} for n in range(4)])
        outcome = ask("--tasks", folder / "rows.jsonl", "--out", out)
    assert "evaluate" not in outcome.err


def test_long_rows_are_cut_by_choice_and_counted(tmp_path: Path) -> None:
    rows = [MCQ | {"question": f"q{n} " + "word " * (900 if n < 3 else 1)} for n in range(12)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    words = ("eval", "pocket", "--tasks", path)
    refused = command(*words)
    assert (refused.code, "'evaluate.too_long: truncate_left'" in refused.told) == (2, True)
    outcome = command(*words, "--set", "evaluate.too_long=truncate_left", "--json")
    assert json.loads(outcome.out)["scores"][0]["record"]["truncated"] == 3


def test_long_answers_are_scored_whole(tmp_path: Path) -> None:
    """Up to the model's context, whatever length a study trains on by default."""
    folder = tmp_path / "longer"
    shutil.copytree(pocket_folder(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 3000}))
    rows = [{"prompt": "say", "completion": "gold " * 1500}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    words = ("eval", folder, "--tasks", path, "--set", "model.prompt_format=plain")
    record = json.loads(command(*words, "--json").out)["scores"][0]["record"]
    assert record["truncated"] == 0
    assert record["num_tokens"] > 1500


def test_a_task_file_and_texts(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [MCQ | {"question": f"q{n}"} for n in range(12)])
    (tmp_path / "mine.yaml").write_text(
        "name: mine\ntest: rows.jsonl\nscorer: option_text\nprimary_metric: acc_bytes\n"
    )
    (tmp_path / "text.txt").write_text("\n\n".join(f"Some text {n}." for n in range(10)))
    texts = tmp_path / "texts.yaml"
    texts.write_text("name: texts\ntest: text.txt\nscorer: perplexity\n")
    scores = by_model(ask("--tasks", f"{tmp_path / 'mine.yaml'},{texts}", "--json"))
    assert scores["base", "mine"]["record"]["metric"] == "acc_bytes"
    metrics = scores["base", "texts"]["record"]["metrics"]
    assert metrics["bits_per_byte"] > 0
    assert metrics["perplexity"] > 1


def test_a_file_of_rows_is_scored_whole(tmp_path: Path) -> None:
    """Nothing is chosen by it: no fifth is put aside, as a study would."""
    write_rows(tmp_path / "rows.jsonl", [MCQ | {"question": f"q{n}"} for n in range(11)])
    asked = ("--tasks", tmp_path / "rows.jsonl")
    assert by_model(ask(*asked, "--json"))["base", "rows"]["record"]["n"] == 11
    outcome = ask(*asked, "--split", "validation")
    assert outcome.code == 2
    assert "has no validation split" in outcome.told


def test_a_path_is_known_by_its_slash_or_dot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any(set(name) & {"/", "."} for name in NAMED_TASKS)
    (tmp_path / "d" / "sub").mkdir(parents=True)
    for split in ("train", "test"):
        rows = [MCQ | {"question": f"{split} {n}"} for n in range(12)]
        write_rows(tmp_path / "d" / "sub" / f"{split}.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    assert by_model(ask("--tasks", "d/sub", "--json"))["base", "sub"]["record"]["n"] == 12


def ask_harness(*words: object) -> Outcome:
    return command("eval", "pocket", "--set", "dtype=float32", "--max-items", 5, *words)


def json_of(outcome: Outcome) -> Any:
    assert outcome.code == 0, outcome.told
    return json.loads(outcome.out)


def test_a_harness_task_stands_beside_the_others(given_models: Path, tmp_path: Path) -> None:
    path, out = task_file(tmp_path, CHOICE), tmp_path / "scores"
    words = (
        "--tasks",
        f"lm_eval:{path},pocket_med",
        "--adapter",
        given_models / "lora",
        "--out",
        out,
    )
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


def test_a_finished_study_runs_again_without_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--tasks", "pocket_med", "--out", tmp_path / "out")
    assert ask(*words).code == 0

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    assert ask(*words).code == 0
