"""``init`` and ``check`` as a user meets them: what they recognize, what they say is missing."""

import io
import json
from pathlib import Path

import pytest
import typer
from command_line import Outcome, files_below, rankscope as command, settings, write_rows

from rankscope.cli import setup_verbs
from rankscope.config.loader import load_study_file, published_schema
from rankscope.config.presets import PRESETS
from rankscope.run.study import Study

CHAT = [{"from": "human", "value": "ba"}, {"from": "gpt", "value": "do"}]


def test_init_keeps_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("mine", "utf-8")
    outcome = command("init", file)
    assert outcome.code == 2
    assert "give another name, or --force to overwrite it" in outcome.err
    assert file.read_text("utf-8") == "mine"
    assert command("init", file, "--force", "--preset", "pocket").code == 0
    assert load_study_file(file).name == "pocket"
    for words in ((tmp_path,), (tmp_path, "--force")):
        refused = command("init", *words)
        assert refused.code == 2
        assert "expected a new name; give another name\n" in refused.err
    assert files_below(tmp_path) == {"study.yaml"}


def test_init_prints_the_schema_and_the_presets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = command("init", "--schema")
    assert (outcome.code, outcome.out) == (0, published_schema())
    assert json.loads(outcome.out)["title"] == "Rankscope study file"
    assert json.loads(command("init", "--list", "--json").out) == PRESETS
    for words in (("--list",), ("--help",)):
        told = command("init", *words).told
        assert all(f"{name}: {purpose}" in told for name, purpose in PRESETS.items())
    assert files_below(tmp_path) == set()


def test_init_names_models_and_presets(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,completion\na,b\n")
    for words, part in (
        (("--preset", "pokcet"), "did you mean 'pocket'?"),
        (("--model", "../a/b/c d"), None),
        (("--preset", "cross-domain", "--data", tmp_path / "rows.csv"), "leave --data out"),
        (
            ("--data", tmp_path / "rows.xlsx"),
            "rows.xlsx: found nothing, expected a file of rows (.jsonl, ",
        ),
    ):
        outcome = command("init", tmp_path / "x.yaml", *words, "--force")
        assert outcome.code == (2 if part else 3)  # 3: without rows it cannot run
        assert (part or "wrote") in outcome.told


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with rows of several kinds."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sums").mkdir()
    for split, count in (("train", 30), ("val", 6), ("test", 8)):
        lines = [f"How many are {n} and {len(split)}?,{n + len(split)}.0\n" for n in range(count)]
        (tmp_path / "sums" / f"{split}.csv").write_text("question,answer\n" + "".join(lines))
    chats = [{"conversations": [{**turn, "value": f"ba {n}"} for turn in CHAT]} for n in range(40)]
    (tmp_path / "chats.json").write_text(json.dumps(chats))
    choices = [
        {"question": f"q{n}", "choices": ["1", "2", "3"], "answer": n % 3} for n in range(40)
    ]
    choices[6]["choices"], choices[9]["answer"] = ["1", "2", "2"], 3
    write_rows(tmp_path / "choices.jsonl", choices)
    return tmp_path


@pytest.mark.parametrize(
    ("data", "task", "summary"),
    [
        (
            "sums",
            {
                "name": "sums",
                "train": "./sums/train.csv",
                "validation": "./sums/val.csv",
                "test": "./sums/test.csv",
                "scorer": "number",
            },
            "sums: 30 train, 6 validation, 8 test rows (question and answer), scorer number",
        ),
        (
            "chats.json",
            {"name": "chats", "train": "./chats.json"},
            "chats: 40 train rows (conversations), scorer loss",
        ),
    ],
)
def test_init_recognizes_rows_and_check_takes_what_it_wrote(
    place: Path, data: str, task: dict[str, str], summary: str
) -> None:
    wrote = command("init", "s.yaml", "--model", "pocket", "--data", data)
    assert wrote.out == f"wrote s.yaml\n{summary}\nnext: rankscope check s.yaml\n"
    again = command("init", "s.yaml", "--model", "pocket", "--data", data, "--force", "--json")
    assert json.loads(again.out) == {
        "file": "s.yaml",
        "task": task,
        "missing": [],
        "from_hub": [],
        "next": "rankscope check s.yaml",
    }
    checked = command("check", "s.yaml", *settings("seeds=0", "evaluate.retention=[]"))
    assert checked.code == 0, checked.told
    assert checked.err.startswith("Reading s.yaml ...\nReading the rows of ")
    assert "No retention task: forgetting will not be measured" in checked.told
    assert checked.out.endswith(
        "next: rankscope plan s.yaml --set seeds=0 --set 'evaluate.retention=[]'\n"
    )


