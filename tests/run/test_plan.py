"""What a plan says of groups and memory, against the study's own numbers."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from architectures import config_of
from pocket_study import NUM_LORA, small_study

from rankscope.cli.study_verbs import plan_table
from rankscope.errors import UserError
from rankscope.run.groups import _attention_notes as attention_notes
from rankscope.run.machines import MACHINES
from rankscope.run.plan import Plan, make_plan, plan_sentences
from rankscope.train.memory import MemoryModel


def printed_limits(plan: Plan) -> list[str]:
    """The last column of what ``rankscope plan`` prints."""
    return [str(cell) for cell in plan_table(plan).columns[-1].cells]


def test_a_group_says_what_keeps_it_from_being_larger(tmp_path: Path) -> None:
    plan = small_study(tmp_path).plan()
    assert [p.limited_by for p in plan.groups] == ["size limit"] * 2 + ["method"] * 2
    assert printed_limits(plan) == ["size"] * 2 + ["method"] * 2
    whole = small_study(tmp_path, max_group_size=None).plan()
    assert [p.limited_by for p in whole.groups] == ["all trials of the task"] + ["method"] * 2
    assert printed_limits(whole) == ["all"] + ["method"] * 2
    assert len(whole.groups[0].labels) == NUM_LORA


def test_a_plan_says_that_the_machine_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, cores = small_study(tmp_path), os.cpu_count() or 1
    for load, is_busy in ((cores + 1.5, True), (float(cores), False)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        notes = [n for n in study.plan().notes if n.startswith("this machine is busy")]
        assert len(notes) == is_busy
    assert not any("busy" in note for note in study.plan(device="h100").notes)


def test_groups_keep_to_the_memory_limit(tmp_path: Path) -> None:
    """A limit of what the larger group of two takes, and just below what the smaller one takes."""
    inputs = small_study(tmp_path).check()
    two = [inputs.grouping.memory(g, inputs.config.train).total_bytes for g in inputs.groups[:2]]
    limit = max(two)
    fitting = small_study(tmp_path, max_group_size=None, memory_limit=limit).plan()
    assert [len(p.labels) for p in fitting.groups] == [2, 2, 1, 1]
    assert [p.limited_by for p in fitting.groups] == ["memory"] * 2 + ["method"] * 2
    assert printed_limits(fitting) == ["memory"] * 2 + ["method"] * 2
    tight = small_study(tmp_path, max_group_size=None, memory_limit=min(two) - 1).plan()
    assert [len(p.labels) for p in tight.groups] == [1] * 6


def test_recomputation_is_suggested_only_if_the_states_fit(tmp_path: Path) -> None:
    inputs = small_study(tmp_path).check()
    full = inputs.grouping.memory(inputs.groups[-1], inputs.config.train)
    states = full.base_bytes + full.state_bytes

    def printed(memory_bytes: float) -> str:
        machine = replace(MACHINES["h100"], memory=memory_bytes / 1e9)
        return " ".join(plan_sentences(make_plan(inputs, machine)))

    most = max(group.memory_bytes for group in make_plan(inputs).groups)
    assert "DOES NOT FIT" not in printed(most)
    assert "Lower evaluate.batch_tokens" in printed(most - 1)
    assert "gradient_checkpointing" in printed(states + 1)
    assert "states of group 3 and 4 alone" not in printed(states + 1)
    assert "states of group 3 and 4 alone" in printed(states - 1)


def test_cards_without_bfloat16_compute_in_float16(tmp_path: Path) -> None:
    study = small_study(tmp_path, dtype="auto")
    for name in ("t4", "v100"):
        plan = study.plan(device=name)
        assert plan.dtype == "float16"
        assert any("below compute capability 8.0" in note for note in plan.notes)
        with pytest.raises(UserError, match="found bfloat16, expected float16 or float32"):
            small_study(tmp_path, dtype="bfloat16").plan(device=name)
    plan = small_study(tmp_path, dtype="float16").plan(device="l4")
    assert not any("attention" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("head_dim", "dtype", "reason"),
    [
        (256, "bfloat16", None), (224, "float16", "heads of 224: "),
        (264, "bfloat16", "heads of 264: "), (64, "float32", "float32: "),
    ],
)  # fmt: skip
def test_attention_without_a_kernel_is_named(head_dim: int, dtype: str, reason: str) -> None:
    config = config_of("Gemma 3")
    config.head_dim = head_dim
    memory = MemoryModel(config, getattr(torch, dtype), torch.device("cuda"), has_kernel=True)
    notes = attention_notes(memory)
    assert len(notes) == (reason is not None)
    assert all(note.startswith(reason) for note in notes)
    assert attention_notes(MemoryModel(config, torch.float32, torch.device("cpu"))) == []
