"""Rows that the base writes itself: drawn as a slow sampler does, the same whoever stops a run."""

import json
import random
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from chat_tokenizers import CHATML, MISTRAL, UNENDED, byte_tokenizer
from finished_studies import LORA, MITIGATED, Finished
from pocket_study import SETTINGS, Counter, results, small_study, study_file
from transformers import PreTrainedTokenizerFast

from faults import flip_bit
from rankscope.config.loader import load_study_file
from rankscope.config.study import ModelConfig
from rankscope.data.encode import Encoder
from rankscope.data.sampler import ReplaySampler, RowSampler
from rankscope.errors import IntegrityError, UserError
from rankscope.models.base import Row, RowBatch
from rankscope.models.load import load_base
from rankscope.run.trials import arm_specs
from rankscope.sources.self_replay.rows import RowsToSample

SHARE = 0.25
SELF = {**LORA, "replay": {"task": "self:12", "share": SHARE}}
TOLERANCE = 1e-5
"""Of a cumulative probability, a sum of float32 products in another order."""


def rows_file(out: Path) -> Path:
    (file,) = (out / "artifacts/base/rows").iterdir()
    return file


def written(out: Path) -> list[list[int]]:
    return [json.loads(line)["ids"] for line in rows_file(out).read_text("utf-8").splitlines()]


def test_every_token_is_what_a_slow_sampler_draws(mitigated: Finished) -> None:
    """One row at a time, all of it read again without a cache: each token is the one in whose part
    of the cumulative distribution the row's next uniform number lies."""
    base = load_base(ModelConfig(pocket=True), torch.device("cpu"), torch.float32)
    start, end = base.tokenizer.bos_token_id, base.tokenizer.eos_token_id
    start = end if start is None else start
    longest = SETTINGS["train"]["max_length"]
    texts = written(mitigated.out)
    assert len(texts) == 12
    assert len({tuple(ids) for ids in texts}) > 6
    for index, ids in enumerate(texts):
        assert end not in ids[:-1]
        assert ids[-1] == end or len(ids) == longest - 1
        draws = random.Random(f"self_replay/0/{index}")
        row = Row([start, *ids[:-1]], range(len(ids)))
        with torch.inference_mode():
            logits = base.logits(RowBatch.of([row], base.device))
        for token, probabilities in zip(ids, logits.double().softmax(dim=-1), strict=True):
            below, uniform = float(probabilities[:token].sum()), draws.random()
            upto = below + float(probabilities[token])
            assert below - TOLERANCE <= uniform <= upto + TOLERANCE


def test_rows_are_mixed_in_as_replayed_rows_are(mitigated: Finished) -> None:
    """In the order of ``ReplaySampler``, with loss on every token that was sampled."""
    plain, *others = mitigated.records.trials
    label = f"{plain.spec.arm_label} self_replay=0.25x12"
    (replaying,) = (trial for trial in others if trial.spec.arm_label == label)
    train, lengths = SETTINGS["train"], [1 + len(ids) for ids in written(mitigated.out)]
    own = RowSampler(replaying.train.rows, train["batch_size"], train["gradient_accumulation"], 0)
    order = ReplaySampler(own, len(lengths), SHARE)
    seen = [i for step in range(train["max_steps"]) for i in order.step(step)]
    assert replaying.train.num_replay_tokens == sum(lengths[i] for i in seen)
    assert replaying.train.num_tokens == plain.train.num_tokens + sum(lengths[i] for i in seen)
    labels = replaying.train.num_label_tokens - plain.train.num_label_tokens
    assert labels == sum(lengths[i] - 1 for i in seen)
    assert replaying.train.losses[0].loss == pytest.approx(plain.train.losses[0].loss, rel=1e-5)
    card = mitigated.out / "artifacts" / replaying.spec.trial_id / "adapter" / "README.md"
    assert "0.25x12" in card.read_text("utf-8")


def test_a_plan_counts_at_most_what_they_cost(mitigated: Finished, tmp_path: Path) -> None:
    plans = (small_study(tmp_path, arms=arms, seeds=[0]).plan() for arms in ([LORA, SELF], [LORA]))
    with_rows, without = plans
    sampled = 12 * SETTINGS["train"]["max_length"]
    assert with_rows.evaluation_tokens > without.evaluation_tokens + sampled
    trained = [t.train.num_tokens for t in mitigated.records.trials[::5] if t.train]
    assert with_rows.train_tokens > sum(trained)


