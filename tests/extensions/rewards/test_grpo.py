"""Rewards: gradients equal TRL's trainer's, and those of another group or after a stop."""

import math
import random
from collections import Counter, deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from finished_studies import pocket
from tiny_models import assert_close
from toy_training import trial
from trl import GRPOConfig, GRPOTrainer

from rankscope.data.encode import EncodedRow, Judged
from rankscope.data.items import Item
from rankscope.data.registry import TaskSpec
from rankscope.evaluate.continuous_batching import GenerationLimits, RunningBatch
from rankscope.extensions.rewards.grpo import EPSILON
from rankscope.extensions.rewards.sampling import SampledGeneration, drawing_at
from rankscope.records import TrialSpec
from rankscope.train.loop import GroupResult, train_group
from rankscope.train.memory import MemoryModel, RowCounts
from rankscope.train.pass_memory import AllocationCounter
from rankscope.train.step import compute_gradients
from rankscope.train.trial_state import start_trials

from ...test_benchmarks import LinesOf
from .. import pocket_objectives as toy

LETTERS = TaskSpec("letters", "", "regex", "{question}", extract="e")
GRPO = {"grpo": {"answers": 4, "max_new_tokens": 6}}


def prompts() -> list[EncodedRow]:
    """Prompts whose reward is an answer that contains the letter e."""
    rows = []
    for word in toy.WORDS[:4]:
        item = Item(prompt=f"The {word} one is", completion="e", reference="e")
        row = toy.ENCODER.training_row(item, "completion")
        assert row is not None
        asked = Judged(item, LETTERS, toy.ENCODER, 6)
        rows.append(EncodedRow(row.input_ids, row.is_label, row.truncated, asked=asked))
    return rows


def trained(trials: list[TrialSpec], **options: Any) -> GroupResult:
    return train_group(toy.base(), trials, prompts(), toy.protocol(GRPO), **options)


def test_grpo_equals_trl_given_the_same_answers(tmp_path: Path) -> None:
    spec, answers = trial(), 4
    frozen, rows = toy.base(), prompts()
    train = toy.protocol({"grpo": {"answers": answers, "max_new_tokens": 6, "temperature": 0.7}})
    model, states = start_trials(frozen, [spec], rows, train, {})
    state = states[0]
    assert state.adapter is not None
    peft, expected = toy.peft_of(spec)
    for name, (_, b) in expected.items():  # away from the start, where A has no gradient
        b.data.normal_(0, 0.02)
        state.adapter.b[name].data.copy_(b)
    kept = state.spec.model_copy(update={"kl_to_base": 1e-9})  # keeps answers without advantage
    state.spec = kept
    state.objective.begin_step(model, states, 0)
    written, tokens = state.written, sum(sum(row.is_label) for row in state.written)
    assert len(written) == len(rows) * answers
    texts = [toy.TOKENIZER.decode(row.input_ids[len(row.prompt_ids) :]) for row in written]
    rewards = torch.tensor([float("e" in text) for text in texts]).view(-1, answers)
    spread = rewards.std(1, keepdim=True) + EPSILON
    advantages = ((rewards - rewards.mean(1, keepdim=True)) / spread).flatten()
    assert 0 < float(rewards.mean()) < 1
    assert [row.value * tokens for row in written] == pytest.approx(advantages.tolist(), abs=1e-5)
    state.spec = spec
    model.multi_lora.training = True
    compute_gradients(model, frozen, state.loss_terms(0), 128)

    args = GRPOConfig(
        str(tmp_path),
        num_generations=answers,
        generation_batch_size=len(written),
        temperature=0.7,
        loss_type="dapo",
        **{
            **toy.COMMON,
            "per_device_train_batch_size": len(written),
            "gradient_accumulation_steps": 1,
        },
    )
    trainer = GRPOTrainer(
        peft,
        lambda completions, **_: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * len(written)),
        processing_class=toy.TOKENIZER,
    )
    trainer.current_gradient_accumulation_steps = 1
    inputs = padded(written) | {
        "advantages": advantages,
        "num_items_in_batch": torch.tensor(tokens),
    }
    # Its value is -advantage x ratio, which is 1; ours -advantage x log p: one gradient.
    trainer._compute_loss(peft.train(), inputs).backward()
    for name, (a, b) in expected.items():
        for ours, other in ((state.adapter.a[name], a), (state.adapter.b[name], b)):
            assert ours.grad is not None
            assert_close(ours.grad, other.grad, toy.relative(1))


