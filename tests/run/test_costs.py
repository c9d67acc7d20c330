"""Time of a plan: operations by hand, and what must and must not change an estimate."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from pocket_study import changed, small_study

from rankscope.evaluate.scorers import get_scorer
from rankscope.evaluate.scorers.scorer import ItemTokens, Question
from rankscope.records import TrialSpec
from rankscope.run import costs as costs_module
from rankscope.run.costs import DISK_RATE, CostModel
from rankscope.run.machines import MACHINES, paced_machine
from rankscope.run.plan import Plan, _makespan as makespan, make_plan
from rankscope.run.prepared import PreparedStudy
from rankscope.train.memory import CUDA_LIBRARY_BYTES

H100 = MACHINES["h100"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> PreparedStudy:
    return small_study(tmp_path_factory.mktemp("study")).check()


def trial_of(inputs: PreparedStudy, method: str) -> TrialSpec:
    return next(trial for trial in inputs.trials if trial.method == method)


def test_operations_by_hand(inputs: PreparedStudy) -> None:
    """Of the pocket model: 4 layers of 4 x 128 x 128 and 3 x 128 x 192, 232 x 128 for labels alone,
    8 heads of 16 each; an embedding costs nothing."""
    costs = CostModel(inputs, H100)
    assert (costs.body, costs.head, costs.attention) == (557_056, 29_696, 512)
    # 100 tokens that each attend to 20 keys, 7 logits: 100 (2 body + 4 x 512 x 20) + 7 x 2 head.
    assert costs.forward(100, 7, 20) == 115_922_944


def test_rows_that_run_alone_read_a_prompt_for_each_answer(inputs: PreparedStudy) -> None:
    """Of an option of one token, the logits after the prompt are enough; equal options are one."""
    question = Question(range(10), [[3], [4, 5], [4, 5], [6, 7, 8], [9, 9]])
    item = get_scorer("option_text").item_tokens(inputs.data.encoder, None, [question], 0)
    assert (item.read, item.again) == (10 + 0 + 1 + 1 + 2 + 1, 2 * 10)

    memory = copy.copy(inputs.grouping.model)
    memory.packs = False
    grouping = dataclasses.replace(inputs.grouping, model=memory)
    together = CostModel(inputs, H100)
    alone = CostModel(dataclasses.replace(inputs, grouping=grouping), H100)
    choice = ItemTokens(30, 5, again=60)
    assert together.scoring([choice] * 4) == together.computing(together.forward(120, 20, 15))
    assert alone.scoring([choice] * 4) == together.computing(together.forward(360, 20, 15))
    # A token that is written has a forward pass and logits, too.
    answer = ItemTokens(30, 1, written=6)
    assert together.scoring([answer] * 4) == together.computing(together.forward(144, 28, 18))


def test_full_fine_tuning_takes_half_as_much_again(inputs: PreparedStudy) -> None:
    """Forward, activations and weights against forward and activations, adapters aside."""
    costs, full, lora = (
        CostModel(inputs, H100),
        trial_of(inputs, "full"),
        trial_of(inputs, "lora"),
    )
    rows, tokens = inputs.data.rows[full.task], 1000
    keys, labels = costs.mean_keys(full.task), tokens * rows.num_label_tokens / rows.num_tokens
    forward = costs.forward(tokens, labels, keys)
    assert costs.training_operations(full, tokens) == pytest.approx(3 * forward)
    added = tokens * (6 * costs.parameters(lora) + 4 * costs.attention * keys)
    assert costs.training_operations(lora, tokens) == pytest.approx(2 * forward + added)
    dora = lora.model_copy(update={"method": "dora", "targets": ("q_proj",)})
    lora = lora.model_copy(update={"targets": ("q_proj",)})
    more = tokens * 4 * (4 * 128 * 128)  # W0 of each of four layers once more, both ways
    operations = costs.training_operations(lora, tokens)
    assert costs.training_operations(dora, tokens) - operations == pytest.approx(more)


def test_recomputation_is_one_more_forward_pass(tmp_path: Path, inputs: PreparedStudy) -> None:
    again = small_study(tmp_path, **changed("train", gradient_checkpointing=True)).check()
    full = trial_of(inputs, "full")
    plain, recomputed = (
        CostModel(of, H100).training_operations(full, 1000) for of in (inputs, again)
    )
    assert recomputed / plain == pytest.approx(4 / 3)


def test_a_device_is_planned_by_its_published_rate(inputs: PreparedStudy) -> None:
    """Training runs at 41 % of the rate; half the rate is twice the time."""
    costs, full = CostModel(inputs, H100), trial_of(inputs, "full")
    operations = costs.training_operations(full, inputs.training_tokens(full))
    expected = operations / (0.41 * 67e12)
    assert costs.training(full) == pytest.approx(expected)
    slow = dataclasses.replace(H100, rates={"float32": 33.5})
    items = inputs.items[full.task, "test"]
    assert CostModel(inputs, slow).scoring(items) == pytest.approx(2 * costs.scoring(items))
    assert make_plan(inputs, H100).basis == "from published figures, not measured"


def test_a_given_pace_is_that_of_training_an_adapter(inputs: PreparedStudy) -> None:
    """At 1,000 tokens a second an adapter takes a second for 1,000 of its tokens, anywhere."""
    lora = trial_of(inputs, "lora")
    for machine in (None, H100):
        paced = paced_machine(inputs, machine, 1000.0)
        assert paced.basis == "from 1,000 tokens a second of training, as given"
        seconds = CostModel(inputs, paced).training(lora)
        assert seconds == pytest.approx(inputs.training_tokens(lora) / 1000)


def test_stages_and_groups_add_up(inputs: PreparedStudy) -> None:
    plan: Plan = make_plan(inputs, H100, gpus=2)
    of_groups = sum(group.seconds for group in plan.groups)
    base = plan.seconds - of_groups
    # Imports take 5.5 s, and 587,904 parameters of 4 bytes are read at 0.5 GB/s.
    assert plan.stages["starting"] == pytest.approx(5.504703232)
    assert base + of_groups / 2 <= plan.wall_seconds < plan.seconds
    assert all(group.fits for group in plan.groups)
    tiny = make_plan(inputs, dataclasses.replace(H100, memory=1e-3))
    assert not any(group.fits for group in tiny.groups)


def test_weights_and_checkpoints_are_written_and_read(
    tmp_path: Path, inputs: PreparedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, 4 bytes each, are written once and read twice; a checkpoint has two moments more.
    On a machine that trains for 10 s one is due every 3 s, and two are on disk for a moment."""
    study = small_study(tmp_path, seeds=[0], **changed("train", checkpoint_seconds=3.0)).check()
    full = next(group for group in study.groups if group[0].is_full)
    size = 4 * study.base.shapes.num_parameters
    seconds = CostModel(study, H100).training(full[0])
    slow = dataclasses.replace(H100, share=H100.share * seconds / 10)
    costs = CostModel(study, slow)
    assert costs.num_checkpoints(full) == 3
    with monkeypatch.context() as patch:  # one takes .4 s: the next comes after 4
        patch.setattr(costs_module, "DISK_RATE", 3 * size / 0.4)
        assert CostModel(study, slow).num_checkpoints(full) == 2
    assert costs.storing(full) == pytest.approx((3 + 3 * 3) * size / DISK_RATE)
    assert CostModel(study, H100).storing(full) == pytest.approx(3 * size / DISK_RATE)
    arm = {"method": "full", "lr": 1e-3, "early_stop": {"patience": 1}}
    curve = changed("train", evaluate_every=2)
    stopping = small_study(tmp_path, seeds=[0], arms=[arm], **curve).check()  # keeps the best, too
    assert CostModel(stopping, H100).checkpoint_bytes(stopping.groups[0]) == 4 * size
    stored = make_plan(study, H100).disk_bytes
    assert stored == 4 * sum(map(costs.parameters, study.trials))
    assert make_plan(study, slow).disk_bytes == stored + 2 * 3 * size


