"""Scoring models as they are, with own tasks and with the harness's."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from command_line import Outcome, rankscope as command, write_rows

from rankscope.data.registry import named_tasks
from rankscope.models.model_folder import pocket_folder
from rankscope.store import items_path

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
    assert not any(set(name) & {"/", "."} for name in named_tasks())
    (tmp_path / "d" / "sub").mkdir(parents=True)
    for split in ("train", "test"):
        rows = [MCQ | {"question": f"{split} {n}"} for n in range(12)]
        write_rows(tmp_path / "d" / "sub" / f"{split}.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    assert by_model(ask("--tasks", "d/sub", "--json"))["base", "sub"]["record"]["n"] == 12


def json_of(outcome: Outcome) -> Any:
    assert outcome.code == 0, outcome.told
    return json.loads(outcome.out)


def test_a_finished_study_runs_again_without_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--tasks", "pocket_med", "--out", tmp_path / "out")
    assert ask(*words).code == 0

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    assert ask(*words).code == 0
