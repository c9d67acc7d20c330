"""Trials: content ids, merging, order, groups and steps."""

import itertools
import json
import math
from typing import Any

import pytest
from pocket_study import UNANALYZED

from rankscope.config.study import StudyConfig, TrainConfig
from rankscope.data.sampler import RowSampler
from rankscope.records import TrialSpec
from rankscope.run import trials as trials_module
from rankscope.run.groups import Group, make_groups, what_limits
from rankscope.run.trials import duplicate_grid_notes, make_trials
from rankscope.train.step_schedule import planned_steps, trial_protocol

DATA = {"med": "1" * 64, "law": "2" * 64}


def study(**changes: Any) -> StudyConfig:
    values: dict[str, Any] = {
        "name": "s",
        "model": "pocket",
        "tasks": ["med", "law"],
        "arms": [
            {"method": "lora", "rank": [2, 8], "lr": [1e-3, 5e-4]},
            {"method": "full", "lr": 5e-5},
        ],
        "seeds": [0, 1, 2],
    }
    return StudyConfig.model_validate({**values, **changes})


def ids(config: StudyConfig, base: str = "b" * 64) -> set[str]:
    return {trial.trial_id for trial in make_trials(config, base, DATA)}


def arm(**changes: Any) -> list[dict[str, Any]]:
    return [{"method": "lora", "rank": 8, "lr": 1e-3, **changes}]


def test_trials_are_tasks_by_points_by_seeds_in_the_documented_order() -> None:
    trials = make_trials(study(), "b", DATA)
    # 2 tasks x (2 ranks x 2 rates + 1 full) x 3 seeds
    assert len(trials) == 30
    assert [(t.task, t.rank, t.lr, t.seed) for t in trials[:7]] == [
        ("med", 2, 1e-3, 0), ("med", 2, 1e-3, 1), ("med", 2, 1e-3, 2), ("med", 2, 5e-4, 0),
        ("med", 2, 5e-4, 1), ("med", 2, 5e-4, 2), ("med", 8, 1e-3, 0),
    ]  # fmt: skip
    assert [t.task for t in trials] == ["med"] * 15 + ["law"] * 15
    assert [t.method for t in trials[12:15]] == ["full"] * 3


@pytest.mark.parametrize(
    ("alpha", "number", "scaling"),
    [
        ("2r", 16.0, 2.0), ("r", 8.0, 1.0), ("0.5r", 4.0, 0.5), ("2sqrt(r)", 32**0.5, 0.5**0.5),
        (16, 16.0, 2.0), (12.0, 12.0, 1.5),
    ],
)  # fmt: skip
def test_alpha_becomes_a_number(alpha: Any, number: float, scaling: float) -> None:
    (trial,) = make_trials(study(arms=arm(alpha=alpha), tasks=["med"], seeds=0), "b", DATA)
    assert trial.alpha == number
    assert trial.scaling == scaling


def test_equal_points_are_one_trial_however_they_are_written() -> None:
    one = study(arms=arm(targets="attention"))
    same = study(
        arms=[
            *arm(alpha=["2r", 16, 16.0], rank=[8, 8], dropout=[0, 0.0]),
            *arm(targets=["v_proj", "q_proj", "o_proj", "k_proj", "q_proj"]),
        ],
        seeds=[0, 1, 2, 2],
    )
    assert ids(one) == ids(same)


def test_what_sets_points_apart_keeps_them_apart() -> None:
    settings = [
        arm(), arm(rank=16, alpha=16), arm(alpha=8), arm(lr=2e-3), arm(method="rslora"),
        arm(targets="mlp"), arm(targets=["q_proj"]), arm(dropout=0.1), arm(method="lora+"),
        arm(method="lora+", lr_ratio=4), arm(method="dora"), arm(method="pissa"),
        arm(method="eva"), arm(batch_size=4), arm(gradient_accumulation=1),
        arm(schedule="cosine"), arm(warmup_fraction=0.2), arm(weight_decay=0.1),
        [{"method": {"peft": {"peft_type": "VERA", "r": 8}}, "lr": 1e-3}],
        [{"method": {"peft": {"peft_type": "VERA", "r": 4}}, "lr": 1e-3}],
        [{"method": {"peft": {"peft_type": "LOHA", "r": 8}}, "lr": 1e-3}],
    ]  # fmt: skip
    seen = [ids(study(arms=arms, tasks=["med"], seeds=0)) for arms in settings]
    assert len(set.union(*seen)) == len(settings)


