"""What a pass allocates: by hand, on shapes against a pass that runs, and on a few layers."""

import copy
from dataclasses import replace

import pytest
import torch
from architectures import LLAMA_8B, config_of
from tiny_models import base_of, tiny_llama
from toy_training import ATTENTION, full_trial, protocol, toy_rows, trial
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, PretrainedConfig

from rankscope.data.encode import EncodedRow
from rankscope.data.sampler import RowSampler
from rankscope.models.attention import varlen
from rankscope.records import TrialSpec
from rankscope.train.loop import train_group
from rankscope.train.memory import CUDA_LIBRARY_BYTES, MemoryModel, RowCounts
from rankscope.train.pass_memory import (
    AllocationCounter,
    PassMemory,
    PassShape,
    shaped_adapter,
)
from rankscope.train.step import forward_passes

CPU = torch.device("cpu")
BOTH = (torch.float32, torch.bfloat16)


def model(dtype: torch.dtype = torch.float32) -> MemoryModel:
    return MemoryModel(tiny_llama().config, dtype, CPU)


def test_a_counter_counts_what_lives() -> None:
    before = torch.zeros(1000)
    with AllocationCounter() as counter:
        first = torch.zeros(500)  # 2,000 bytes
        view = first.view(5, 100)[1:]
        before.mul_(2)
        second = torch.zeros(250, dtype=torch.bfloat16)  # 500 bytes
        assert counter.live_bytes == 2500
        del first
        assert counter.live_bytes == 2500  # the view holds it
        del view
        assert counter.live_bytes == 500
        second = second.float()  # both live until the name moves
        assert counter.live_bytes == 1000
    assert counter.peak_bytes == 2500


@pytest.mark.parametrize(
    "trials",
    [[trial("a", rank=4), trial("b", rank=12, seed=1)], [full_trial()]],
    ids=["group", "full"],
)
def test_a_step_on_shapes_takes_what_a_step_on_numbers_takes(trials: list[TrialSpec]) -> None:
    """The peak of whole steps of the real loop, weights that train and their states included."""
    rows = toy_rows(12)
    train = protocol(max_steps=3, warmup_fraction=0.0, batch_tokens=64)
    base = base_of(tiny_llama())
    with AllocationCounter() as counter:
        train_group(base, trials, rows, train)
    found = model().of_group(trials, RowCounts.of(rows), train)
    allocated = found.state_bytes + found.pass_bytes
    assert 0.85 < allocated / counter.peak_bytes < 1.15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_tied", [True, False])
def test_gradients_of_a_large_vocabulary_are_float32(dtype: torch.dtype, is_tied: bool) -> None:
    """The embedding has nine tenths of the weights, and each row has one label."""
    config = config_of("Gemma 3")
    config.vocab_size, config.hidden_size, config.tie_word_embeddings = 3000, 256, is_tied
    labels = [(False,) * (len(row.input_ids) - 1) + (True,) for row in toy_rows(12)]
    rows = [replace(row, is_label=own) for row, own in zip(toy_rows(12), labels, strict=True)]
    train = protocol(max_steps=3, warmup_fraction=0.0, batch_tokens=64)
    base = base_of(AutoModelForCausalLM.from_config(config).to(dtype).eval())
    with AllocationCounter() as counter:
        train_group(base, [full_trial()], rows, train)
    memory = MemoryModel(config, dtype, CPU)
    found = memory.of_group([full_trial()], RowCounts.of(rows), train)
    assert 0.95 < (found.state_bytes + found.pass_bytes) / counter.peak_bytes < 1.15


def test_a_block_of_logits_exists_at_a_time_unless_the_model_is_sharded() -> None:
    """512 of 1,900 labels at once, twice; sharded, with the same rows on each device, all 1,900."""
    config = config_of("Gemma 3")
    config.vocab_size = 4000
    rows = [EncodedRow((5,) * 96, (True,) * 95 + (False,), False) for _ in range(20)]
    train = protocol(max_steps=1, warmup_fraction=0.0, batch_size=20, batch_tokens=2048)
    base = base_of(AutoModelForCausalLM.from_config(config).eval())
    with AllocationCounter() as counter:
        train_group(base, [trial(rank=4)], rows, train)
    memory, counts = MemoryModel(config, torch.float32, CPU), RowCounts.of(2 * rows)
    alone, shared = (
        memory.of_group([trial(rank=4)], counts, train.model_copy(update=changes))
        for changes in ({}, {"devices": 2, "batch_size": 40})
    )
    assert 0.85 < (alone.state_bytes + alone.pass_bytes) / counter.peak_bytes < 1.15
    more = 2 * (1900 - 512) * 4000 * 4
    assert shared.pass_bytes - alone.pass_bytes == pytest.approx(more, rel=0.1)


