"""lm-evaluation-harness's HFLM and our engine give every option the same log-probability.

In small; benchmarks/evaluate_agreement.py does the same with hundreds of items.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_worlds import adapter, base, merged, tokenizer
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

from agreement import choice_agreement, text_agreement
from evaluation_race import arc_easy, mmlu, with_fewshot
from evaluation_sides import STOP, in_batches, parts, score
from rankscope.config.study import ModelConfig
from rankscope.evaluate.continuous_batching import GenerationLimits, generate
from rankscope.evaluate.likelihood import Question, continuation_logprobs
from rankscope.models.base import Base
from rankscope.models.load import load_base

LOGPROB = 1e-3
"""Largest difference of an option's log p, in nats."""

ODD = [
    {"question": "which of these?", "choices": ["5", "57", "578"], "answer": 1},
    {
        "question": "日本 or Ωmega",
        "choices": ["日本語", "é", "the cat sat on"],
        "answer": 0,
    },
    {"question": " spaces  before", "choices": [" led by one", "a", "a b"], "answer": 2},
    {"question": "an end <eos> inside", "choices": ["<eos>", "<bos> again", "1,234"], "answer": 2},
    {"question": "1 2 3", "choices": ["same", "same text", "🙂"], "answer": 0},
]


def harness_side(lm: HFLM, questions: list[dict[str, Any]], batch_size: int) -> dict[str, Any]:
    """Log p and tokens of every option by the harness's own model class."""
    requests = [
        ((q["prompt"], answer), *lm._encode_pair(q["prompt"], answer))
        for q in questions
        for answer in q["answers"]
    ]
    counts = [len(q["answers"]) for q in questions]
    values = parts([value for value, _ in score(lm, requests, batch_size)], counts)
    tokens = [[part[0][1], [r[2] for r in part]] for part in parts(requests, counts)]
    return {"logprobs": [values], "tokens": tokens}


@torch.inference_mode()
def our_side(
    engine: Base, adapter_name: str | None, questions: list[dict[str, Any]]
) -> dict[str, Any]:
    """The same by ours."""
    encode = engine.tokenizer.encode
    asked = [
        Question(encode(q["prompt"]), [encode(a, add_special_tokens=False) for a in q["answers"]])
        for q in questions
    ]
    found = continuation_logprobs(engine, asked, [adapter_name], 1024)[adapter_name]
    return {
        "logprobs": [[values.tolist() for values in found.values]],
        "tokens": [[list(q.prompt), [list(c) for c in q.continuations]] for q in asked],
    }


def agree(questions: list[dict[str, Any]], ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    found = choice_agreement(questions, ours, theirs)
    assert found["parity"] <= LOGPROB
    assert found["same_tokens"] == 1
    assert found["same_prediction"] == {"acc": 1, "acc_norm": 1, "acc_bytes": 1}, found


def harness_model(model: PreTrainedModel, tokens: object) -> HFLM:
    return HFLM(pretrained=model, tokenizer=tokens, batch_size=4, max_length=2048, device="cpu")


@pytest.mark.parametrize("num_fewshot", [0, 5])
@pytest.mark.parametrize("is_lettered", [False, True])
def test_odd_options_on_a_random_model(num_fewshot: int, is_lettered: bool) -> None:
    engine = base()
    member = adapter(engine, 4, seed=4)
    engine.multi_lora.attach(member)
    questions = [with_fewshot(row, (ODD * 2)[:num_fewshot], is_lettered) for row in ODD]
    for adapter_name, of in ((None, None), (member.name, member)):
        theirs = harness_side(harness_model(merged(engine, of), tokenizer()), questions, 2)
        agree(questions, our_side(engine, adapter_name, questions), theirs)


@pytest.fixture(scope="module")
def smollm2(model_folder: Path) -> Base:
    return load_base(ModelConfig(path=str(model_folder)), torch.device("cpu"), torch.float32)


def test_real_questions_and_answers_on_smollm2(smollm2: Base, data_dir: Path) -> None:
    """ARC-easy by text, MMLU by letter after an example, GSM8K written; under an adapter."""
    member = adapter(smollm2, 8, seed=0, size=0.003)
    smollm2.multi_lora.attach(member)
    questions = [*arc_easy(data_dir, 3), *mmlu(data_dir, 1, 2, 1)]
    prompt = "Question: Tom has 3 apples and buys 4 more. How many apples has he?\nAnswer:"
    ids = smollm2.tokenizer.encode(prompt)
    limits = GenerationLimits(10, 2048, 4096, frozenset({smollm2.tokenizer.eos_token_id}), (STOP,))
    tokens = smollm2.tokenizer
    model = merged(smollm2, member)
    theirs = harness_side(harness_model(model, tokens), questions, 4)
    agree(questions, our_side(smollm2, member.name, questions), theirs)
    with torch.inference_mode():
        generations = generate(smollm2, [ids], [member.name], limits)[member.name]
        texts = in_batches(model.eval(), tokens, 10, 1, [prompt])
    stock = {"texts": [[text.partition(STOP)[0] for text in texts]]}
    assert text_agreement({"texts": [[g.text for g in generations]]}, stock) == 1
