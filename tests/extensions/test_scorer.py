"""A scorer from one file is configured, listed and evaluated, without a change to the package."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from command_line import write_rows

import rankscope
from rankscope.config.task import TaskConfig
from rankscope.data.tasks import load_task
from rankscope.errors import UserError

ROWS = [{"prompt": f"what {word} ?", "completion": "metal"} for word in ("iron", "gold", "tin")]


@pytest.fixture(autouse=True)
def _scorer_file(load_extension: Callable[[str], ModuleType]) -> None:
    """Imports the scorer's file; the scorer is gone after the test."""
    load_extension("scorer")


def test_a_study_file_may_name_it(tmp_path: Path) -> None:
    rows = str(write_rows(tmp_path / "rows.jsonl", ROWS))
    config = TaskConfig(name="mine", test=rows, scorer="answer_logprob")
    spec = load_task(config, None, 0, keep_test_whole=True).spec
    assert (spec.scorer, spec.score_unit) == ("answer_logprob", "log_probability")
    with pytest.raises(ValueError, match="did you mean 'answer_logprob'"):
        TaskConfig(name="mine", test=rows, scorer="answer_logprop")
    said = "scorer 'answer_logprob': found 'stop', expected it for generated"
    with pytest.raises(UserError, match=said):
        load_task(config.model_copy(update={"stop": ["x"]}), None, 0, keep_test_whole=True)


def test_the_evaluation_engine_runs_it(tmp_path: Path) -> None:
    """The answer is one token; ``loss`` scores the end token too, and divides by both."""
    write_rows(tmp_path / "rows.jsonl", ROWS)
    tasks = []
    for name, scorer in (("whole", "answer_logprob"), ("tokens", "loss")):
        task = tmp_path / f"{name}.yaml"
        task.write_text(f"name: {name}\ntest: rows.jsonl\nscorer: {scorer}\n")
        tasks.append(str(task))
    _, (whole, tokens) = rankscope.score("pocket", tasks, settings={"device": "cpu"}, max_items=3)
    assert (whole.record.metric, whole.score_unit) == ("logprob_per_answer", "log_probability")
    assert whole.record.n == 3
    assert whole.record.score < 0
    assert whole.record.score > 2 * tokens.record.score - 1e-6