def test_the_base_counts_once_and_states_add_up() -> None:
    rows = RowCounts.of(toy_rows())
    one = model().of_group([trial("a", rank=4)], rows, protocol())
    # q, o: 64 + 64; k, v: 64 + 32; two layers: 896 per rank; weights, gradients, two moments.
    assert one.state_bytes == 4 * 896 * 4 * 4
    base = tiny_llama()
    assert one.base_bytes == sum(p.numel() * 4 for p in [*base.parameters(), *base.buffers()])
    three = model().of_group([trial(str(i), rank=4) for i in range(3)], rows, protocol())
    assert three.base_bytes == one.base_bytes
    packed = MemoryModel(base.config, torch.float32, torch.device("cpu"), "4bit")
    of_layers = sum(w.numel() for w in base.model.layers.parameters() if w.dim() == 2)
    saved = one.base_bytes - packed.of_group([trial("a", rank=4)], rows, protocol()).base_bytes
    # 4 bits of 32, and of scales 8 bits for 64 weights and 32 for 16,384; the head stays as it is,
    # and the largest matrix, 64 x 96, is there as numbers, too.
    saved += 64 * 96 * 4
    assert saved == pytest.approx(of_layers * (4 - 0.5 - 1 / 64 - 1 / 4096))
    assert three.state_bytes == 3 * one.state_bytes
    assert model().state_bytes(trial(rank=4, method="dora")) == one.state_bytes + 2 * 192 * 16
    assert model().state_bytes(trial(rank=4, method="pissa")) == 5 * 4 * 896 * 4
    assert model().state_bytes(trial(rank=4, early_stop=1)) == 5 * 4 * 896 * 4
    plain, stopping = (
        model().of_group([full_trial(early_stop=patience)], rows, protocol()).total_bytes
        for patience in (None, 1)
    )
    assert stopping - plain == sum(parameter.numel() * 4 for parameter in base.parameters())


def test_devices_share_the_base_and_the_states_of_full_fine_tuning() -> None:
    """Llama 3.1 8B in bfloat16 on four: 8,030,261,248 weights, 218,112,000 of them in each of 32
    layers, 1,050,677,248 in embedding, output layer and last norm."""
    memory = MemoryModel(LLAMA_8B, torch.bfloat16, torch.device("cuda"))
    counts = RowCounts.of(toy_rows())
    alone, shared = (
        [
            memory.of_group(group, counts, protocol(devices=n))
            for group in ([full_trial()], [trial()])
        ]
        for n in (1, 4)
    )
    rotary = 2 * 64 * 4  # frequencies, float32, twice
    weights, total = 8_030_261_248, 2 * 8_030_261_248 + rotary
    gathered = 2 * (2 * 218_112_000 + 1_050_677_248) + rotary
    assert [m.base_bytes for m in alone] == [total, total]
    assert shared[0].state_bytes == alone[0].state_bytes / 4 == 4 * weights
    assert shared[1].state_bytes == alone[1].state_bytes  # adapters are whole on each
    assert shared[1].base_bytes == total // 4 + gathered
    # Gradients of what is gathered: in bfloat16, and in float32 to be added up.
    assert shared[0].base_bytes == total // 4 + 4 * gathered
    assert shared[0].total_bytes < 80e9 < alone[0].total_bytes
    memory.replicates = True  # the frozen base is whole on each, the copy that trains is not
    whole = [memory.of_group(g, counts, protocol(devices=4)) for g in ([full_trial()], [trial()])]
    assert [m.base_bytes for m in whole] == [total + 4 * gathered, total]
    assert [m.state_bytes for m in whole] == [m.state_bytes for m in shared]
    memory.replicates = False
    # A checkpoint is on the host whole, weights and two moments; the base alone would be 16 GB.
    host = [
        m.host_bytes(torch.device("cuda"), 0) - n * (m.library_bytes + CUDA_LIBRARY_BYTES)
        for m, n in ((alone[0], 1), (shared[0], 4), (whole[0], 4), (alone[1], 1), (whole[1], 4))
    ]
    assert host == [12 * weights] * 3 + [total] * 2


