"""An adapter trained in a group equals the same adapter trained alone, by two other routes.

One is the recipe ``minimal.py``, the other PEFT; both with padded batches, transformers' attention,
every logit, plain AdamW and autograd. The group is of every method, with ranks, rates, seeds, batch
sizes, schedules and dropouts that all differ.
"""

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, LoraConfig, PeftModel, get_peft_model
from tiny_models import assert_close, base_of, tiny_llama
from torch import Tensor, nn
from toy_training import (
    ADALORA,
    ATTENTION,
    DRAWING,
    EVERY_METHOD,
    assert_same_weights,
    bits,
    full_trial,
    losses,
    minimal,
    peft_trial,
    plain_losses,
    protocol,
    recipe_steps,
    toy_rows,
    trained,
    training_tolerance,
    trial,
)

from rankscope.config.study import TrainConfig
from rankscope.models.init_context import InitContext, new_adapter
from rankscope.models.lora import Adapter, derive_seed
from rankscope.records import TrialSpec
from rankscope.train.loop import GroupResult, train_group
from rankscope.train.step_schedule import learning_rate, trial_protocol
from rankscope.train.trial_state import TrialState

STEPS = 20
PROTOCOL = TrainConfig(max_steps=STEPS, batch_size=2, gradient_accumulation=3)
RELATIVE = training_tolerance(STEPS)
ROWS = toy_rows(50)
"""Rows of 3 to 24 tokens; nine steps an epoch at the protocol's batch size, the last one short."""


@cache
def packed(dtype: torch.dtype = torch.float32) -> dict[str, TrialState]:
    """The group, trained together once."""
    result = trained(EVERY_METHOD, PROTOCOL, ROWS, dtype)
    return {state.spec.trial_id: state for state in result.states}


def started(spec: TrialSpec, dtype: torch.dtype = torch.float32) -> Adapter:
    """A trial's fresh adapter, made alone."""
    base = base_of(tiny_llama().to(dtype))
    return new_adapter(base.model, spec, InitContext(base, {spec: ROWS}, [spec]))


def without_start(model: nn.Module, adapter: Adapter) -> None:
    """PiSSA's residual base: the part that the adapter starts from is taken out of W0."""
    modules = dict(model.named_modules())
    for name, (a, b) in adapter.initial_factors.items():
        modules[name].weight.data -= adapter.scaling * (b @ a)


def rates_of(spec: TrialSpec, a: list[nn.Parameter], b: list[nn.Parameter]) -> dict[Any, float]:
    return {**dict.fromkeys(a, spec.lr), **dict.fromkeys(b, spec.lr * (spec.lr_ratio or 1))}


# --- by the recipe ---

PLAIN = [spec for spec in EVERY_METHOD if spec.method != "dora" and not spec.dropout]


@pytest.mark.parametrize("spec", PLAIN, ids=lambda spec: spec.trial_id)
def test_group_equals_the_minimal_reference(spec: TrialSpec) -> None:
    state = packed()[spec.trial_id]
    model = tiny_llama()
    start = started(spec)
    without_start(model, start)
    starts = {name: (start.a[name].data, start.b[name].data) for name in start.a}
    layers = minimal().add_lora(model, starts, start.scaling)
    a, b = [layer.a for layer in layers.values()], [layer.b for layer in layers.values()]
    slow = plain_losses(spec, model, rates_of(spec, a, b), ROWS, PROTOCOL)
    assert len(slow) == STEPS
    assert losses(state) == pytest.approx(slow, rel=RELATIVE)
    assert state.adapter is not None
    for name, layer in layers.items():
        assert_close(state.adapter.a[name], layer.a, RELATIVE)
        assert_close(state.adapter.b[name], layer.b, RELATIVE)
        assert not torch.equal(layer.b, start.b[name])


# --- by PEFT ---


