"""Time of a plan: operations by hand, and what must and must not change an estimate."""

import dataclasses
from pathlib import Path

import pytest
import torch
from pocket_study import changed, small_study, study_file

from rankscope.errors import UserError
from rankscope.evaluate.scorers.scorer import ItemTokens
from rankscope.records import TrialSpec
from rankscope.run import savings
from rankscope.run.costs import ENDING_SECONDS, IMPORT_SECONDS, CostModel
from rankscope.run.machines import MACHINES, find_machine
from rankscope.run.plan import Plan, make_plan, makespan
from rankscope.run.prepared import PreparedStudy
from rankscope.run.study import Study

H100 = MACHINES["h100"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> PreparedStudy:
    return small_study(tmp_path_factory.mktemp("study")).check()


def trial_of(inputs: PreparedStudy, method: str) -> TrialSpec:
    return next(trial for trial in inputs.trials if trial.method == method)


def test_operations_by_hand(inputs: PreparedStudy) -> None:
    """Of the pocket model: 4 layers of width 96, ..., and an output layer for labels alone."""
    costs = CostModel(inputs, H100)
    linears = inputs.base.shapes.linear_shapes
    out, width = linears["lm_head"]
    body = sum(m * n for name, (m, n) in linears.items() if name != "lm_head")
    attention = sum(n for name, (_, n) in linears.items() if name.endswith("o_proj"))
    # 100 tokens that each attend to 20 keys, 7 logits.
    assert costs.forward(100, 7, 20) == 100 * (2 * body + 4 * attention * 20) + 7 * 2 * out * width
    # A label costs one row of the output layer; tokens without one cost nothing there, and an
    # embedding, which is no linear layer, costs nothing at all.
    assert costs.forward(100, 8, 20) - costs.forward(100, 7, 20) == 2 * out * width
    assert inputs.base.shapes.num_parameters > body


def test_full_fine_tuning_takes_half_as_much_again(inputs: PreparedStudy) -> None:
    """Forward, activations and weights against forward and activations, adapters aside."""
    costs, full, lora = (
        CostModel(inputs, H100),
        trial_of(inputs, "full"),
        trial_of(inputs, "lora"),
    )
    rows, tokens = inputs.rows[full.task], 1000
    keys, labels = costs.mean_keys(full.task), tokens * rows.num_label_tokens / rows.num_tokens
    forward = costs.forward(tokens, labels, keys)
    assert costs.training_operations(full, tokens) == pytest.approx(3 * forward)
    added = tokens * (6 * costs.parameters(lora) + 4 * costs.attention * keys)
    assert costs.training_operations(lora, tokens) == pytest.approx(2 * forward + added)


def test_recomputation_is_one_more_forward_pass(tmp_path: Path, inputs: PreparedStudy) -> None:
    again = small_study(tmp_path, **changed("train", gradient_checkpointing=True)).check()
    full = trial_of(inputs, "full")
    plain, recomputed = (
        CostModel(of, H100).training_operations(full, 1000) for of in (inputs, again)
    )
    assert recomputed / plain == pytest.approx(4 / 3)


def test_time_depends_on_rate_and_on_memory(inputs: PreparedStudy) -> None:
    """The pocket model is so small that starting its layers takes most of a GPU's time."""
    plain = make_plan(inputs, H100)
    slow = make_plan(inputs, dataclasses.replace(H100, rates={"float32": 0.01}))
    narrow = make_plan(inputs, dataclasses.replace(H100, bandwidth=1))
    assert plain.stages.training < min(slow.stages.training, narrow.stages.training)
    assert slow.stages.analyses["spectra"] == pytest.approx(6700 * plain.stages.analyses["spectra"])
    assert "67 TFLOP/s (float32)" in plain.basis
    assert "not measured" in plain.basis
    assert "used to less than 1% (published" in H100.basis(torch.float32, 0.002)
    assert "used to 20% (published" in H100.basis(torch.float32, 0.2)


def test_stages_and_groups_add_up(inputs: PreparedStudy) -> None:
    plan: Plan = make_plan(inputs, H100, gpus=2)
    assert plan.seconds == pytest.approx(plan.stages.total)
    of_groups = sum(group.seconds for group in plan.groups)
    base = plan.seconds - of_groups
    start = plan.stages.starting - sum(group.stages.starting for group in plan.groups)
    assert 0 < base - start < of_groups
    assert start > IMPORT_SECONDS + ENDING_SECONDS
    tokens = sum(rows.num_tokens for rows in inputs.rows.values())
    vocabulary, weights = inputs.base.config.vocab_size, 4 * inputs.base.shapes.num_parameters
    by_hand = 1 + 4.5 + vocabulary / 1e5 + tokens / 4e5 + weights / 0.5e9
    assert CostModel(inputs, H100).start(0) == pytest.approx(by_hand)
    assert max(g.seconds for g in plan.groups) < plan.wall_seconds - base + 1e-9
    assert base + of_groups / 2 <= plan.wall_seconds < plan.seconds
    assert all(group.fits for group in plan.groups)
    tiny = make_plan(inputs, dataclasses.replace(H100, memory=1e-3))
    assert not any(group.fits for group in tiny.groups)


def test_trained_weights_are_written_and_read(inputs: PreparedStudy) -> None:
    """Four bytes each at 0.5 GB/s, written once and read twice, for scores and for spectra."""
    plan = make_plan(inputs, H100)
    full = next(group for group in plan.groups if "full" in group.labels[0])
    seconds = 3 * 4 * inputs.base.shapes.num_parameters / 0.5e9
    assert full.stages.starting == pytest.approx(seconds)


def test_a_rung_costs_checkpoints(tmp_path: Path) -> None:
    """Of three rates of full fine-tuning two end, each with a checkpoint of three times the weights
    written and read. The third writes one at the rung where it stops, a quarter of the way, and
    never its weights."""
    arms = [{"method": "full", "lr": [1e-3, 2e-3, 4e-3]}]
    adaptive = {"strategy": "adaptive", "rungs": [0.25], "seeds": [0], "arms": arms}
    study = small_study(tmp_path, **adaptive).check()
    plan, costs = make_plan(study, H100), CostModel(study, H100)
    ends, third = plan.groups[:2], plan.groups[2]
    seconds = 4 * study.base.shapes.num_parameters / 0.5e9
    base = plan.seconds - sum(group.seconds for group in plan.groups)
    expected = base + sum(group.seconds for group in ends) + 2 * 6 * seconds
    expected += 0.25 * (third.seconds - third.stages.starting) + 3 * seconds
    assert plan.expected_seconds == pytest.approx(expected)
    assert costs.checkpoint(study.trials[0]) == pytest.approx(3 * seconds)


def test_rounds_of_an_adaptive_study_wait_for_their_last_unit(tmp_path: Path) -> None:
    """On two devices three rates of full fine-tuning take two turns until their rung, and the two
    that go on one turn. Then every other seed is a round. Units start anew in each."""
    arms = [{"method": "full", "lr": [1e-3, 2e-3, 4e-3]}]
    adaptive = {"strategy": "adaptive", "rungs": [0.25], "seeds": [0, 1], "arms": arms}
    study = small_study(tmp_path, **adaptive).check()
    alone, units = make_plan(study, H100), make_plan(study, H100, 2, executor="ray")
    (first_seed, other_seed), start = units.groups[:2], units.start_seconds
    own = first_seed.seconds - first_seed.stages.starting
    written = 3 * 4 * study.base.shapes.num_parameters / 0.5e9
    first = [start + 0.25 * own + written] * 3
    base = alone.shared_seconds - start - units.shared_seconds
    rounds = [
        [start + base, *first],  # the base's scores are a unit
        [start + 0.75 * own + 2 * written] * 2,
        [start + other_seed.seconds] * 3,
    ]
    expected = units.shared_seconds + sum(makespan(in_turn, 2) for in_turn in rounds)
    assert units.expected_seconds == pytest.approx(expected)
    assert alone.expected_seconds == pytest.approx(
        alone.shared_seconds + sum(map(sum, rounds)) - base - 9 * start
    )


def test_units_take_their_starts_and_wait_for_the_longest(inputs: PreparedStudy) -> None:
    alone, units = make_plan(inputs, H100, 4), make_plan(inputs, H100, 4, executor="ray")
    assert (alone.executor, alone.start_seconds, units.executor) == (None, 0, "ray")
    assert units.start_seconds > CostModel(inputs, H100).start(0) > IMPORT_SECONDS
    forked = make_plan(inputs, H100, 4, executor="local")
    assert units.start_seconds - forked.start_seconds == pytest.approx(IMPORT_SECONDS)
    count, start = len(units.groups) + 1, units.start_seconds  # one scores the base
    assert alone.device_seconds == pytest.approx(alone.seconds)
    assert alone.seconds == pytest.approx(units.seconds + start)
    assert units.device_seconds == pytest.approx(units.seconds + count * start)
    imports = (count - 1) * IMPORT_SECONDS  # one process imports for all
    assert units.device_seconds - forked.device_seconds == pytest.approx(imports)
    scores = units.seconds - sum(group.seconds for group in units.groups) - units.shared_seconds
    assert scores > 0
    assert alone.shared_seconds == pytest.approx(start + units.shared_seconds + scores)
    longest = max(scores, *(group.seconds for group in units.groups))
    assert units.critical_seconds == pytest.approx(units.shared_seconds + start + longest)
    # As many devices as units: the longest one is what everything waits for.
    many = make_plan(inputs, H100, count, executor="ray")
    assert many.wall_seconds == pytest.approx(units.critical_seconds)


def test_units_on_several_devices_train_faster_and_cost_as_many(inputs: PreparedStudy) -> None:
    """Training is shared; scores and spectra take as long as on one device."""
    train = inputs.config.train.model_copy(update={"devices": 2})
    config = inputs.config.model_copy(update={"train": train})
    one, two = (
        make_plan(dataclasses.replace(inputs, config=c), H100, 4) for c in (inputs.config, config)
    )
    assert (one.devices, two.devices) == (1, 2)
    assert two.stages.training == pytest.approx(one.stages.training / 2)
    assert two.stages.scoring == pytest.approx(one.stages.scoring)
    assert two.device_seconds == pytest.approx(2 * two.seconds)
    base = two.seconds - sum(group.seconds for group in two.groups)
    halves = makespan([group.seconds for group in two.groups], 2)
    assert two.wall_seconds == pytest.approx(base + halves)
    assert two.basis == one.basis


def test_a_study_on_several_devices_is_planned_as_units(tmp_path: Path) -> None:
    """Which a run makes of it, too."""
    study = small_study(tmp_path, **changed("train", devices=2))
    plan = study.plan(device="h100", gpus=2)
    assert plan.executor == "local"
    assert plan.start_seconds > 0
    assert small_study(tmp_path).plan(device="h100").executor is None


def test_a_unit_takes_its_memory_where_it_computes(inputs: PreparedStudy) -> None:
    """On a processor all of it; beside a GPU the base, which is loaded there first."""
    plan = make_plan(inputs, H100)  # of a study that was prepared on a processor
    library = plan.library_bytes
    assert all(g.host_bytes == g.memory_bytes + library for g in plan.groups)
    memory = inputs.grouping.memory(inputs.groups[0], inputs.config.train)
    assert memory.host_bytes(torch.device("cuda"), 0) == memory.base_bytes + library


def test_no_pass_uses_more_of_the_rate_than_is_published(inputs: PreparedStudy) -> None:
    """On a machine with endless bandwidth only products take time."""
    endless = dataclasses.replace(H100, bandwidth=1e12)
    costs, measured = (
        CostModel(inputs, dataclasses.replace(endless, utilization=share)) for share in (0.41, 1.0)
    )
    alone = 1e15 / (67e12)
    assert measured.passes(1e15, 1, 1) == pytest.approx(alone)
    assert costs.passes(1e15, 1, 1) == pytest.approx(alone / 0.41)


def test_what_to_drop_saves_what_a_plan_without_it_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The savings named, taken up one by one in study files of their own."""
    monkeypatch.setattr(savings, "LEAST_SHARE", 0.0)  # the start is most of so small a study
    plan = make_plan(small_study(tmp_path).check(), H100)
    saved = {saving.change: saving.seconds for saving in plan.savings}
    assert len(saved) == 3
    assert list(saved.values()) == sorted(saved.values(), reverse=True)
    assert "seeds=[0]" in saved
    one_seed = make_plan(small_study(tmp_path, seeds=[0]).check(), H100)
    # Passes of smaller groups are counted whole.
    assert plan.seconds - one_seed.seconds == pytest.approx(saved["seeds=[0]"], rel=0.05)


def test_an_arm_saves_its_own_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two arms with the same rates, and one that shares a trial with the first."""
    monkeypatch.setattr(savings, "NUM_SAVINGS", 9)
    monkeypatch.setattr(savings, "LEAST_SHARE", 0.0)
    arms = [
        {"method": "lora", "rank": 2, "lr": [1e-3, 2e-3]},
        {"method": "lora", "rank": 8, "lr": [1e-3, 2e-3], "targets": ["q_proj"]},
        {"method": "lora", "rank": 2, "lr": [2e-3, 4e-3]},
    ]
    file = study_file(tmp_path, arms=arms, seeds=[0], max_group_size=1)
    plan = make_plan(Study.load(file).check(), H100)
    saved = {s.change: s.seconds for s in plan.savings if "max_items" not in s.change}
    rates = {f"arms.{index}.lr=0.002" for index in range(2)}  # the third arm's is the first's, too
    assert saved.keys() == {"analyze.spectra.enabled=false", *rates}
    for change, seconds in saved.items():
        without = make_plan(Study.load(file, [change]).check(), H100)
        assert plan.seconds - without.seconds == pytest.approx(seconds)


def test_generation_waits_for_memory(inputs: PreparedStudy) -> None:
    """Each step of decoding reads all weights, whatever the machine computes."""
    slow = dataclasses.replace(H100, bandwidth=1e-3)
    items = [ItemTokens(read=10, predicted=1, written=50)]
    weights = inputs.base.shapes.num_parameters * inputs.dtype.itemsize
    assert CostModel(inputs, slow).scoring(items) > 50 * weights / 1e6


@pytest.mark.parametrize(
    ("seconds", "devices", "end"),
    [([3, 3, 2, 2, 2], 2, 7), ([5, 1, 1, 1], 2, 5), ([4], 8, 4), ([1, 2, 3], 1, 6)],
)
def test_longest_units_first(seconds: list[float], devices: int, end: float) -> None:
    assert makespan(seconds, devices) == end


def test_an_unknown_device_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'h10'; did you mean 'h100'.*a100"):
        find_machine("h10")
    assert find_machine("here") is None