def test_copies_of_adapters_while_answers_are_written() -> None:
    """A and B in bfloat16; of PiSSA both halves of a difference, in float32 too."""
    plain, pissa = trial(rank=4), trial(rank=4, method="pissa")
    numbers = sum(p.numel() for p in shaped_adapter(tiny_llama(), plain).parameters())
    found = [model(dtype).fixed_bytes([t]) for t in (plain, pissa) for dtype in BOTH]
    assert found == [0, 2 * numbers, 8 * numbers, 4 * numbers]
    assert model().fixed_bytes([full_trial()]) == 0


def test_the_token_budget_bounds_a_pass() -> None:
    counts = RowCounts.of(toy_rows(200))
    group = [trial(str(i)) for i in range(8)]
    of = model()
    small, large = (of.of_group(group, counts, protocol(batch_tokens=size)) for size in (128, 512))
    assert small.state_bytes == large.state_bytes
    assert 3 < large.pass_bytes / small.pass_bytes < 5


def test_recomputation_dropout_and_more_targets_move_the_pass_as_they_should() -> None:
    counts = RowCounts.of(toy_rows(200))
    of = model()

    def passes(trial_: TrialSpec, **changes: object) -> int:
        return of.of_group([trial_], counts, protocol(**changes)).pass_bytes

    plain = passes(trial())
    assert passes(trial(), gradient_checkpointing=True) < 0.8 * plain
    assert passes(trial()) == plain  # the model is what it was
    tokens = sum(counts.fullest_pass(6, 4096).lengths)
    assert passes(trial(dropout=0.5)) == plain + tokens * 2 * 4 * 64  # a byte per input of a target
    assert passes(trial(method="dora")) > plain
    half = model(torch.bfloat16).of_group([trial()], counts, protocol()).pass_bytes
    assert 0.4 < half / plain < 0.75


def test_the_fullest_pass_is_about_the_fullest_there_is() -> None:
    """Against the cut of the loop itself, over every step of some trials."""
    rows = toy_rows(300)
    counts = RowCounts.of(rows)
    for num_trials, budget, at_once in (
        *((1, 64, 1), (1, 4096, 1), (5, 300, 1), (5, 4096, 1)),
        *((5, 300, 2), (5, 4096, 2), (5, 4096, 4), (1, 4096, 2), (1, 4096, 4)),
    ):
        orders = [RowSampler(len(rows), 2, 4, seed) for seed in range(num_trials)]
        tokens = 0
        for step in range(30):
            of_step = [[rows[i] for m in order.step(step) for i in m] for order in orders]
            for parts in forward_passes(of_step, budget, at_once):
                tokens = max(tokens, sum(len(row.input_ids) for _, own in parts for row in own))
        shape = counts.fullest_pass(8 * num_trials, budget, at_once)
        assert shape.lengths[0] == counts.longest
        assert sum(shape.lengths) <= max(budget, counts.longest)
        assert 0.85 < sum(shape.lengths) / tokens < 1.2


# --- counts on a few layers against counts of the whole model

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
LLAMA = LlamaConfig(vocab_size=300, num_hidden_layers=7, num_key_value_heads=2, **SIZES)
# Every third layer sees all tokens, the others a window of 32; a vocabulary that outweighs a layer.
GEMMA = Gemma3TextConfig(
    vocab_size=3000,
    num_hidden_layers=11,
    layer_types=[["sliding_attention", "full_attention"][i % 3 == 2] for i in range(11)],
    num_key_value_heads=1,
    head_dim=16,
    sliding_window=32,
    **SIZES,
)
SHAPES = (PassShape((50, 20, 20), 9), PassShape((90,) * 4, 200), PassShape((150, 40, 3), 50))
GROUPS = (
    [],  # the model itself trains
    [trial("a", rank=2)],
    [trial("a", rank=8, method="dora"), trial("b", rank=32), trial("c", rank=16)],
    [trial("a", rank=24, method="pissa", targets=(*ATTENTION, "down_proj"))],
)


