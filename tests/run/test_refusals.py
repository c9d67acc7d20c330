"""Studies that cannot run as they are written: refused before anything is written."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import rankscope
from pocket_study import SETTINGS, changed, study_file

LORA = {"method": "lora", "rank": 2, "lr": 2e-3}
REPLAY = {"task": "pocket_cloze", "share": 0.25}
STOP = {"early_stop": {"patience": 1}}
BOTH = {"name": "both", "mixture": ["pocket_med", "pocket_gsm"]}
FEW = {"name": "few", "test": "few.jsonl"}


def arm(**changes: Any) -> dict[str, Any]:
    return {"arms": [{**LORA, **changes}]}


def peft(peft_type: str, **settings: Any) -> dict[str, Any]:
    return {"arms": [{"method": {"peft": {"peft_type": peft_type, **settings}}, "lr": 1e-3}]}


def mixture(*tasks: Any) -> dict[str, Any]:
    return {"tasks": list(tasks)}


def search(**changes: Any) -> dict[str, Any]:
    return {"strategy": "search", **changes}


def executor(name: str, **settings: Any) -> dict[str, Any]:
    return {"executor": {name: settings}}


def prompt(**arm: Any) -> dict[str, Any]:
    return {"arms": [LORA, {"method": "prompt", **arm}]}


# (what is changed in the small study, a part of the message)
REFUSED: list[tuple[dict[str, Any], str]] = [
    # arms and mitigations
    (changed("train", max_steps=1), "warmup_fraction"),
    (arm(replay={"task": "x", "share": 1}), "less than 1"),
    (arm(replay={"tsk": "x", "share": 0.1}), "Did you mean 'task'"),
    (arm(replay={**REPLAY, "task": "pocket_clozee"}), "did you mean 'pocket_cloze'"),
    (arm(replay={**REPLAY, "task": "pocket_med"}), "training task 'pocket_med' has"),
    (arm(replay={**REPLAY, "task": "few"}) | changed("evaluate", retention=[FEW]),
     "no training rows"),
    (mixture(BOTH) | arm(replay={**REPLAY, "task": "pocket_gsm"}),
     "training task 'both' has, expected a task that is not trained on"),
    (arm(**STOP), "evaluate_every"),
    (arm(kl_to_base=-1), "greater than or equal to 0"),
    (arm(method={"peft": {"peft_type": "adalora"}}, rank=None, **STOP)
     | changed("train", evaluate_every=2), "ADALORA, whose ranks keep falling"),
    (arm(targets=["q_proj", "v_porj"]),
     "target module 'v_porj': found no linear layer of this model"),
    (arm(method="pissa", rank=[8, 129]), "method pissa: found rank 129"),
    (arm(method=["lora", "full"]), "method 'full' among others, which trains every weight"),
    (changed("train", tokens=1000), "'tokens' and 'max_steps'"),
    (arm(rows=513), "513 of task"),
    (arm(rows=0), "is 0, but must be"),
    (arm(rows=[32, "some"]), "is 'some', but must be"),
    # prompts
    (prompt(num_fewshot=600), "512 usable rows in the training rows"),
    (prompt(num_fewshot=-1), "num_fewshot is -1"),
    (prompt(num_fewshot=0), "pocket_med: prompt 0-shot: found the base itself"),
    (prompt(), "the base itself"),
    (prompt(system=["", "x"]), "the base itself"),
    (prompt(num_fewshot=2) | mixture({"name": "pocket_med", "num_fewshot": 2}), "the base itself"),
    (prompt(num_fewshot=3, lr=1e-3), "lr, expected none: method 'prompt' trains nothing"),
    (prompt(num_fewshot=3, rank=4, rows=8), "rank, rows, expected none"),
    (prompt(num_fewshot=3, method=["prompt", "lora"]), "'prompt' among others"),
    (prompt(num_fewshot=3) | mixture({"name": "pocket_med", "scorer": "loss"}), "'num_fewshot'"),
    (prompt(system="which " * 600), "shorten the prompt"),
    (arm(num_fewshot=1), "use prompt"),
    (arm(lr=None), "no 'lr'"),
    # joined tasks
    (mixture({"name": "b", "mixture": ["pocket_med"]}), "at least two tasks"),
    (mixture({"name": "b", "mixture": ["b", "pocket_med"]}), "in its own mixture"),
    (mixture({"name": "b", "mixture": ["x", "y"], "scorer": "loss"}), "'scorer' beside 'mixture'"),
    (mixture({"name": "a", "mixture": ["x", "y"]}, {"name": "b", "mixture": ["a", "y"]}),
     "the mixture 'a' in the mixture 'b'"),
    (changed("evaluate", retention=[{"name": "b", "mixture": ["x", "y"]}]),
     "mixtures in 'tasks' alone"),
    (mixture("med", {"name": "both", "mixture": ["pocket_gsm", "pocket_cloze"]}),
     "'pocket_cloze' in the training task 'both'"),
    (mixture("pocket_med", {"name": "both", "mixture": ["pocket_med", "pocket_law"]})
     | changed("evaluate", retention=["both"]) | {"objective": {"max_forgetting": 0.02}},
     "without a task that measures what 'pocket_med' forgets"),
    # methods
    (peft("C3A", block_size=7), "expected a method that fits this model"),
    (peft("ADALORA", tfinal=8), "don't allow for a budgeting phase"),
    ({"quantize": "4bit", "device": "cpu"}, "expected a CUDA device"),
    # searches
    (search(budget="0 trials"), "budget.trials is 0, but must be greater than or equal to 1"),
    (search(budget="10 tokens"), "budget: found less than one trial, expected at least"),
    (search(budget="-3 trials"), "budget: found '-3 trials', expected a text such as '24 trials'"),
    (search(budget={"hours": -1}), "budget.hours is -1, but must be greater than 0"),
    (search(budget={}), "budget: found no limit"),
    (search(budget="9 minutes"), "train: found arms of 8 updates, expected 40 or more"),
    (search(budget="0.01 minutes", **changed("train", max_steps=40)),
     "budget: found 0.01 minutes, expected"),
    *[(search(until=p), "until is ") for p in (0, 1, 1.5)],
    ({"budget": "9 trials"}, "found 'budget' with 'strategy: grid', expected a search"),
    ({"until": 0.9}, "found 'until' with 'strategy: grid', expected a search"),
    (search(arms=[{"method": "prompt", "num_fewshot": 2}]),
     "found 'strategy: search' without 'arms' that train"),
]  # fmt: skip


@pytest.mark.pitfall(13)
@pytest.mark.parametrize(("changes", "said"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_study_that_cannot_run_is_refused_before_anything_is_written(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    rows = [{"question": q, "choices": ["a", "b"], "answer": 0} for q in "qqqqrrrr"]
    (tmp_path / "few.jsonl").write_text("\n".join(map(json.dumps, rows)))
    outcome = rankscope("run", study_file(tmp_path, **SETTINGS | changes), "--out", tmp_path / "x")
    assert (outcome.code, said in outcome.told) == (2, True), outcome.told
    assert not (tmp_path / "x").exists()
