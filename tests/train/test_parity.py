"""An adapter trained in a pack equals the same adapter trained alone, by three other routes."""

import importlib.util
import random
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rankscope.config.schema import TrainConfig
from rankscope.data.batches import RowOrder
from rankscope.data.encode import EncodedRow
from rankscope.models.methods import new_adapter
from rankscope.records import TrialSpec
from rankscope.train.loop import train_pack
from rankscope.trials import planned_steps
from tiny_models import VOCABULARY, base_of, tiny_llama

ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")
PROTOCOL = TrainConfig(epochs=2, batch_size=2, gradient_accumulation=3)
RELATIVE = 1e-5


def trial(
    rank: int | None, lr: float, seed: int, targets: tuple[str, ...] = ATTENTION
) -> TrialSpec:
    return TrialSpec(
        trial_id=f"r{rank}-{lr}-{seed}",
        task="toy",
        method="full" if rank is None else "lora",
        rank=rank,
        alpha=None if rank is None else 2.0 * rank,
        lr=lr,
        targets=() if rank is None else targets,
        dropout=0.0,
        seed=seed,
    )


PACK = [
    trial(1, 1e-2, 0),
    trial(4, 3e-3, 1),
    trial(4, 1e-3, 0, ("q_proj", "down_proj", "lm_head")),  # the head sees kept positions alone
    trial(16, 1e-3, 2),
    trial(64, 3e-4, 3),
]


@pytest.fixture(scope="module")
def rows() -> list[EncodedRow]:
    """50 rows of 3 to 24 tokens; the last one to six carry loss."""
    rng = random.Random(0)
    made = []
    for _ in range(50):
        length = rng.randint(3, 24)
        labelled = rng.randint(1, min(6, length - 1))
        ids = tuple(rng.randrange(3, VOCABULARY) for _ in range(length))
        made.append(EncodedRow(ids, (False,) * (length - labelled) + (True,) * labelled, False))
    return made


def minimal() -> ModuleType:
    """The reference recipe, loaded from its file."""
    path = Path(__file__).parents[2] / "recipes" / "minimal.py"
    spec = importlib.util.spec_from_file_location("minimal", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference_steps(spec: TrialSpec, rows: list[EncodedRow]) -> list:
    """The recipe's input: per optimizer step the micro-batches of (ids, labelled)."""
    order = RowOrder(len(rows), PROTOCOL.batch_size, PROTOCOL.gradient_accumulation, spec.seed)
    return [
        [[(list(rows[i].input_ids), list(rows[i].is_label)) for i in m] for m in order.step(step)]
        for step in range(planned_steps(len(rows), sum(len(r.input_ids) for r in rows), PROTOCOL))
    ]


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-5 of the tensor's norm."""
    assert float((found - expected).norm()) <= RELATIVE * float(expected.norm())


def test_pack_equals_the_minimal_reference(rows: list[EncodedRow]) -> None:
    result = train_pack(base_of(tiny_llama()), PACK, rows, PROTOCOL)
    recipe = minimal()
    for trainee in result.trainees:
        model = tiny_llama()
        start = new_adapter(model, trainee.spec)
        starts = {name: (start.a[name].data, start.b[name].data) for name in start.a}
        layers = recipe.add_lora(model, starts, start.scaling)
        parameters = [p for layer in layers.values() for p in (layer.a, layer.b)]
        losses = recipe.train(
            model, parameters, reference_steps(trainee.spec, rows), trainee.spec.lr
        )
        assert [p.loss for p in trainee.losses] == pytest.approx(losses, rel=RELATIVE)
        assert trainee.adapter is not None
        for name, layer in layers.items():
            assert_same(trainee.adapter.a[name].data, layer.a.data)
            assert_same(trainee.adapter.b[name].data, layer.b.data)
            assert float(layer.b.detach().norm()) > 0


def test_pack_equals_peft_with_plain_pytorch(rows: list[EncodedRow]) -> None:
    result = train_pack(base_of(tiny_llama()), PACK, rows, PROTOCOL)
    for trainee in result.trainees:
        spec = trainee.spec
        model = tiny_llama()
        start = new_adapter(model, spec)
        config = LoraConfig(
            r=spec.rank, lora_alpha=int(spec.alpha), target_modules=list(spec.targets)
        )
        peft_model = get_peft_model(model, config)
        weights = {
            name.removeprefix("base_model.model.").replace(".default.weight", ""): parameter
            for name, parameter in peft_model.named_parameters()
            if parameter.requires_grad
        }
        with torch.no_grad():
            for name in start.a:
                weights[f"{name}.lora_A"].copy_(start.a[name])
                weights[f"{name}.lora_B"].copy_(start.b[name])
        losses = minimal().train(
            peft_model, list(weights.values()), reference_steps(spec, rows), spec.lr
        )
        assert [p.loss for p in trainee.losses] == pytest.approx(losses, rel=RELATIVE)
        assert trainee.adapter is not None
        for name in trainee.adapter.a:
            assert_same(trainee.adapter.a[name].data, weights[f"{name}.lora_A"].data)
            assert_same(trainee.adapter.b[name].data, weights[f"{name}.lora_B"].data)


def test_full_fine_tuning_equals_plain_pytorch(rows: list[EncodedRow]) -> None:
    spec = trial(None, 1e-3, 0)
    base = base_of(tiny_llama())
    result = train_pack(base, [spec], rows, PROTOCOL)
    model = tiny_llama()
    losses = minimal().train(model, list(model.parameters()), reference_steps(spec, rows), 1e-3)
    assert [p.loss for p in result.trainees[0].losses] == pytest.approx(losses, rel=RELATIVE)
    tuned = dict(result.base.model.named_parameters())
    for name, parameter in model.named_parameters():
        assert_same(tuned[name].data, parameter.data)
    # The base itself is as it was.
    for name, parameter in tiny_llama().named_parameters():
        assert torch.equal(dict(base.model.named_parameters())[name], parameter)
