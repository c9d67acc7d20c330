"""A task in a YAML file of its own."""

import re
from pathlib import Path

import pytest

from rankscope.config.loader import dump_study, load_study_file, load_task_file
from rankscope.config.patterns import compile_pattern, matched_parts
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


# (file, place, found, expected, do)
FAULTS = [
    ("name: mine\nscorr: loss\n", ":2: scorr", "an unknown key", "", "did you mean 'scorer'?"),
    ("name: mine\nnum_fewshot: 6\n", ":2: num_fewshot", "6", "a number from 0 to 5, or 'own'", ""),
    ("name: mine\nextract: '('\n", ":2: extract", "'(', which is not a regular expression", "", ""),
    ("name: mine\nextract: '(a)(b)'\n", ":2: extract", "'(a)(b)' with 2 groups", "at most one", ""),
    ("name: mine\nprompt: !!python/object:os.system x\n", ":2: prompt", "the tag", "plain values",
     "remove the tag"),
    ("name: mine\npath: x\ntrain: y\n", ":1: task", "'path' and 'train'", "one source", "give one"),
    ("name: mine\nstop: ['']\n", ":2: stop.0", "''", "at least 1 character", ""),
    ("path: other.yaml\nname: x\n", ":1: path", "another task file", "", "write the task out"),
    ("", "", "an empty file", "keys such as 'name:'", "with 'name:' and 'test: rows.jsonl'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "place", "found", "expected", "do"), FAULTS)
def test_faults_are_reported_with_their_line(
    tmp_path: Path, text: str, place: str, found: str, expected: str, do: str
) -> None:
    bad, study = tmp_path / "bad.yaml", tmp_path / "study.yaml"
    bad.write_text(text)
    study.write_text(STUDY.format(task="./bad.yaml"))
    for load, path in ((load_task_file, bad), (load_study_file, study)):
        with pytest.raises(UserError) as caught:
            load(path)
        assert caught.value.where == f"{bad}{place}"
        assert found in caught.value.found
        assert expected in caught.value.expected
        assert do in caught.value.do


@pytest.mark.parametrize(
    "pattern",
    [r"is (\w+)", r"\d+", r"A:(?: (\d))?", r"(?i)answer", r"(?<=#) ?\d", "^", r"[^\W_]+", ""],
)
def test_matches_are_those_of_re(pattern: str) -> None:
    text = "The ANSWER is blue_1, A: 7 A: x # 8\nnew line, \u0130stanbul"
    groups = re.compile(pattern).groups
    expected = [match.group(groups) for match in re.finditer(pattern, text)]
    assert list(matched_parts(compile_pattern(pattern), text)) == expected


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "is not a regular expression: missing \\)"),
        ("(" * 1000 + ")" * 1000, "is not a regular expression: nested too deeply"),
        ("a" * 3000, "3,000 characters: expected at most 2,000"),
    ],
)
def test_what_is_no_pattern_is_refused(pattern: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        compile_pattern(pattern)


def test_a_pattern_that_never_ends_is_refused() -> None:
    """It doubles its time with every character of the text."""
    pattern = compile_pattern(r"(?:(?:a|b|ab)+)+\1?$".replace(r"\1?", ""))
    with pytest.raises(UserError, match="takes longer than 1 s on a text of 61 characters"):
        list(matched_parts(pattern, "ab" * 30 + "!"))