def test_init_says_what_keeps_the_file_from_running(place: Path) -> None:
    outcome = command("init", "s.yaml")
    assert outcome.code == 3  # the file is written; a script stops here
    assert "next:" not in outcome.out
    assert f"model folder {place / 'my-model'}: found no such folder" in outcome.told
    assert (
        f"{place / 'data' / 'train.jsonl'}: found nothing, expected a file of rows" in outcome.told
    )
    assert outcome.out.endswith("fix these, then run: rankscope check s.yaml\n")
    # Bad rows are found by init already, all of them.
    rows = command("init", "t.yaml", "--model", "pocket", "--data", "choices.jsonl")
    assert "task 'choices': found 2 of 40 rows that cannot be used:" in rows.told
    assert "row 7: found the duplicate choice '2', a wrong one" in rows.told
    assert "row 10: found answer 3, which is none of the 3 choices" in rows.told
    assert "next:" not in rows.out
    # Named tasks: a folder without training rows, and what the hub would have to give.
    (place / "tasks" / "mmlu").mkdir(parents=True)
    write_rows(place / "tasks" / "mmlu" / "test.jsonl", ["{}"])
    named = command("init", "u.yaml", "--preset", "cross-domain", "--data-dir", "tasks")
    assert "gsm8k: found no such folder" in named.told
    hub = command("init", "v.yaml", "--preset", "cross-domain", "--model", "pocket", "--force")
    assert "next:" in hub.out
    hub = command("init", "w.yaml", "--preset", "cross-domain", "--model", "owner/name")
    assert "from the hub, which needs a connection: owner/name, " in hub.told


def test_check_reports_dropped_rows_shape_scorer_and_contamination(place: Path) -> None:
    rows = [json.loads(line) for line in (place / "choices.jsonl").read_text().splitlines()]
    write_rows(
        place / "test.jsonl", [*rows[:3], *({**row, "question": "x"} for row in rows[20:23])]
    )
    command("init", "s.yaml", "--model", "pocket", "--data", "choices.jsonl")
    asked = settings("seeds=0", "tasks.0.on_bad_rows=drop", "tasks.0.test=test.jsonl")
    checked = command("check", "s.yaml", *asked, "--rows", "0")
    assert checked.code == 0, checked.told
    (line,) = [line for line in checked.out.splitlines() if line.lstrip().startswith("choices  ")]
    assert "choices: rows read as multiple choice, from " in checked.told
    assert "option_text" in line
    assert line.rstrip().endswith("1 3 of 6")
    assert "choices: 1 of 46 rows were dropped: " in checked.told
    assert "choices: 3 of 6 test rows are copies of training rows" in checked.told
    assert "more than 1 % of the test rows are in the training rows" in checked.told
    refused = command("check", "s.yaml", "--rows", "0")
    assert refused.code == 2
    assert "2 of 40 rows that cannot be used" in refused.err