def test_altered_rows_are_refused_and_sampled_again_on_request(
    mitigated: Finished, tmp_path: Path
) -> None:
    study, out = small_study(tmp_path, **MITIGATED), tmp_path / "out"
    shutil.copytree(mitigated.out, out)
    before = results(out)
    flip_bit(rows_file(out))
    with pytest.raises(IntegrityError, match=r"base/rows.*--retry base"):
        study.run(out)
    stages = Counter()
    study.run(out, stages, retry=["base"])
    assert results(out) == before
    assert stages.steps == 0


# --- how a row begins and ends


def opening(tokenizer: PreTrainedTokenizerFast, form: Literal["chat", "plain"]) -> tuple[str, int]:
    rows = RowsToSample.of(2, Encoder(tokenizer, form, None), 64, seed=0)
    assert rows.max_length == 64
    assert rows.num_label_tokens == 2 * (64 - len(rows.prompt))
    return str(tokenizer.decode(rows.prompt)), rows.num_ends


def test_a_plain_row_begins_with_the_begin_token_or_else_the_end_token() -> None:
    with_begin, without = byte_tokenizer(), byte_tokenizer(bos=False)
    without.bos_token = None
    assert opening(with_begin, "plain") == ("<s>", 1)
    assert opening(without, "plain") == ("</s>", 1)


@pytest.mark.parametrize(
    ("template", "end", "text", "num_ends"),
    [
        (CHATML, "<|im_end|>", "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n", 2),
        (MISTRAL, "</s>", "<s>[INST] ", 1),
        (UNENDED, "</s>", "user: ", 1),
    ],
)
def test_a_chat_row_begins_with_the_template_and_ends_with_the_first_answer(
    template: str, end: str, text: str, num_ends: int
) -> None:
    """ChatML ends the question with the same token as the answer, Mistral's the answer alone."""
    assert opening(byte_tokenizer(template, end), "chat") == (text, num_ends)


def test_a_template_that_fills_the_row_is_refused() -> None:
    encoder = Encoder(byte_tokenizer(CHATML, "<|im_end|>"), "chat", None)
    with pytest.raises(UserError, match="begin with 25 tokens, those of the chat template"):
        RowsToSample.of(1, encoder, 16, seed=0)


def test_a_base_that_writes_end_tokens_alone_is_refused() -> None:
    rows = RowsToSample.of(2, Encoder(byte_tokenizer(), "plain", None), 8, seed=0)
    (end,) = rows.stop_ids
    with pytest.raises(UserError, match="end tokens alone in all 2 rows"):
        rows.sampled([[end], [end]])
    kept = rows.sampled([[end], [40, end]]).rows
    assert [row.is_label for row in kept] == [(False, True), (False, True, True)]


# --- the study file


def specs(folder: Path, *arms: dict[str, Any]) -> list[str]:
    config = load_study_file(study_file(folder, arms=list(arms)))
    return [spec.arm_label for arm in config.arms for spec in arm_specs(arm, config.train)]


def test_arms_are_told_apart_and_a_share_of_zero_is_none(tmp_path: Path) -> None:
    points = [("self:12", 0), ("self:12", 0.25), ("self:24", 0.25)]
    grid = [{"task": task, "share": share} for task, share in points]
    plain, fewer, more = specs(tmp_path, {**LORA, "replay": grid})
    assert [plain] == specs(tmp_path, LORA)
    assert (fewer, more) == (f"{plain} self_replay=0.25x12", f"{plain} self_replay=0.25x24")


def test_how_rows_are_sampled_is_part_of_a_trials_id() -> None:
    """Through the hash of the rows that it replays."""
    encoder = Encoder(byte_tokenizer(), "plain", None)
    settings = [(2, 8, 0), (3, 8, 0), (2, 9, 0), (2, 8, 1)]
    found = {RowsToSample.of(n, encoder, most, seed).sha256 for n, most, seed in settings}
    assert len(found) == len(settings)