class MaskedDropout(nn.Module):
    """Dropout with the masks that the packed layer draws for the same tokens, in their order.

    ``valid``: of the batch at hand, (rows, tokens) bool, False at padding.
    """

    def __init__(self, adapter: Adapter, name: str, valid: list[Tensor]) -> None:
        super().__init__()
        self.adapter, self.name, self.valid = adapter, name, valid

    def forward(self, x: Tensor) -> Tensor:
        valid = self.valid[0]
        mask = torch.ones_like(x, dtype=torch.bool)
        shape = torch.Size((int(valid.sum()), x.shape[-1]))
        mask[valid] = self.adapter.mask(self.name, shape, x.device)
        return x * mask / (1 - self.adapter.dropout)


def peft_model(spec: TrialSpec, start: Adapter, model: nn.Module) -> nn.Module:
    """PEFT's model of a trial at the start of its training, dropout masks ours."""
    without_start(model, start)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        target_modules=list(start.a),
        lora_dropout=spec.dropout,
        use_rslora=spec.method == "rslora",
        use_dora=spec.method == "dora",
        rank_pattern={name: len(a) for name, a in start.a.items()},
        alpha_pattern={name: spec.alpha / spec.rank * len(a) for name, a in start.a.items()}
        if spec.method == "eva"
        else {},
    )
    model = get_peft_model(model, config).train()
    valid: list[Tensor] = []
    steps = recipe_steps(ROWS, trial_protocol(spec, PROTOCOL), spec.seed, STEPS)
    first_of_step = iter([i == 0 for step in steps for i in range(len(step))])
    step = iter(range(STEPS))

    def note_batch(module: nn.Module, args: object, kwargs: dict[str, Tensor]) -> None:
        valid[:] = [kwargs["attention_mask"].bool()]
        if next(first_of_step):
            start.begin_step(next(step))

    model.register_forward_pre_hook(note_batch, with_kwargs=True)
    modules = dict(model.named_modules())
    for name in start.a:
        layer = modules[f"base_model.model.{name}"]
        layer.lora_A["default"].weight.data.copy_(start.a[name])
        layer.lora_B["default"].weight.data.copy_(start.b[name])
        if spec.dropout:
            layer.lora_dropout["default"] = MaskedDropout(start, name, valid)
    return model


def peft_parameters(model: nn.Module, adapter: Adapter) -> dict[str, list[nn.Parameter]]:
    """Module -> PEFT's A, B and, for DoRA, m: as ``Adapter.module_parameters``."""
    modules = dict(model.named_modules())
    found = {}
    for name in adapter.a:
        layer = modules[f"base_model.model.{name}"]
        found[name] = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        if adapter.magnitude:
            found[name].append(layer.lora_magnitude_vector["default"].weight)
    return found


def trained_by_peft(
    spec: TrialSpec, dtype: torch.dtype = torch.float32
) -> tuple[list[float], dict[str, list[nn.Parameter]]]:
    """Losses, and the parameters by module."""
    start = started(spec, dtype)
    model = peft_model(spec, start, tiny_llama().to(dtype))
    found = peft_parameters(model, start)
    slow = [p for a, _, *m in found.values() for p in (a, *m)]
    rates = rates_of(spec, slow, [b for _, b, *_ in found.values()])
    return plain_losses(spec, model, rates, ROWS, PROTOCOL), found


@pytest.mark.parametrize("spec", EVERY_METHOD, ids=lambda spec: spec.trial_id)
def test_group_equals_peft_with_plain_pytorch(spec: TrialSpec) -> None:
    state, start = packed()[spec.trial_id], started(spec)
    slow, found = trained_by_peft(spec)
    assert losses(state) == pytest.approx(slow, rel=RELATIVE)
    assert state.adapter is not None
    for name, expected in found.items():
        for ours, theirs in zip(state.adapter.module_parameters(name), expected, strict=True):
            assert_close(ours, theirs, RELATIVE)
        assert not torch.equal(expected[1], start.b[name])


BF16_LOSS = 1e-3
"""Largest relative difference of a loss; up to 4.5e-4 was found in this group."""
BF16_WEIGHTS = math.sqrt(4 * 0.8 * 2**-8)
"""Distance between the weights over the way they went; up to .054 was found. Adam moves each weight
by about the rate, and if its gradient is below the rounding error, 2^-8 of the usual size, possibly
the other way: a share of 0.8 x 2^-8 of the weights, if gradients are normal, each off by twice its
move."""


