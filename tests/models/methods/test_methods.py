"""The registry, and where each method starts, against its paper's formula and against PEFT."""

from pathlib import Path

import pytest
import torch
from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
from tiny_models import assert_close, base_of, delta, logits_of, tiny_llama
from torch import Tensor
from toy_training import ATTENTION, minimal, toy_rows, trial

from rankscope.data.encode import EncodedRow
from rankscope.data.sampler import RowSampler
from rankscope.errors import UserError
from rankscope.models import input_directions, methods
from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.init_context import InitContext, new_adapter
from rankscope.models.lora import Adapter
from rankscope.models.methods import get_method
from rankscope.models.multi_lora import linear_layers, target_linears
from rankscope.models.parameters import architecture
from rankscope.models.study_base import StudyBase
from rankscope.records import TrialSpec

LINEAR = (*ATTENTION, "down_proj", "gate_proj", "up_proj")
ROWS = toy_rows(80)
METHODS = pytest.mark.parametrize("method", ["lora", "rslora", "lora+", "dora", "pissa", "eva"])


def started(base: Base, *specs: TrialSpec, rows: list[EncodedRow] = ROWS) -> list[Adapter]:
    """Fresh adapters of one multi_lora, attached."""
    starts = InitContext(base, dict.fromkeys(specs, rows), specs)
    adapters = [new_adapter(base.model, spec, starts) for spec in specs]
    for adapter in adapters:
        base.multi_lora.attach(adapter)
    return adapters


@METHODS
@pytest.mark.parametrize("targets", [ATTENTION, LINEAR], ids=["attention", "all-linear"])
def test_a_fresh_adapter_computes_what_the_base_does(method: str, targets: tuple[str, ...]) -> None:
    base = base_of(tiny_llama())
    started(base, trial("a", method=method, targets=targets))
    bare, fresh = logits_of(base), logits_of(base, "a")
    assert_close(fresh, bare, 1e-6)
    assert method not in ("lora", "rslora", "lora+") or torch.equal(fresh, bare)  # B is zero


@METHODS
def test_a_start_depends_on_its_own_trial_alone(method: str) -> None:
    spec = trial("a", method=method, seed=3)
    (alone,) = started(base_of(tiny_llama()), spec)
    others = [
        trial("b", method=method, rank=16, seed=3),
        trial("c", method=method, targets=LINEAR),
        trial("d", rank=1),
    ]
    packed = started(base_of(tiny_llama()), *others, spec)[-1]
    assert packed.a.keys() == alone.a.keys()
    for name in alone.a:
        for found, expected in zip(
            packed.module_parameters(name), alone.module_parameters(name), strict=True
        ):
            assert torch.equal(found, expected)


def test_doras_magnitude_is_the_length_of_every_row() -> None:
    base = base_of(tiny_llama())
    (adapter,) = started(base, trial("a", method="dora", targets=LINEAR))
    assert adapter.magnitude.keys() == adapter.a.keys()
    for name, layer in linear_layers(base.model).items():
        if name in adapter.a:
            rows = torch.stack([row.norm() for row in layer.weight])
            torch.testing.assert_close(adapter.magnitude[name].data, rows)
            assert float(delta(adapter, name, layer.weight).norm()) < 1e-5
    # PEFT 0.21 begins with the same numbers.
    config = LoraConfig(r=4, target_modules=list(LINEAR), use_dora=True)
    for name, parameter in get_peft_model(tiny_llama(), config).named_parameters():
        if "magnitude" in name:
            module = name.removeprefix("base_model.model.").split(".lora_magnitude")[0]
            torch.testing.assert_close(adapter.magnitude[module].data, parameter.data)


@pytest.mark.parametrize("alpha", [4.0, 8.0, 3.0])
@pytest.mark.parametrize("rank", [1, 4, 32])
def test_pissa_starts_as_the_leading_part_of_the_weight(rank: int, alpha: float) -> None:
    """s B0 A0 is the best approximation of W0 of rank r (Eckart & Young 1936): what is left of W0
    has the remaining singular values. PEFT's A and B span the same."""
    base = base_of(tiny_llama())
    (adapter,) = started(base, trial("a", method="pissa", rank=rank, alpha=alpha, targets=LINEAR))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=list(LINEAR),
        init_lora_weights="pissa",
    )
    peft = dict(get_peft_model(tiny_llama(), config).named_parameters())
    for name, layer in target_linears(base.model, LINEAR).items():
        part = adapter.scaling * adapter.b[name].detach() @ adapter.a[name].detach()
        left = torch.linalg.svdvals(layer.weight - part)
        expected = torch.linalg.svdvals(layer.weight)[rank:]
        torch.testing.assert_close(left[: len(expected)], expected, rtol=1e-4, atol=1e-5)
        assert not delta(adapter, name, layer.weight).any()
        gram = adapter.b[name].detach().mT @ adapter.b[name].detach()
        torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=0, atol=1e-5)
        a, b = (
            peft[f"base_model.model.{name}.lora_{side}.default.weight"].detach() for side in "AB"
        )
        torch.testing.assert_close(alpha / rank * b @ a, part, rtol=1e-4, atol=1e-5)