def test_a_plan_counts_the_bytes_of_weights_that_are_kept(tmp_path: Path) -> None:
    without, with_two = (
        make_plan(
            small_study(tmp_path, seeds=[0], **changed("train", checkpoint_every=n)).check(), H100
        )
        for n in (None, 3)
    )
    assert with_two.disk_bytes == 3 * without.disk_bytes


def test_a_unit_takes_its_memory_where_it_computes(inputs: PreparedStudy) -> None:
    """Beside a GPU the base, which is loaded there first, or a checkpoint, whichever is larger."""
    library = inputs.grouping.model.library_bytes
    for group, saved in ((inputs.groups[0], 0), (inputs.groups[-1], 3)):
        memory = inputs.grouping.memory(group, inputs.config.train)
        weights = 4 * inputs.base.shapes.num_parameters
        most = max(memory.base_bytes, saved * weights)
        beside = library + CUDA_LIBRARY_BYTES
        assert memory.host_bytes(torch.device("cuda"), 0) == most + beside


@pytest.mark.parametrize(
    ("seconds", "devices", "end"),
    [([3, 3, 2, 2, 2], 2, 7), ([5, 1, 1, 1], 2, 5), ([4], 8, 4), ([1, 2, 3], 1, 6)],
)
def test_longest_units_first(seconds: list[float], devices: int, end: float) -> None:
    assert makespan(seconds, devices) == end


