"""Two processes hold a model together: they train, score and store what one process would."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import VOCABULARY, base_of
from torch import Tensor
from toy_training import full_trial, protocol, toy_rows, trial
from transformers import AutoModelForCausalLM, Qwen2Config

from rankscope.config.study import TrainConfig
from rankscope.errors import Interrupted, UserError
from rankscope.extensions.shards.processes import FOLLOW, started_shards
from rankscope.extensions.shards.sharding import ManyShards
from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.load import load_model
from rankscope.models.methods import get_method
from rankscope.models.quantize import dense_weight
from rankscope.models.sharding import Shards, is_sharded
from rankscope.records import TrialSpec
from rankscope.train.checkpoint import GroupCheckpoint
from rankscope.train.loop import GroupResult, train_group
from rankscope.train.step import forward_passes

SHAPE: dict[str, Any] = {
    # Odd, so that shards hold shards of different sizes.
    "vocab_size": VOCABULARY + 1,
    "hidden_size": 36,
    "intermediate_size": 51,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.1,
    "tie_word_embeddings": True,
}
ROWS = toy_rows()
TRAIN = protocol(max_steps=8, batch_tokens=64, checkpoint_seconds=1e9)
ADAPTERS = [
    trial("a", lr=3e-3),
    trial("b", method="rslora", rank=8, lr=1e-3, seed=1, targets=("down_proj", "q_proj")),
    trial("c", method="lora+", lr_ratio=4.0, lr=1e-3, seed=2),
]
FULL = [full_trial(lr=1e-3)]
SHORT = {"max_steps": 3, "warmup_fraction": 0.0}
CPU = torch.device("cpu")
SAME = 1e-5
"""Largest relative difference after eight steps in float32."""


@pytest.fixture(scope="module")
def two() -> Iterator[Shards]:
    """This process as shard 0 of two."""
    with started_shards(2, CPU) as shards:
        yield shards


@pytest.fixture(params=[False, True], ids=["cut", "replicated"])
def shards(two: Shards, request: pytest.FixtureRequest) -> Shards:
    """Frozen models are cut, or whole on each."""
    two.replicates = request.param
    return two


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with tied weights, and biases."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    AutoModelForCausalLM.from_config(Qwen2Config(**SHAPE)).save_pretrained(folder)
    return folder


@pytest.fixture
def sharded(shards: Shards, folder: Path) -> Base:
    return on_shards(shards, folder, torch.float32)


def on_shards(shards: Shards, folder: Path, dtype: torch.dtype) -> Base:
    plain = base_of(load_model(folder, dtype))
    record = plain.record.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})
    return shards.hold("base", plain.model, NoTokenizer(), record, folder)


class NoTokenizer:
    def save_pretrained(self, folder: Path) -> None: ...


def train_together(
    base: Base, trials: list[TrialSpec], folder: Path, train: TrainConfig = TRAIN, stop_at: int = 0
) -> GroupResult:
    """Train on both shards; ``stop_at`` asks for a stop after so many steps."""
    shards, done = base.shards, [0]

    def progress(step: int, *_: Any) -> None:
        done[0] = step

    shards.announce("train", trials, ROWS, train, folder, {})
    with shards.in_step():
        return train_group(
            base,
            trials,
            ROWS,
            train,
            checkpoint=GroupCheckpoint(folder).of_shards(shards, is_sharded=trials[0].is_full),
            progress=progress,
            should_stop=shards.agreed(lambda: 0 < stop_at == done[0]),
        )


def weights(result: GroupResult) -> dict[str, Tensor]:
    """What was trained, whole, by trial."""
    if result.states[0].spec.is_full:
        tuned = result.tuned
        model = tuned.shards.gathered(tuned) if tuned.shards.size > 1 else tuned.model
        return {"full": torch.cat([p.detach().flatten() for p in model.parameters()])}
    return {
        state.spec.trial_id: torch.cat([p.detach().flatten() for p in state.parameters])
        for state in result.states
    }


@pytest.mark.parametrize("trials", [ADAPTERS, FULL], ids=["adapters", "full"])
def test_two_shards_train_what_one_process_trains(
    sharded: Base, folder: Path, tmp_path: Path, trials: list[TrialSpec]
) -> None:
    """They are stopped after 3 steps, and continue from their checkpoint."""
    alone = train_group(base_of(load_model(folder, torch.float32)), trials, ROWS, TRAIN)
    with pytest.raises(Interrupted, match="after step 3 of 8"):
        train_together(sharded, trials, tmp_path, stop_at=3)
    sharded.multi_lora.clear()
    together = train_together(sharded, trials, tmp_path)
    for ours, theirs in zip(together.states, alone.states, strict=True):
        assert len(ours.losses) == 8
        assert ours.num_tokens == theirs.num_tokens
        for a, b in zip(ours.losses, theirs.losses, strict=True):
            assert a.loss == pytest.approx(b.loss, rel=SAME)
            assert a.grad_norm == pytest.approx(b.grad_norm, rel=SAME)
    expected = weights(alone)
    for name, found in weights(together).items():
        assert float((found - expected[name]).norm() / expected[name].norm()) < SAME
    sharded.multi_lora.clear()


def test_a_trained_model_is_stored_as_an_ordinary_one(
    sharded: Base, folder: Path, tmp_path: Path
) -> None:
    """Tied weights are stored once, and transformers computes what the shards compute."""
    tuned = train_together(sharded, FULL, tmp_path / "state", TRAIN.model_copy(update=SHORT)).tuned
    stored = tmp_path / "stored"
    stored.mkdir()
    get_method("full").save(tuned, sharded.record, stored)
    names = {path.name for path in stored.iterdir()}
    assert names == {path.name for path in folder.iterdir()}
    assert "lm_head.weight" not in load_file(stored / "model.safetensors")
    plain = AutoModelForCausalLM.from_pretrained(stored)
    ids = list(range(3, 40))
    with torch.no_grad():
        expected = plain(input_ids=torch.tensor([ids])).logits[0]
        found = tuned.logits(RowBatch.of([Row(ids, range(len(ids)))], tuned.device))
    start = load_file(folder / "model.safetensors")
    moved = plain.get_input_embeddings().weight - start["model.embed_tokens.weight"]
    assert float(moved.detach().norm()) > 0.01
    assert float((found - expected).norm() / expected.norm()) < SAME


def test_shard_0_scores_and_analyzes_alone(sharded: Base, folder: Path) -> None:
    """Also in inference mode, before the first training pass and after it."""
    plain = base_of(load_model(folder, torch.float32))
    rows = RowBatch.of([Row(row.input_ids, row.label_positions) for row in ROWS], plain.device)
    # A model that each shard holds whole needs no other shard: in step, shard 0 calls none.
    with torch.inference_mode(), sharded.shards.in_step(sharded.shards.replicates):
        expected, found = plain.logits(rows), sharded.logits(rows)
    assert float((found - expected).norm() / expected.norm()) < SAME
    linears = sharded.linears()
    for name, linear in plain.linears().items():
        assert torch.equal(dense_weight(linears[name]), linear.weight)
        assert is_sharded(linears[name].weight) is not sharded.shards.replicates


def test_a_shard_ends_whose_shard_0_was_gone_before_it_could_look(tmp_path: Path) -> None:
    place = tmp_path / "meeting"
    place.mkdir()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    shard = [sys.executable, *FOLLOW, "1", "2", "cpu", str(place / "store"), str(gone.pid)]
    assert subprocess.run(shard, timeout=240, check=False).returncode in (1, -signal.SIGALRM)
    assert not place.exists()


@pytest.mark.parametrize("num_shards", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_shards_share_the_passes_of_a_step(num_shards: int, batch_tokens: int) -> None:
    """Each counts once, and all shards run equally many."""
    passes = forward_passes([ROWS[:7], ROWS[7:]], batch_tokens, num_shards)
    idle = passes[0][:1]
    of_shards = [list(ManyShards(i, num_shards, CPU).own(passes, idle)) for i in range(num_shards)]
    assert len({len(own) for own in of_shards}) == 1
    counted = [parts for own in of_shards for parts, weight in own if weight]
    assert sorted(map(str, counted)) == sorted(map(str, passes))
    assert {weight for own in of_shards for _, weight in own} <= {0.0, 1.0}


def test_a_checkpoint_of_another_number_of_shards_is_refused(tmp_path: Path) -> None:
    two = GroupCheckpoint(tmp_path / "group").of_shards(ManyShards(0, 2, CPU), is_sharded=True)
    GroupCheckpoint(tmp_path / "group").save(1, {"a": torch.zeros(1)}, {})
    with pytest.raises(UserError, match=r"found state\.safetensors, expected state-000-of-002"):
        two.load()