def passes(
    config: PretrainedConfig,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    has_kernel: bool = True,
) -> PassMemory:
    varlen.register_attention()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=varlen.NAME, dtype=dtype
        )
    return PassMemory(model, torch.device(device), has_kernel and device == "cuda")


def whole(counts: PassMemory, group: list[TrialSpec], shape: PassShape, recomputes: bool) -> int:
    """Counted on all layers; trials of one method are one adapter of their mean rank."""
    if len(group) == 3:
        group, shares = [group[0], group[1].model_copy(update={"rank": 24})], [1, 2]
    else:
        shares = [1] * len(group)
    return max(counts.counted_whole(group, shares, shape, recomputes))


@pytest.mark.parametrize(
    ("group", "shape"),
    [(GROUPS[0], SHAPES[1]), *zip(GROUPS[1:], SHAPES, strict=True)],
    ids=["full", "lora", "dora and lora", "pissa"],
)
def test_layers_add_the_same_bytes_each(group: list[TrialSpec], shape: PassShape) -> None:
    """To the byte, except that a layer computed again has its peak among its own gradients if the
    ranks are as large as the layer."""
    counts = passes(LLAMA)
    for recomputes in (False, True):
        found = counts.pass_bytes(group, shape, recomputes)
        expected = whole(counts, group, shape, recomputes)
        large_rank = recomputes and max((t.rank or 0 for t in group), default=0) > 16
        assert found == pytest.approx(expected, rel=0.03 if large_rank else 1e-9)


def test_a_pattern_of_layers_is_repeated_as_a_whole() -> None:
    counts = passes(GEMMA)
    assert counts.period([], counts.model.model.layers) == 3
    adapters = [trial("a", rank=2)]
    found = counts.pass_bytes(adapters, SHAPES[1], False)
    assert found == whole(counts, adapters, SHAPES[1], False)
    assert counts.pass_bytes([], SHAPES[0], False) == whole(counts, [], SHAPES[0], False)


def test_a_layer_unlike_the_others_is_counted_with_all_of_them() -> None:
    only_last = trial("a", rank=4, targets=("model.layers.6.mlp.down_proj",))
    counts = passes(LLAMA)
    found = counts.pass_bytes([only_last], SHAPES[0], False)
    assert found == whole(counts, [only_last], SHAPES[0], False)
    assert len(counts.model.model.layers) == 7  # the model is what it was


@pytest.mark.parametrize("head_dim", [16, 256])
def test_on_cuda_in_bfloat16_attention_holds_no_padding(head_dim: int) -> None:
    """Ten rows of 20 tokens beside one of 200 cost what two of 200 cost, to the layers' rounding:
    padded they would be eleven of 200, as on a card without the kernel."""
    config = copy.deepcopy(LLAMA)
    config.head_dim = head_dim
    counts = passes(config, torch.bfloat16, "cuda")
    uneven, even = PassShape((200, *[20] * 10), 20), PassShape((200, 200), 20)
    found, expected = (counts.pass_bytes(GROUPS[1], shape, False) for shape in (uneven, even))
    assert found == pytest.approx(expected, rel=0.01)
    older = passes(config, torch.bfloat16, "cuda", has_kernel=False)
    padded = 7 * (11 - 2) * 200 * head_dim * (4 + 4 + 4) * 2  # queries, keys and values, repeated
    assert older.pass_bytes(GROUPS[1], uneven, False) - found > padded


def test_cuda_keeps_repeated_key_heads_without_the_kernel() -> None:
    """In float32, beside a processor's fused attention, which shares them: in each of 11 layers
    the keys and values of 3 more heads of 16 for each of 360 tokens."""
    config = copy.deepcopy(GEMMA)
    config.layer_types = ["sliding_attention"] * 11
    cpu, cuda = (
        passes(config, device=device).pass_bytes(GROUPS[1], SHAPES[1], False)
        for device in ("cpu", "cuda")
    )
    assert cuda - cpu == pytest.approx(11 * 2 * 3 * 16 * 360 * 4, rel=0.1)
