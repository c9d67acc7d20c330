"""The lines that tell how to serve a model fit what the other programs accept."""

import pytest

from rankscope.report.study_view import StudyView
from rankscope.report.use_it import BaseSource, obstacle, steps_for_task, use_steps

BASE = BaseSource("a/b on the hub", '"a/b"', "a/b", "bfloat16", "a/b")


def serving(**settings: object) -> str:
    """The vLLM command for an adapter."""
    steps = use_steps(BASE, {"peft_type": "LORA", **settings}, "mine", ".", chat=False)
    return next(step.code for step in steps if "vLLM" in step.title)


@pytest.mark.parametrize(
    ("rank", "limit"),
    [(1, 8), (8, 8), (9, 16), (64, 64), (65, 128), (257, 320), (321, 512), (512, 512)],
)
def test_the_rank_limit_is_one_of_vllms_list(rank: int, limit: int) -> None:
    assert serving(r=rank) == (
        f"vllm serve a/b --enable-lora --max-lora-rank {limit} --lora-modules mine=."
    )


@pytest.mark.parametrize(
    ("settings", "vllm", "llama"),
    [
        ({"r": 8}, "", ""),
        ({"r": 513}, "vLLM takes at most 512", ""),
        ({"r": 8, "use_dora": True}, "does not read DoRA", "does not read DoRA"),
        ({"r": 8, "use_rslora": True}, "", "scales by alpha / r"),
        ({"r": 8, "rank_pattern": {"x": 16}}, "the same scaling", ""),
        ({"r": 8, "alpha_pattern": {"x": 16}}, "the same scaling", "the same scaling"),
        ({"peft_type": "VERA", "r": 256}, "not VERA", "not VERA"),
    ],
)
def test_what_cannot_be_served_unmerged_is_said(
    settings: dict[str, object], vllm: str, llama: str
) -> None:
    given = {"peft_type": "LORA", **settings}
    for program, reason in (("vLLM", vllm), ("llama.cpp", llama)):
        found = obstacle(given, program)  # type: ignore[arg-type]
        assert (reason in found) if reason else found == ""
    if vllm:
        assert serving(**given) == "vllm serve merged"


def test_the_steps_of_a_task_name_the_arm_of_its_answer(view: StudyView) -> None:
    for task in view.training_tasks:
        export, *others = steps_for_task(view, task, "my studies/one")
        chosen = view.advice(task).chosen
        option = "--best" if chosen else "--best-lora"
        assert export.code.startswith(f"rankscope export 'my studies/one' {option} --task {task} ")
        name = export.code.rpartition(" ")[2]
        assert any(name in step.code for step in others)