def test_a_setting_of_the_protocol_may_stand_in_train_or_in_the_arm() -> None:
    """The trial is the same, and its label names only what the study's protocol does not say."""
    for name, value in (
        ("batch_size", 8),
        ("gradient_accumulation", 1),
        ("schedule", "cosine"),
        ("warmup_fraction", 0.0),
        ("weight_decay", 0.1),
    ):
        in_train = study(arms=arm(), tasks=["med"], train={name: value})
        in_arm = study(arms=arm(**{name: value}), tasks=["med"])
        in_both = study(arms=arm(**{name: value}), tasks=["med"], train={name: value})
        assert ids(in_train) == ids(in_arm) == ids(in_both)
        (named, *_), (bare, *_) = (make_trials(c, "b", DATA) for c in (in_arm, in_both))
        assert named.overrides == {name: value}
        assert bare.overrides == {}
        assert named.arm_label != bare.arm_label == "r=8 lr=0.001"
        for trial, config in ((named, in_arm), (bare, in_both)):
            assert getattr(trial_protocol(trial, config.train), name) == value


def test_an_arms_protocol_is_a_grid_of_its_own() -> None:
    arms = [
        *arm(batch_size=[2, 8], schedule=["linear", "constant"]),
        {"method": "full", "lr": 1e-4, "weight_decay": [0, 0.1]},
    ]
    config = study(arms=arms, seeds=0, tasks=["med"])
    trials = make_trials(config, "b", DATA)
    assert [t.arm_label for t in trials] == [
        "r=8 lr=0.001", "r=8 lr=0.001 schedule=constant", "r=8 lr=0.001 batch=8",
        "r=8 lr=0.001 batch=8 schedule=constant", "full lr=0.0001", "full lr=0.0001 decay=0.1",
    ]  # fmt: skip
    # 64 rows at 2 x 4 and at 8 x 4 rows a step, three epochs: 24 and 6 steps.
    steps = [planned_steps(64, 640, trial_protocol(t, config.train)) for t in trials]
    assert steps == [24, 24, 6, 6, 24, 24]


def test_a_method_of_pefts_carries_its_settings_and_trains_alone() -> None:
    settings = {"r": 8, "peft_type": "ADALORA", "init_r": 12, "layers_pattern": None}
    same = {"init_r": 12, "peft_type": "ADALORA", "r": 8}
    arms = [
        {"method": {"peft": settings}, "lr": [1e-3, 2e-3], "targets": "mlp"},
        {"method": {"peft": same}, "lr": 1e-3, "targets": "mlp"},
        {"method": {"peft": {"peft_type": "IA3"}}, "lr": 1e-3},
    ]
    config = study(arms=arms, seeds=0, tasks=["med"])
    trials = make_trials(config, "b", DATA)
    assert [t.arm_label for t in trials] == [
        "adalora init_r=12 r=8 lr=0.001 on mlp",
        "adalora init_r=12 r=8 lr=0.002 on mlp",
        "ia3 lr=0.001",
    ]
    assert [t.method for t in trials] == ["peft"] * 3
    assert [t.rank for t in trials] == [8, 8, None]
    assert json.loads(trials[0].peft or "") == same
    assert [len(group) for group in make_groups(trials)] == [1, 1, 1]


