"""Code in the task files of a harness is not run unless the user allows it."""

from pathlib import Path

import pytest
import yaml
from command_line import rankscope

from faults import refused

from ...faults.test_security import MARKS


@pytest.mark.pitfall(5)
@pytest.mark.parametrize("place_of_code", ["toy.yaml", "shared.yaml"])
def test_functions_of_a_harness_task_run_only_if_allowed(
    place: Path, mark: Path, place_of_code: str
) -> None:
    """In the task's own file or one that it includes: the harness would run them as it reads."""
    code = MARKS.format(str(mark)) + "def process(docs):\n    return docs\n"
    (place / "helper.py").write_text(code)
    task = {
        "task": "toy",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(place / "rows.jsonl")},
            "cache_dir": str(place / "cache"),
        },
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    }
    named = {"shared.yaml": "test_split: test\n"}
    named["toy.yaml"] = yaml.safe_dump(task) + "include: shared.yaml\n"
    named[place_of_code] += "process_docs: !function helper.process\n"
    for name, text in named.items():
        (place / name).write_text(text)
    words = ("eval", "pocket", "--tasks", f"lm_eval:{place / 'toy.yaml'}", "--max-items", "2")
    refused(
        rankscope(*words),
        where=f"{place_of_code}, line ",
        found="!function helper.process, which would run Python",
        do="--trust-task-code",
    )
    assert not mark.exists()
    assert rankscope(*words, "--trust-task-code").code == 0
    assert mark.exists()
