"""What a plan says of packs and memory, against the study's own numbers."""

import shutil
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import save_file

from large_shapes import LLAMA_8B
from pocket_study import NUM_LORA, small_study
from rankscope.config.presets import study_template
from rankscope.models.parameters import architecture
from rankscope.models.pocket import pocket_folder
from rankscope.plan import Plan
from rankscope.screens.study import plan_screen
from rankscope.study import Study
from rankscope.trials import Pack


def printed_limits(plan: Plan) -> list[str]:
    """The column "limited by" of what ``rankscope plan`` prints in eighty columns."""
    console = Console(width=80)
    with console.capture() as capture:
        console.print(plan_screen(plan))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    heading = next(line for line in lines if line.endswith("limited by"))
    column = heading.index("limited by")
    rows = lines[lines.index(heading) + 2 :]  # below the rule
    return [line[column:] for line in rows[: rows.index("")]]


def test_a_pack_says_what_keeps_it_from_being_larger(tmp_path: Path) -> None:
    plan = small_study(tmp_path).plan()
    assert [p.limited_by for p in plan.packs] == ["max_pack"] * 2 + ["method"] * 2
    assert printed_limits(plan) == ["max_pack"] * 2 + ["method"] * 2
    whole = small_study(tmp_path, max_pack=None).plan()
    assert [p.limited_by for p in whole.packs] == ["all trials of the task"] + ["method"] * 2
    assert printed_limits(whole) == ["all trials"] + ["method"] * 2
    assert len(whole.packs[0].labels) == NUM_LORA


def test_packs_keep_to_the_memory_limit(tmp_path: Path) -> None:
    """A limit of what the larger pack of two takes, and just below what the smaller one takes."""
    two = small_study(tmp_path).plan().packs
    limit = max(pack.memory_bytes for pack in two[:2])
    fitting = small_study(tmp_path, max_pack=None, memory_limit=limit).plan()
    assert [len(p.labels) for p in fitting.packs] == [2, 2, 1, 1]
    assert [p.limited_by for p in fitting.packs] == ["memory"] * 2 + ["method"] * 2
    assert printed_limits(fitting) == ["memory"] * 2 + ["method"] * 2
    least = min(pack.memory_bytes for pack in two[:2])
    tight = small_study(tmp_path, max_pack=None, memory_limit=least - 1).plan()
    assert [len(p.labels) for p in tight.packs] == [1] * 6


def test_a_pack_takes_the_base_once(tmp_path: Path) -> None:
    inputs = small_study(tmp_path, max_pack=None).check()

    def memory(pack: Pack) -> int:
        found = inputs.packing.memory(pack, inputs.config.train)
        weights = inputs.shapes.num_parameters * 4
        assert weights <= found.base_bytes < weights + 1000  # rotary frequencies
        return found.state_bytes

    pack = inputs.packs[0]
    assert memory(pack) == sum(memory((trial,)) for trial in pack)


def test_the_paper_presets_grid_plans_for_an_8b_model(tmp_path: Path) -> None:
    """From configurations alone: a plan reads no weight, so a file of one number stands for them.

    The rows are the pocket form's, in that model's tokens, under the paper's batches and epochs.
    """
    folder = tmp_path / "model"
    LLAMA_8B.save_pretrained(folder)
    for file in pocket_folder().glob("tokenizer*"):
        shutil.copy(file, folder)
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    study = tmp_path / "paper.yaml"
    study.write_text(study_template("paper", "pocket"), encoding="utf-8")
    protocol = "train={epochs: 3, batch_size: 2, gradient_accumulation: 4, max_length: 64}"
    few = [f"tasks.{i}.max_train_rows=64" for i in range(5)]
    sets = [f"model={folder}", protocol, "dtype=bfloat16", "memory_limit=80GB", *few]
    plan = Study.load(study, [*sets, "evaluate.max_items=20"]).plan()
    # 5 tasks x (5 ranks x 2 rates + full) x 3 seeds.
    assert plan.trials == 165
    assert sum(len(pack.labels) for pack in plan.packs) == 165
    base_bytes = 2 * architecture(LLAMA_8B).num_parameters
    full = [pack for pack in plan.packs if pack.labels[0].startswith("full")]
    assert len(full) == 15
    # Float32 weights, gradients and two moments beside the base: 16 + 2 bytes a parameter.
    assert all(pack.memory_bytes > 9 * base_bytes for pack in full)
    lora = [pack for pack in plan.packs if pack not in full]
    assert all(base_bytes < pack.memory_bytes <= 80e9 for pack in lora)
    # 64 rows three times, 8 a step.
    assert {pack.steps for pack in plan.packs} == {24}