@pytest.mark.parametrize("spec", EVERY_METHOD, ids=lambda spec: spec.trial_id)
def test_in_bfloat16_a_group_stays_near_peft(spec: TrialSpec) -> None:
    """The base rounds to 8 bits on both sides; PEFT multiplies A and B in float32, the group in the
    base's dtype."""
    state = packed(torch.bfloat16)[spec.trial_id]
    slow, found = trained_by_peft(spec, torch.bfloat16)
    gaps = [abs(ours - loss) / loss for ours, loss in zip(losses(state), slow, strict=True)]
    assert state.adapter is not None
    fresh = started(spec, torch.bfloat16)
    moved = apart = 0.0
    for name, expected in found.items():
        triples = zip(
            state.adapter.module_parameters(name),
            expected,
            fresh.module_parameters(name),
            strict=True,
        )
        for ours, theirs, before in triples:
            apart += float((ours - theirs).detach().norm()) ** 2
            moved += float((theirs - before).detach().norm()) ** 2
    assert max(gaps) < BF16_LOSS
    assert (apart / moved) ** 0.5 < BF16_WEIGHTS


def test_full_fine_tuning_equals_plain_pytorch() -> None:
    spec, base = full_trial(), base_of(tiny_llama())
    result = train_group(base, [spec], ROWS, PROTOCOL)
    model = tiny_llama()
    rates = dict.fromkeys(model.parameters(), spec.lr)
    slow = plain_losses(spec, model, rates, ROWS, PROTOCOL)
    assert losses(result.states[0]) == pytest.approx(slow, rel=RELATIVE)
    tuned = dict(result.tuned.model.named_parameters())
    for name, parameter in model.named_parameters():
        assert_close(tuned[name], parameter, RELATIVE)
    # The base itself is as it was.
    for name, parameter in tiny_llama().named_parameters():
        assert torch.equal(dict(base.model.named_parameters())[name], parameter)


# --- neighbors ---


@pytest.mark.parametrize("lr", [1e6, 1e30])
def test_a_neighbor_that_diverges_changes_nobody(lr: float) -> None:
    """At 1e6 its losses would stay finite, at 1e30 its weights are no numbers after a step."""
    wild = trial("wild", method="pissa", lr=lr, warmup_fraction=0.0)
    group = [*EVERY_METHOD[:4], wild, *EVERY_METHOD[4:]]
    for state in trained(group, PROTOCOL, ROWS).states:
        if state.spec is wild:
            assert (state.failure_status, state.steps_done) == ("diverged", 1)
            continue
        alone = packed()[state.spec.trial_id]
        assert state.failure is None
        assert losses(state) == pytest.approx(losses(alone), rel=RELATIVE)
        assert_same_weights(state, alone, RELATIVE)


# --- methods of PEFT's, which equal themselves in plain PyTorch

NOTHING = 1e-8
"""AdaLoRA's singular values start at zero and move by 1e-5 in the first steps."""
PEFT_ROWS = toy_rows(44)
PEFT_STEPS = 16
PEFT_PROTOCOL = protocol(max_steps=PEFT_STEPS)
PEFT_RELATIVE = training_tolerance(PEFT_STEPS)


def reference(spec: TrialSpec, settings: dict[str, Any], **more: Any) -> PeftModel:
    """PEFT's own model with the start that the trial's seed gives."""
    settings = dict(settings)
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[settings.pop("peft_type")]
    torch.manual_seed(derive_seed("init", spec.seed, "peft"))
    model = tiny_llama()
    torch.manual_seed(derive_seed("init", spec.seed, "peft"))
    config = kind(task_type="CAUSAL_LM", target_modules=list(ATTENTION), **settings, **more)
    return get_peft_model(model, config)


def assert_near(result: GroupResult, expected: list[torch.nn.Parameter]) -> None:
    for ours, theirs in zip(result.states[0].parameters, expected, strict=True):
        gap = float((ours - theirs).detach().norm())
        assert gap <= PEFT_RELATIVE * float(theirs.detach().norm()) + NOTHING