@pytest.fixture
def labeled(place: Path) -> Path:
    """300 texts with a label, and a column that nothing uses."""
    lines = ["text,label,source"]
    lines += [f"text {i} is about {i % 7},{'even' if i % 2 else 'odd'},web" for i in range(300)]
    (place / "rows.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return place / "rows.csv"


def test_init_names_the_labels_and_the_columns_that_nothing_uses(labeled: Path) -> None:
    wrote = command("init", "s.yaml", "--model", "pocket", "--data", labeled)
    assert "rows: 300 train rows (text and label), scorer option_text" in wrote.out
    assert "rows: a classification, whose options are the labels 'even', 'odd'" in wrote.out
    assert "rows: nothing uses the columns 'source'" in wrote.out


def test_init_writes_a_search_that_spends_a_time(labeled: Path) -> None:
    asked = ("--model", "pocket", "--data", labeled, "--json", "--force")
    command("init", "whole.yaml", *asked)
    assert json.loads(command("init", "s.yaml", *asked, "--minutes", "600").out)["cuts"] == []
    whole, timed = (load_study_file(labeled.parent / name) for name in ("whole.yaml", "s.yaml"))
    assert timed.strategy == "search"
    assert timed.budget is not None
    assert timed.budget.text == "10 hours"
    assert timed.model_copy(update={"budget": whole.budget}) == whole


def test_a_time_too_short_for_an_answer_writes_nothing_unless_asked_to(labeled: Path) -> None:
    """Then arms are as short, and items as few, as an answer may have them."""
    asked = ("init", "t.yaml", "--model", "pocket", "--data", labeled, "--minutes", "0.0001")
    refused = command(*asked)
    assert refused.code == 2
    assert "budget: found 0.0001 minutes, expected" in refused.told
    assert "or more, for the base and 3 arms" in refused.told
    assert sorted(path.name for path in labeled.parent.glob("*.yaml")) == []
    told = command(*asked, "--anyway").told
    assert "cut: 50 items a split, so gains are known less well" in told
    assert "another length may change the order of arms" in told
    study = Study.load(labeled.parent / "t.yaml")
    assert study.config.evaluate.max_items == 50
    prepared = study.check()
    assert {prepared.num_steps(trial) for trial in prepared.trials} <= {40, 41}


def test_rates_are_around_the_usual_one_of_a_model_of_that_size(place: Path) -> None:
    """Hidden sizes 2,000, as of the preset's rates, and 128; unknown of a model on the hub."""
    (place / "large").mkdir()
    (place / "large" / "config.json").write_text('{"hidden_size": 2000}', "utf-8")
    for model, lora in (
        ("./large", [2.5e-4, 5e-4, 1e-3]),
        ("owner/name", [2.5e-4, 5e-4, 1e-3]),
        ("pocket", [2e-3, 4e-3, 8e-3]),  # 5e-4 x (2000 / 128) ** 0.775 = 4.2e-3
    ):
        command("init", "s.yaml", "--model", model, "--data", "choices.jsonl", "--force")
        arms = load_study_file(place / "s.yaml").arms
        assert [arm.lr for arm in arms] == [lora, pytest.approx([lr / 10 for lr in lora])]


def answered(monkeypatch: pytest.MonkeyPatch, *answers: str) -> Outcome:
    """``init`` on a terminal on which these answers are typed."""
    left = list(answers)
    monkeypatch.setattr(setup_verbs, "on_a_terminal", lambda: True)
    monkeypatch.setattr(
        typer, "prompt", lambda text, default=None, err=False: left.pop(0) or default
    )
    outcome = command("init", "s.yaml", "--force")
    assert left == []
    return outcome


def test_init_asks_on_a_terminal(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = answered(
        monkeypatch, "pocket", "no.jsonl", "chats.json", "pocket_cloze, arc", "", "much", "5"
    )
    assert "no.jsonl: found nothing, expected a file of rows" in outcome.err
    assert "no task is called arc" in outcome.err
    config = load_study_file(place / "s.yaml")
    assert config.model.pocket
    assert config.tasks[0].train == str(place / "chats.json")
    assert [task.name for task in config.evaluate.retention] == ["common_facts"]
    assert config.objective.max_forgetting == 0.05
    assert "found 'much', expected a number from 0 to 100" in outcome.err


@pytest.mark.parametrize("preset", ["default", "cross-domain", "retention-probe"])
def test_what_may_be_lost_is_the_limit_of_the_study(place: Path, preset: str) -> None:
    written = command("init", "limit.yaml", "--preset", preset, "--may-lose", "3")
    assert written.code == 3, written  # the preset names no rows
    assert load_study_file(place / "limit.yaml").objective.max_forgetting == 0.03


def test_a_question_that_is_interrupted_ends_in_130(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup_verbs, "on_a_terminal", lambda: True)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    outcome = command("init", "s.yaml")
    assert outcome.code == 130
    assert "error: this command: found a request to stop" in outcome.err


def test_rows_that_cannot_teach_anything_are_refused(place: Path) -> None:
    """All rows alike, then answers that differ only in words that the tokenizer lacks."""
    for name, answers in (
        ("alike", ["1"] * 40),
        ("unknown", [f"b{chr(97 + n % 26)}" for n in range(40)]),
    ):
        number = 0 if name == "alike" else 1
        rows = [{"prompt": str(number * n), "completion": a} for n, a in enumerate(answers)]
        write_rows(place / f"{name}.jsonl", rows)
        command("init", f"{name}.yaml", "--model", "pocket", "--data", f"{name}.jsonl")
        outcome = command("check", f"{name}.yaml")
        assert (outcome.code, "cannot teach anything" in outcome.err) == (2, True), outcome.told


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("arms.0.lora_r", "rank"),
        ("arms.0.learning_rate", "lr"),
        ("train.num_train_epochs", "epochs"),
        ("train.per_device_train_batch_size", "batch_size"),
        ("max_seq_length", "train.max_length"),
    ],
)
def test_keys_of_other_trainers_lead_to_ours(place: Path, key: str, ours: str) -> None:
    command("init", "s.yaml", "--model", "pocket", "--data", "choices.jsonl")
    refused = command("check", "s.yaml", "--set", f"{key}=8")
    assert f"{key} is not a key. Did you mean '{ours}'?" in refused.err
    option = "--" + key.rpartition(".")[2].replace("_", "-")
    assert f"has no option {option}. Set it in" in command("run", "s.yaml", option, "8").err