def test_a_trial_goes_on_from_an_adapter_by_its_content() -> None:
    """The adapter's hash is in the id, its place is not; without one the id is as it was."""

    def made(folder: str, digest: str) -> TrialSpec:
        arms = arm(init_from=folder, targets=["q_proj"])
        config = study(arms=arms, seeds=0, tasks=["med"])
        (trial,) = make_trials(config, "b", DATA, {folder: digest})
        return trial

    one, moved, other = made("/a/x", "1" * 64), made("/b/y", "1" * 64), made("/a/x", "2" * 64)
    (fresh,) = make_trials(study(arms=arm(targets=["q_proj"]), seeds=0, tasks=["med"]), "b", DATA)
    assert one.trial_id == moved.trial_id
    assert len({one.trial_id, other.trial_id, fresh.trial_id}) == 3
    assert one.arm_label == "r=8 lr=0.001 on q from x@11111111"
    assert other.arm_label == "r=8 lr=0.001 on q from x@22222222"
    assert [len(group) for group in make_groups([one, other, fresh])] == [3]


def test_duplicates_are_counted_once_per_file() -> None:
    def repeated(config: StudyConfig) -> int:
        return sum(int(note.split()[0]) for note in duplicate_grid_notes(config))

    assert repeated(study()) == 0
    assert repeated(study(arms=arm(rank=[8, 8]))) == 1
    assert repeated(study(arms=[*arm(rank=[8, 16]), *arm(rank=[8, 32])])) == 1
    assert repeated(study(arms=arm(rank=[8, 8], lr=[1e-3, 1e-4]))) == 2
    assert repeated(study(arms=arm(alpha=["2r", 16]))) == 1
    assert repeated(study(arms=[{"method": "full", "lr": [1e-4, 1e-4]}])) == 1
    assert repeated(study(seeds=[0, 0, 1, 1, 1])) == 3
    nothing = [{"kl_to_base": 0}, {"replay": {"task": "mmlu", "share": 0}}]
    plain_and_nothing = [*arm(), *(point for none in nothing for point in arm(**none))]
    assert repeated(study(arms=plain_and_nothing)) == 2
    replays = [{"task": name, "share": 0} for name in ("mmlu", "arc_easy")]
    assert repeated(study(arms=arm(replay=replays, kl_to_base=[0, 1]))) == 2


NEUTRAL: list[dict[str, Any]] = [
    {"evaluate": {"retention": ["mmlu"], "max_items": 5, "batch_tokens": 128}},
    {"analyze": UNANALYZED}, {"objective": {"retention": 3.0}},
    {"name": "other"}, {"device": "cpu"}, {"max_group_size": 2}, {"memory_limit": "2GiB"},
    {"data_dir": "/elsewhere"}, {"seeds": [2, 1, 0]}, {"train": {"checkpoint_seconds": 1.0}},
    {"train": {"evaluate_every": 10}}, {"train": {"evaluate_every": "epoch", "evaluate_items": 7}},
    {"train": {"checkpoint_every": 10}}, {"train": {"gradient_checkpointing": True}},
    {"train": {"lora_implementation": "loop"}},
]  # fmt: skip
TRAINING: list[dict[str, Any]] = [
    {"train": {"epochs": 1.0}}, {"train": {"max_steps": 10}}, {"train": {"tokens": 10}},
    {"train": {"batch_size": 4}}, {"train": {"gradient_accumulation": 2}},
    {"train": {"schedule": "cosine"}}, {"train": {"warmup_fraction": 0.0}},
    {"train": {"weight_decay": 0.1}}, {"train": {"max_grad_norm": 2.0}},
    {"train": {"max_length": 512}}, {"train": {"labels": "all"}}, {"dtype": "bfloat16"},
    {"quantize": "4bit"}, {"model": {"pocket": True, "prompt_format": "plain"}},
]  # fmt: skip


@pytest.mark.parametrize("change", NEUTRAL, ids=str)
def test_what_does_not_train_does_not_change_an_id(change: dict[str, Any]) -> None:
    assert ids(study(**change)) == ids(study())


