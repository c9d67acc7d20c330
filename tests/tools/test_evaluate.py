"""``rankscope eval`` as a user meets it: scores, adapters, what is kept, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, files_below, write_rows
from command_line import rankscope as command
from given_models import write_given_models

from rankscope.data.registry import NAMED_TASKS
from rankscope.models.model_folder import pocket_folder
from rankscope.run.study import Study
from rankscope.store import items_path

TASKS = "pocket_med,pocket_gsm"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_given_models(tmp_path_factory.mktemp("adapters"))


def ask(*words: object) -> Outcome:
    return command("eval", "pocket", "--max-items", 12, "--dtype", "float32", *words)


def by_model(outcome: Outcome) -> dict[tuple[str, str], dict[str, Any]]:
    assert outcome.code == 0, outcome.told
    found = json.loads(outcome.out)["scores"]
    return {(score["model"], score["record"]["task"]): score for score in found}


def test_base_and_adapters_are_scored_and_kept(adapters: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    chosen = [w for n in ("zero", "lora", "ia3") for w in ("--adapter", adapters / n)]
    scores = by_model(ask("--tasks", TASKS, *chosen, "--out", out, "--json"))
    assert [model for model, _ in scores][:4] == ["base", "zero", "lora", "ia3"]
    for task in TASKS.split(","):
        base, zero = scores["base", task], scores["zero", task]
        assert zero["record"]["score"] == base["record"]["score"]
        assert zero["change"]["value"] == 0
        assert base["change"] is None
    # Again: nothing is scored; more: only what is new.
    again = ask("--tasks", TASKS, *chosen, "--out", out)
    assert "all 8 results were there already; nothing was scored again" in again.told
    assert "score ± one standard error; change against the base with its paired 95 %" in again.told
    more = json.loads(ask("--tasks", f"{TASKS},pocket_law", *chosen, "--out", out, "--json").out)
    assert (more["scored_now"], more["scored_before"]) == (4, 8)
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


def test_a_model_given_twice_is_refused(adapters: Path) -> None:
    twice = ("--adapter", adapters / "lora") * 2
    repeated = ask("--tasks", "pocket_med", *twice)
    assert (repeated.code, "each model once" in repeated.told) == (2, True)


def test_a_place_that_cannot_be_written_is_an_error_before_anything_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scored(*_: object) -> None:
        raise AssertionError("scored")

    monkeypatch.setattr(Study, "run", scored)
    (tmp_path / "file").write_text("")
    for out, message in (
        (tmp_path / "file", "found a file, expected a folder"),
        (tmp_path / "file" / "out", "folder that cannot be made"),
        (Path("/proc/nope"), "cannot be made"),
        (Path("/proc"), "cannot be made or written to"),
    ):
        outcome = ask("--tasks", "pocket_med", "--out", out)
        assert (outcome.code, message in outcome.told) == (2, True), outcome.told
        assert outcome.err.count("error: ") == 1


MCQ = {"question": "q", "choices": ["a", "b"], "answer": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (MCQ | {"answer": 2}, "rows.jsonl, row 7: found answer 2, which is none of the 2 choices"),
        (
            MCQ | {"choices": ["a", "a "]},
            "rows.jsonl, row 7: found the duplicate choice 'a'",
        ),
        (MCQ | {"question": "word " * 900}, "rows.jsonl, row 7, needs"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_written(
    tmp_path: Path, row: object, message: str
) -> None:
    good = [MCQ | {"question": f"q{n}"} for n in range(12)]
    path = write_rows(tmp_path / "rows.jsonl", [*good[:6], row, *good[6:]])
    before = files_below(tmp_path)
    outcome = command("eval", "pocket", "--tasks", path, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert message in outcome.told
    assert files_below(tmp_path) == before


def test_the_folder_of_rows_is_no_part_of_the_key(tmp_path: Path) -> None:
    """The same rows elsewhere were scored already."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder in (tmp_path, elsewhere):
        write_rows(folder / "rows.jsonl", [MCQ | {"question": f"q{n}"} for n in range(4)])
        outcome = ask("--tasks", folder / "rows.jsonl", "--out", out)
    assert "nothing was scored again" in outcome.told


def test_long_rows_are_cut_by_choice_and_noted(tmp_path: Path) -> None:
    rows = [MCQ | {"question": f"q{n} " + "word " * (900 if n < 3 else 1)} for n in range(12)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    words = ("eval", "pocket", "--tasks", path)
    refused = command(*words)
    assert (refused.code, "--too-long truncate_left'" in refused.told) == (2, True)
    outcome = command(*words, "--too-long", "truncate_left", "--json")
    assert json.loads(outcome.out)["scores"][0]["record"]["truncated"] == 3
    note = "rows: 3 of 12 test items do not fit the context of 128 tokens and are cut at their be"
    assert f"note: {note}" in outcome.err
    assert json.loads(outcome.out)["notes"][-1].startswith(note)


def test_long_answers_are_scored_whole(tmp_path: Path) -> None:
    """Up to the model's context, whatever length a study trains on by default."""
    folder = tmp_path / "longer"
    shutil.copytree(pocket_folder(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 3000}))
    rows = [{"prompt": "say", "completion": "gold " * 1500}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    words = ("eval", folder, "--tasks", path, "--prompt-format", "plain")
    record = json.loads(command(*words, "--json").out)["scores"][0]["record"]
    assert record["truncated"] == 0
    assert record["num_tokens"] > 1500


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tasks", "pocket_mad"), "did you mean 'pocket_med'?"),
        (("--tasks", ""), "no tasks were given"),
        (("--tasks", "pocket_med,pocket_med"), "is given twice"),
        (
            ("--tasks", "pocket_med", "--split", "valid"),
            "--split: found 'valid', expected 'validation' or 'test'",
        ),
        (("--tasks", "pocket_med", "--adapter", "nowhere"), "no such folder"),
        (
            ("--tasks", "pocket_med", "--dtype", "float16"),
            "expected 'auto', 'float32' or 'bfloat16'",
        ),
        (
            ("--tasks", "pocket_med", "--too-long", "cut"),
            "--too-long: found 'cut', expected 'refuse' or",
        ),
        (("--tasks", "nowhere.yaml"), "nowhere.yaml: found no such file"),
        (("--tasks", "./nowhere"), "no such file or folder"),
        (("--tasks", "perplexity"), "found no rows, expected your own texts"),
    ],
)
def test_what_does_not_exist_is_an_error(words: tuple[str, ...], message: str) -> None:
    outcome = ask(*words)
    assert outcome.code == 2
    assert message in outcome.told


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
    write_rows(tmp_path / "rows.xlsx", ["question,answer"])
    monkeypatch.chdir(tmp_path)
    assert by_model(ask("--tasks", "d/sub", "--json"))["base", "sub"]["record"]["n"] == 12
    for task, message in (
        ("rows.xlsx", "rows.xlsx: found the suffix '.xlsx', expected .jsonl"),
        ("rows.json", "task rows.json: found no such file or folder"),
        ("owner/name", "'hub: owner/name'"),
    ):
        outcome = ask("--tasks", task)
        assert (outcome.code, message in outcome.told) == (2, True), outcome.told


def test_a_task_file_of_a_mixture_is_an_error(tmp_path: Path) -> None:
    """Not scored as the task whose name it has."""
    path = tmp_path / "both.yaml"
    path.write_text("name: pocket_med\nmixture: [pocket_law, pocket_gsm]\n")
    refused = ask("--tasks", path)
    message = "give its tasks to --tasks: pocket_law, pocket_gs"
    assert (refused.code, message in refused.told) == (2, True)