def padded(rows: list[EncodedRow]) -> dict[str, torch.Tensor]:
    """As TRL lays a batch out: prompts end, and answers begin, in one column."""
    longest = max(len(row.prompt_ids) for row in rows)
    most = max(sum(row.is_label) for row in rows)
    shape = {"prompt": longest, "completion": most}
    made = {
        f"{part}_{kind}": torch.zeros(len(rows), width, dtype=torch.int64)
        for part, width in shape.items()
        for kind in ("ids", "mask")
    }
    for i, row in enumerate(rows):
        prompt, answer = row.prompt_ids, row.input_ids[len(row.prompt_ids) :]
        made["prompt_ids"][i, longest - len(prompt) :] = torch.tensor(prompt)
        made["prompt_mask"][i, longest - len(prompt) :] = 1
        made["completion_ids"][i, : len(answer)] = torch.tensor(answer)
        made["completion_mask"][i, : len(answer)] = 1
    return made


def test_group_equals_each_adapter_alone() -> None:
    toy.equal_alone(trained)


def test_stopped_group_continues_to_equal_bits(tmp_path: Path) -> None:
    assert len(toy.continued(trained, tmp_path).states[0].rewards) == toy.STEPS


@pytest.mark.usefixtures("minutes")
def test_the_race_in_small_prints_its_line(lines_of: LinesOf) -> None:
    (line,) = lines_of("train_grpo", "--steps", "2", "--pairs", "1")
    assert (line["benchmark"], line["ratio"] > 0) == ("train_grpo", True)
    assert line["mean_length"]["trl"] > 0


def test_writing_answers_takes_no_more_than_is_planned() -> None:
    """Twelve answers of up to 40 tokens to each prompt: their keys and values are most."""
    objective = {"grpo": {"answers": 12, "max_new_tokens": 40}}
    rows = [
        replace(row, asked=row.asked._replace(max_new_tokens=40)) for row in prompts() if row.asked
    ]
    model, train = toy.base(), toy.protocol(objective, max_steps=1, batch_tokens=512)
    group = [trial("a", rank=4), trial("b", rank=12)]
    with AllocationCounter() as counter:
        train_group(model, group, rows, train)
    memory = MemoryModel(model.model.config, torch.float32, torch.device("cpu"))
    found = memory.of_group(group, RowCounts.of(rows), train)
    assert counter.peak_bytes < found.state_bytes + found.pass_bytes


def test_equal_rewards_end_a_trial_with_the_reason() -> None:
    """No answer of one token holds the whole reference."""
    rows = [
        EncodedRow(
            row.input_ids,
            row.is_label,
            row.truncated,
            asked=row.asked and row.asked._replace(item=Item(prompt="a", reference="zzzzzz")),
        )
        for row in prompts()
    ]
    state = train_group(toy.base(), [trial()], rows, toy.protocol(GRPO)).states[0]
    assert state.failure_status == "failed"
    assert state.failure is not None
    assert "all 4 answers of every prompt had the same reward, 0" in state.failure


def test_tokens_follow_the_distribution_of_the_model_at_a_temperature() -> None:
    """Chi-square of 4,000 first tokens at temperature .5, ten likeliest and the rest: below the
    quantile of 1e-6 at 10 degrees of freedom."""
    model, prompt, draws = toy.base(), toy.ENCODER.prompt_ids(Item(prompt="The red one is")), 4000
    sequences = [
        SampledGeneration(None, prompt, 1, draws=random.Random(f"law/{i}")) for i in range(draws)
    ]
    limits = GenerationLimits(1, 256, 4096, toy.ENCODER.stop_ids)
    with torch.no_grad():
        RunningBatch(model, limits, drawing_at(0.5)).run(deque(sequences))
        logits = pocket()(torch.tensor([prompt])).logits[0, -1]
    p = (logits / 0.5).softmax(0)
    found = Counter(sequence.ids[0] for sequence in sequences)
    top = p.topk(10).indices.tolist()
    cells = [(found[t], float(p[t]) * draws) for t in top]
    rest = draws - sum(n for n, _ in cells), draws - sum(expected for _, expected in cells)
    statistic = sum((n - expected) ** 2 / expected for n, expected in [*cells, rest])
    assert statistic < 46.9
    entropy = float(-(p * p.log()).sum())
    assert sequences[0].entropy == pytest.approx(entropy, rel=1e-5)


def test_a_model_that_has_diverged_draws_and_leaves_the_others_alone() -> None:
    """Its loss is then not finite, by which it leaves its group."""
    logits = torch.full((3, 300), math.nan)
    logits[1] = torch.linspace(0, 5, 300)
    logits[2, 7] = math.inf
    rows = [SampledGeneration(None, (1,), 1, draws=random.Random(str(i))) for i in range(3)]
    tokens = drawing_at(0.5)(logits, rows)
    whole = drawing_at(0.5)(
        logits[1:2], [SampledGeneration(None, (1,), 1, draws=random.Random("1"))]
    )
    assert int(tokens[1]) == int(whole[0])
    assert int(tokens[2]) == 7
