"""Training that goes on from an adapter on disk: where it starts, and where it gets to."""

from pathlib import Path
from typing import Any

import pytest
from architectures import alone
from peft import PeftModel
from peft_adapters import continued, peft_adapter, relative, their_parts
from tiny_models import IDS, logits_of, tiny_llama
from toy_training import (
    ATTENTION,
    losses,
    plain_losses,
    protocol,
    toy_rows,
    trained,
    training_tolerance,
    trial,
)

from rankscope.errors import UserError
from rankscope.models.adapters.folder import load_adapter, save_adapter
from rankscope.models.adapters.settings import CONFIG, WEIGHTS
from rankscope.models.init_context import new_adapter
from rankscope.report.model_card import adapter_card

LEFT = "model.layers.0.self_attn.q_proj"
STEPS = 15
ROWS = toy_rows(30)
RELATIVE = training_tolerance(STEPS)
PROTOCOL = protocol(max_steps=STEPS, schedule="constant", warmup_fraction=0.0)
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": ({}, {}),
    "rslora": ({"use_rslora": True}, {"method": "rslora"}),
    "lora+": ({}, {"method": "lora+", "lr_ratio": 4.0}),
    "dora": ({"use_dora": True}, {"method": "dora"}),
    "own ranks": ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}}, {}),
    "rslora own ranks": (
        # s = 6 / sqrt(4) = 9 / sqrt(9) = 3
        {"use_rslora": True, "rank_pattern": {"q_proj": 9}, "alpha_pattern": {"q_proj": 9}},
        {"method": "rslora"},
    ),
    "one layer": ({"target_modules": [LEFT]}, {"targets": (LEFT,)}),
}
KIND = pytest.mark.parametrize("kind", KINDS)


@KIND
def test_it_goes_where_plain_peft_goes_and_is_stored_as_what_peft_loads(
    tmp_path: Path, kind: str
) -> None:
    """PEFT loads the same folder to train on, with the loop of the recipe: the same losses, the
    same weights. The trial is in a group with fresh ones, as in any study."""
    theirs, ours = KINDS[kind]
    peft_adapter(tmp_path / "before", **theirs)
    spec = continued(tmp_path / "before", lr=1e-3, seed=3, **ours)
    result = trained([trial("fresh"), spec, trial("wide", rank=16, seed=1)], PROTOCOL, ROWS)
    base, state = result.tuned, result.states[1]
    adapter = state.adapter
    assert adapter is not None

    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "before", is_trainable=True).train()
    before = {n: [p.detach().clone() for p in own] for n, own in their_parts(model).items()}
    ratio = spec.lr_ratio or 1
    rates = {
        part: spec.lr * (ratio if side == 1 else 1)
        for own in their_parts(model).values()
        for side, part in enumerate(own)
    }
    slow = plain_losses(spec, model, rates, ROWS, PROTOCOL)
    assert losses(state) == pytest.approx(slow, rel=RELATIVE)
    assert adapter.a.keys() == before.keys()
    for name, expected in their_parts(model).items():
        own = adapter.module_parameters(name)
        for ours_now, theirs_now, at_first in zip(own, expected, before[name], strict=True):
            assert relative(ours_now, theirs_now) <= RELATIVE
            assert relative(at_first, theirs_now) > 100 * RELATIVE

    (tmp_path / "after").mkdir()
    save_adapter(adapter, base.record, tmp_path / "after")
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "after").eval()
    tuned = logits_of(base, "a")
    assert relative(alone(model, IDS), tuned) < RELATIVE
    base.multi_lora.clear()
    base.multi_lora.attach(load_adapter(tmp_path / "after", "b", base.record))
    assert relative(logits_of(base, "b"), tuned) < RELATIVE
    card = adapter_card(spec, base.record)
    assert f"| continues the adapter, sha256 | {spec.init_sha256} |" in card


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_an_adapter_that_changes_while_the_study_runs_is_refused(tmp_path: Path, file: str) -> None:
    """Its hash is in the trial's id by then."""
    peft_adapter(tmp_path)
    spec = continued(tmp_path, targets=ATTENTION)
    path = tmp_path / file
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match=f"adapter {tmp_path}: found a folder that changed while"):
        new_adapter(tiny_llama(), spec)
    path.unlink()
    with pytest.raises(UserError, match=f"adapter {tmp_path}: found a fault"):
        new_adapter(tiny_llama(), spec)