def test_units_on_several_devices_train_faster_and_cost_as_many(inputs: PreparedStudy) -> None:
    """Training is shared; scores take as long as on one device."""
    train = inputs.config.train.model_copy(update={"devices": 2})
    config = inputs.config.model_copy(update={"train": train})
    one, two = (
        make_plan(dataclasses.replace(inputs, config=c), H100, 4) for c in (inputs.config, config)
    )
    assert (one.devices, two.devices) == (1, 2)
    assert two.stages["training"] == pytest.approx(one.stages["training"] / 2)
    assert two.stages["scoring"] == pytest.approx(one.stages["scoring"])
    # Both full models at a time, then r = 2 beside r = 8, the longer.
    _, r8, full, _ = two.groups
    shared = two.seconds - sum(group.seconds for group in two.groups)
    assert two.wall_seconds == pytest.approx(shared + full.seconds + r8.seconds)


def test_shards_hold_the_base_whole_if_all_groups_fit_then(inputs: PreparedStudy) -> None:
    """The base is whole on each device if all groups, full fine-tuning among them, fit then."""
    train = inputs.config.train.model_copy(update={"devices": 4})
    config = inputs.config.model_copy(update={"train": train})
    full, lora = trial_of(inputs, "full"), trial_of(inputs, "lora")

    def sharded(room: int) -> PreparedStudy:
        memory = copy.copy(inputs.grouping.model)
        grouping = dataclasses.replace(inputs.grouping, model=memory, room_bytes=room)
        study = dataclasses.replace(inputs, config=config, grouping=grouping)
        study.placed([(lora,), (full,)])
        return study

    roomy = sharded(10**12)
    memory = roomy.grouping.memory((full,), train)
    needed = memory.with_pass(max(memory.pass_bytes, roomy.scoring_bytes((full,))))
    for room, replicates in ((needed - 1, False), (needed, True)):
        assert sharded(room).grouping.model.replicates is replicates
    # Further groups are cut as the first ones were: with a base in parts.
    cut = sharded(needed).grouping
    cut.model.replicates = True
    tight = dataclasses.replace(cut, room_bytes=cut.memory((lora, lora), train).base_bytes + 10**6)
    together = tight.groups([lora] * 40, config)
    tight.model.replicates = False
    assert together == tight.groups([lora] * 40, config)
