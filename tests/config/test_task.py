"""A task in a YAML file of its own."""

from pathlib import Path

import pytest

from rankscope.config.loader import dump_study, load_study_file, load_task_file
from rankscope.errors import UserError

STUDY = """name: s
model: pocket
tasks: [{task}]
arms: [{{method: lora, rank: 2, lr: 1e-3}}]
"""
TASK = """name: mine
test: rows.jsonl
train: data/train.jsonl
scorer: exact_match
stop: ["\\n"]
extract: "is (\\\\w+)"
"""


def test_a_study_holds_what_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(TASK)
    study = tmp_path / "study.yaml"
    study.write_text(STUDY.format(task="./tasks/mine.yaml"))
    (task,) = load_study_file(study).tasks
    assert task.name == "mine"
    assert task.train == str(tmp_path / "tasks" / "data" / "train.jsonl")
    assert (task.stop, task.extract) == (["\n"], r"is (\w+)")
    study.write_text(STUDY.format(task="{path: tasks/mine.yaml, num_fewshot: 2, name: other}"))
    config = load_study_file(study)
    assert (config.tasks[0].name, config.tasks[0].num_fewshot) == ("other", 2)
    assert config.tasks[0].path is None
    study.write_text(dump_study(config))
    assert load_study_file(study) == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "name: mine\nscorr: loss\n",
            r"bad.yaml:2: scorr: found an unknown key, expected a known one; did you mean 'scorer'",
        ),
        ("name: mine\nnum_fewshot: 6\n", r"bad.yaml:2: num_fewshot: found 6"),
        ("name: mine\nextract: '('\n", r"bad.yaml:2: extract: '\(' is not a regular expression"),
        ("name: mine\nextract: '(a)(b)'\n", r"bad.yaml:2: extract: .* has 2 groups"),
        (
            "name: mine\nprompt: !!python/object:os.system x\n",
            r"bad.yaml:2: found the tag .*, expected plain values",
        ),
        ("name: mine\npath: x\ntrain: y\n", r"bad.yaml:1: task: 'path' and 'train' both name"),
        ("name: mine\nstop: ['']\n", r"bad.yaml:2: stop.0: empty text would end"),
        ("path: other.yaml\nname: x\n", r"bad.yaml:1: path: a task file cannot name another"),
        ("", r"bad.yaml: the file is empty; write one with 'name:'"),
    ],
)
def test_faults_are_reported_with_their_line(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=expected):
        load_task_file(tmp_path / "bad.yaml")
    study = tmp_path / "study.yaml"
    study.write_text(STUDY.format(task="./bad.yaml"))
    with pytest.raises(UserError, match=expected):
        load_study_file(study)