# --- EVA ---


def leaders_of(base: Base) -> dict[str, str]:
    batch = RowBatch.of([Row(ROWS[0].input_ids, [0])], base.device)
    return input_directions.shared_inputs(base, target_linears(base.model, LINEAR), batch)


def padded(rows: list[EncodedRow]) -> dict[str, Tensor]:
    """A batch as PEFT takes it."""
    ids, mask, _ = minimal().padded([(list(r.input_ids), list(r.is_label)) for r in rows])
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("rank", [1, 4, 20])
def test_eva_shares_out_the_ranks_among_orthogonal_directions(rank: int) -> None:
    """At rank 20 more directions are followed than the randomized decomposition could give."""
    base = base_of(tiny_llama())
    (adapter,) = started(base, trial("a", method="eva", rank=rank, targets=LINEAR))
    ranks = [len(a) for a in adapter.a.values()]
    assert sum(ranks) == rank * 14
    assert len(set(ranks)) > 1
    assert max(ranks) <= 2 * rank
    for name, a in adapter.a.items():
        torch.testing.assert_close(a @ a.mT, torch.eye(len(a)), rtol=0, atol=1e-4)
        assert adapter.b[name].shape[1] == len(a)
        assert not adapter.b[name].any()
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}


@pytest.mark.filterwarnings("ignore:lora with eva initialization used with low_cpu_mem_usage")
@pytest.mark.parametrize("rank", [1, 4])
def test_eva_starts_as_pefts_does(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = 400
    monkeypatch.setattr(input_directions, "EVA_BATCH_TOKENS", tokens)
    base = base_of(tiny_llama())
    (adapter,) = started(base, trial("a", method="eva", rank=rank, targets=LINEAR, seed=5))

    batches: list[list[EncodedRow]] = [[]]
    for row in (ROWS[i] for i in RowSampler(len(ROWS), 1, 1, 5).epoch(0)):
        if sum(len(r.input_ids) for r in batches[-1]) + len(row.input_ids) > tokens:
            batches.append([])
        batches[-1].append(row)
    assert len(batches) == 3
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=list(LINEAR), init_lora_weights="eva",
        eva_config=EvaConfig(use_label_mask=False),
    )  # fmt: skip
    model = get_peft_model(tiny_llama(), config)
    initialize_lora_eva_weights(model, [padded(b) for b in batches], show_progress_bar=False)
    peft = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight"): p.detach()
        for name, p in model.named_parameters()
        if "lora_A" in name
    }
    leaders = leaders_of(base)
    for leader in set(leaders.values()):
        alike = [name for name in leaders if leaders[name] == leader]
        ours, theirs = (
            sorted(len(a[name]) if name in a else 0 for name in alike) for a in (adapter.a, peft)
        )
        # Modules that see the same tie, and PEFT's sort puts equals in any order.
        assert ours == theirs
    for name in adapter.a.keys() & peft.keys():
        common = min(len(adapter.a[name]), len(peft[name]))
        gap = adapter.a[name].detach()[:common] - peft[name][:common]
        assert float(gap.norm(dim=1).max()) < 1e-3


def test_modules_that_see_the_same_are_looked_at_once() -> None:
    base = base_of(tiny_llama())
    started(base, trial("a", targets=LINEAR))  # adapters in place must not hide what is shared
    leaders = {
        name.rsplit(".", 1)[-1]: leader.rsplit(".", 1)[-1]
        for name, leader in leaders_of(base).items()
        if "layers.1." in name and "layers.1." in leader
    }
    shared = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
    assert leaders == {leaf: shared.get(leaf, leaf) for leaf in LINEAR}


def test_eva_needs_rows_with_enough_tokens() -> None:
    base = base_of(tiny_llama())
    config = base.model.config
    study_base = StudyBase(
        base.folder, config, architecture(config), base.tokenizer, "", {}, (), ()
    )
    with pytest.raises(UserError, match=r"found 9 training tokens of .*, expected at least 64"):
        get_method("eva").check_trial(trial("a", method="eva", rank=32), study_base, 9, 1)
    with pytest.raises(ValueError, match="EVA needs training rows"):
        new_adapter(base.model, trial("a", method="eva"))


# --- the registry ---


def test_each_file_is_a_method() -> None:
    """Which is found by listing the folder; ``lora`` comes first, the default of an arm that
    continues an adapter."""
    folder = Path(methods.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "method"}
    assert {type(m).__module__.rpartition(".")[2] for m in methods.all_methods()} == files
    assert methods.all_methods()[0].name == "lora"


def test_an_unknown_name_gets_the_known_ones() -> None:
    assert get_method("dora").label == "DoRA"
    with pytest.raises(ValueError, match=r"'dorra': expected one of lora, dora"):
        get_method("dorra")