@pytest.mark.parametrize(
    ("settings", "lr"),
    [
        ({"peft_type": "VERA", "r": 16}, 1e-2),
        ({"peft_type": "OFT", "oft_block_size": 8}, 1e-3),
        ({"peft_type": "IA3", "feedforward_modules": ["o_proj"]}, 1e-2),
        ({"peft_type": "LORA", "r": 4, "use_dora": True, "bias": "lora_only"}, 1e-3),
    ],
    ids=["vera", "oft", "ia3", "dora"],
)
def test_it_equals_peft_in_plain_pytorch(settings: dict[str, Any], lr: float) -> None:
    spec = peft_trial(lr=lr, seed=1, **settings)
    result = trained([spec], PEFT_PROTOCOL, PEFT_ROWS)
    model = reference(spec, settings)
    parameters = [p for p in model.parameters() if p.requires_grad]
    slow = plain_losses(spec, model, dict.fromkeys(parameters, lr), PEFT_ROWS, PEFT_PROTOCOL)
    assert losses(result.states[0]) == pytest.approx(slow, rel=PEFT_RELATIVE)
    assert_near(result, parameters)
    start = [p for p in reference(spec, settings).parameters() if p.requires_grad]
    assert not any(torch.equal(a, b) for a, b in zip(start, parameters, strict=True))


def test_adalora_equals_its_own_loop_in_plain_pytorch() -> None:
    """PEFT's forward adds the penalty to its loss; its budget moves after every step."""
    spec = peft_trial(seed=2, **ADALORA)
    result = trained([spec], PEFT_PROTOCOL, PEFT_ROWS)
    model = reference(spec, ADALORA, total_step=PEFT_STEPS)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
    slow = []
    for step, micro_batches in enumerate(
        recipe_steps(PEFT_ROWS, PEFT_PROTOCOL, spec.seed, PEFT_STEPS)
    ):
        batches = [minimal().padded(rows) for rows in micro_batches]
        num_labels = sum(int((labels[:, 1:] != -100).sum()) for _, _, labels in batches)
        total = 0.0
        for ids, mask, labels in batches:
            out = model(input_ids=ids, attention_mask=mask, labels=labels)
            flat, wanted = out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            loss = F.cross_entropy(flat, wanted, reduction="sum") / num_labels
            penalty = out.loss - F.cross_entropy(flat, wanted)
            (loss + penalty / len(batches)).backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, PEFT_PROTOCOL.max_grad_norm)
        optimizer.param_groups[0]["lr"] = learning_rate(spec.lr, step, PEFT_STEPS, "linear", 0.1)
        optimizer.step()
        model.base_model.update_and_allocate(step + 1)
        optimizer.zero_grad()
        slow.append(total)
    assert losses(result.states[0]) == pytest.approx(slow, rel=PEFT_RELATIVE)
    assert_near(result, parameters)
    tuner = result.states[0].tuner
    assert tuner is not None
    pattern = tuner.counters()["rank_pattern"]
    assert pattern == model.peft_config["default"].rank_pattern
    # Eight matrices keep three ranks each on average, of six.
    assert sum(map(sum, pattern.values())) == 8 * 3


def test_dropout_acts_in_training_alone_and_storing_between_steps_changes_nothing(
    tmp_path: Path,
) -> None:
    spec = peft_trial(**DRAWING["adalora"])
    plain = trained([spec], PEFT_PROTOCOL, PEFT_ROWS)
    training: list[bool] = []

    def after_step(step: int, base: Any, states: Any) -> None:
        training.append(any(module.training for module in base.model.modules()))
        folder = tmp_path / str(step)
        folder.mkdir()
        states[0].tuner.save(base.record, folder)

    assert bits(trained([spec], PEFT_PROTOCOL, PEFT_ROWS, callbacks=[after_step])) == bits(plain)
    assert training == [False] * PEFT_STEPS
    without = trained([peft_trial(**ADALORA)], PEFT_PROTOCOL, PEFT_ROWS)
    assert losses(plain.states[0])[-1] != losses(without.states[0])[-1]