@pytest.mark.parametrize("change", TRAINING, ids=str)
def test_what_trains_changes_every_id(change: dict[str, Any]) -> None:
    assert not ids(study(**change)) & ids(study())


def test_every_field_of_the_protocol_is_in_one_of_the_lists() -> None:
    listed = {name for change in (*NEUTRAL, *TRAINING) for name in change.get("train", {})}
    unlisted = {"batch_tokens", "devices", "kernels", "objective", "optimizer"}
    assert listed | unlisted == set(TrainConfig.model_fields)


def test_base_data_and_code_version_enter_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    before = make_trials(study(), "b", DATA)
    assert not ids(study(), base="c") & {t.trial_id for t in before}
    after = make_trials(study(), "b", {**DATA, "law": "3" * 64})
    changed = {t.task for t, u in zip(before, after, strict=True) if t.trial_id != u.trial_id}
    assert changed == {"law"}
    monkeypatch.setattr(trials_module, "RESULTS_VERSION", 10**6)
    assert not {t.trial_id for t in make_trials(study(), "b", DATA)} & {t.trial_id for t in before}


def test_epochs_do_not_matter_beside_max_steps() -> None:
    few = study(train={"max_steps": 7, "epochs": 1.0})
    many = study(train={"max_steps": 7, "epochs": 9.0})
    assert ids(few) == ids(many)


def test_an_8_bit_optimizer_changes_full_fine_tuning_alone() -> None:
    before = make_trials(study(), "b", DATA)
    after = make_trials(study(train={"optimizer": "adamw8bit"}), "b", DATA)
    changed = {t.method for t, u in zip(before, after, strict=True) if t.trial_id != u.trial_id}
    assert changed == {"full"}


def test_ids_stay_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of the code may not make trained trials unknown; raise RESULTS_VERSION instead."""
    monkeypatch.setattr(trials_module, "RESULTS_VERSION", 1)
    assert [t.trial_id for t in make_trials(study(), "b", DATA)][::6] == [
        "c904414cceba2fb4", "1c7ccf106a163ad6", "a34454f052dd11ca", "2049daac40c5e4ad",
        "1ab7545fc60ce41a",
    ]  # fmt: skip


def test_groups_hold_each_trial_once_and_full_trials_alone() -> None:
    trials = make_trials(study(), "b", DATA)
    groups = make_groups(trials, 5)
    assert sorted(t.trial_id for group in groups for t in group) == sorted(
        t.trial_id for t in trials
    )
    for group in groups:
        assert len({t.task for t in group}) == 1
        assert len(group) <= 5
        if any(t.method == "full" for t in group):
            assert len(group) == 1
    # 12 LoRA trials of a task at most 5 together: three groups of 4, then three full trials.
    assert [len(group) for group in groups] == [4, 4, 4, 1, 1, 1] * 2


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 11, 12, 13, 100])
def test_groups_are_as_few_as_the_limit_allows_and_balanced(limit: int) -> None:
    adapters = [t for t in make_trials(study(tasks=["med"]), "b", DATA) if t.method == "lora"]
    groups = make_groups(adapters, limit)
    sizes = [len(group) for group in groups]
    assert len(sizes) == -(-len(adapters) // limit)
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= limit
    assert [t for group in groups for t in group] == adapters


def test_groups_are_as_few_as_the_memory_allows() -> None:
    """Memory as 10 for the base and the rank of each: by hand, 12 trials of ranks 2 and 8."""
    adapters = [t for t in make_trials(study(tasks=["med"]), "b", DATA) if t.method == "lora"]

    def memory(group: Group) -> int:
        return 10 + sum(t.rank or 0 for t in group)

    for room in (10, 60, 100, 200, 10_000):
        groups = make_groups(adapters, 5, lambda group, room=room: memory(group) <= room)
        assert [t for group in groups for t in group] == adapters
        assert all(memory(group) <= room or len(group) == 1 for group in groups)
        for group, following in itertools.pairwise(groups):  # none could take one more
            assert memory((*group, following[0])) > room or len(groups) == 3
        limits = {what_limits(group, groups, 5) for group in groups}
        assert limits == {"memory" if len(groups) > 3 else "size limit"}
    whole = make_groups(adapters, 16)
    assert what_limits(whole[0], whole, 16) == "all trials of the task"


def rank_trials(ranks: list[int]) -> list[TrialSpec]:
    """One trial of each rank, in order."""
    config = study(tasks=["med"], arms=arm(), seeds=list(range(len(ranks))))
    trials = make_trials(config, "b", DATA)
    return [t.model_copy(update={"rank": rank}) for t, rank in zip(trials, ranks, strict=True)]


@pytest.mark.parametrize(
    ("ranks", "sizes"),
    [
        ([8] * 15 + [590], [15, 1]),
        ([590] + [8] * 15, [2, 14]),
        ([8] * 15 + [700], [15, 1]),  # 700 does not fit alone
        ([8] * 7 + [700] + [8] * 8, [7, 1, 8]),
        ([700] * 3, [1, 1, 1]),
        ([100] * 16, [6, 6, 4]),
        ([8] * 17, [8, 9]),
    ],
)
def test_a_large_trial_leaves_the_others_together(ranks: list[int], sizes: list[int]) -> None:
    """Memory as the sum of ranks, 600 of it."""
    trials = rank_trials(ranks)
    groups = make_groups(trials, None, lambda group: sum(t.rank or 0 for t in group) <= 600)
    assert [len(group) for group in groups] == sizes
    assert [t for group in groups for t in group] == trials


@pytest.mark.parametrize(
    ("rows", "train", "steps"),
    [
        # The paper's protocol on GSM8K: ceil(7473 / 8) = 935 steps an epoch, three epochs.
        (7473, TrainConfig(), 2805),
        (8, TrainConfig(epochs=1), 1),
        (9, TrainConfig(epochs=1), 2),
        (1, TrainConfig(epochs=1), 1),
        (80, TrainConfig(epochs=0.25), 3),
        (80, TrainConfig(epochs=3, max_steps=4), 4),
        (80, TrainConfig(epochs=3, max_steps=400), 400),
        # 80 rows of 10 tokens are ten steps of 80 tokens; a step begun is a step.
        (80, TrainConfig(tokens=800), 10),
        (80, TrainConfig(tokens=801), 11),
        (80, TrainConfig(tokens=1), 1),
        # 9 rows are two steps an epoch of 90 tokens: 45 tokens to a step on the average.
        (9, TrainConfig(tokens=135), 3),
    ],
)
def test_planned_steps(rows: int, train: TrainConfig, steps: int) -> None:
    assert planned_steps(rows, 10 * rows, train) == steps


@pytest.mark.parametrize("rows", [1, 2, 7, 64, 65, 1000])
@pytest.mark.parametrize(("batch", "accumulation"), [(1, 1), (2, 4), (3, 5), (64, 1)])
@pytest.mark.parametrize("epochs", [0.1, 1.0, 2.5, 3.0])
def test_the_plan_counts_the_steps_that_training_takes(
    rows: int, batch: int, accumulation: int, epochs: float
) -> None:
    train = TrainConfig(epochs=epochs, batch_size=batch, gradient_accumulation=accumulation)
    order = RowSampler(rows, batch, accumulation, seed=0)
    assert planned_steps(rows, 10 * rows, train) == math.ceil(epochs * order.steps_per_epoch)


def test_an_adapter_is_the_same_trial_on_any_number_of_devices() -> None:
    """Not so a fully fine-tuned model, whose activations may be rounded otherwise."""
    one, two, four = (
        make_trials(study(device="cpu", train={"devices": n}), "b" * 64, DATA) for n in (1, 2, 4)
    )
    for a, b in zip(one, two, strict=True):
        assert (a.trial_id == b.trial_id) is (a.method == "lora")
    assert [t.trial_id for t in two] == [t.trial_id for t in four]
