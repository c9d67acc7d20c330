"""The sides of the races of evaluation.

``given`` holds: ``model``, a folder; ``dtype``; ``adapters``, folders in PEFT's format, with None
for the bare base; ``questions`` or ``prompts``; ``batch_tokens`` for Rankscope, ``batch_sizes`` for
the peers. A turn scores or answers all of them under every model.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from evaluation import load
from race import Segment, Turn
from rankscope.device import limit_kernel_cache
from rankscope.evaluate.continuous_batching import GenerationLimits, generate
from rankscope.evaluate.likelihood import continuation_logprobs
from rankscope.evaluate.scorers.scorer import Question
from rankscope.models.adapters.folder import load_adapter
from rankscope.models.base import Base

Given = Mapping[str, Any]
TRIED = 16
"""Items with which a peer's batch sizes are tried."""
STOP = "\nQuestion:"


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """A call's result, and its seconds."""
    begun = time.perf_counter()
    found = call(*arguments)
    return found, time.perf_counter() - begun


# --- Rankscope ----------------------------------------------------------------------------------


def ready(given: Given) -> tuple[Base, list[str | None]]:
    """The base with the adapters attached; adapter_names in the order given."""
    limit_kernel_cache()
    base = load(given)
    adapter_names: list[str | None] = []
    for number, folder in enumerate(given["adapters"]):
        adapter_names.append(None if folder is None else f"adapter {number}")
        if folder is not None:
            base.multi_lora.attach(load_adapter(Path(folder), f"adapter {number}", base.record))
    return base, adapter_names


def rankscope_choice(given: Given) -> Turn:
    """Log p of every option under every model."""
    base, adapter_names = ready(given)
    encode = base.tokenizer.encode
    questions = [
        Question(encode(q["prompt"]), [encode(a, add_special_tokens=False) for a in q["answers"]])
        for q in given["questions"]
    ]
    tokens = [[list(q.prompt), [list(c) for c in q.continuations]] for q in questions]

    @torch.inference_mode()
    def turn() -> Segment:
        asked = (base, questions, adapter_names, given["batch_tokens"])
        found, seconds = timed(continuation_logprobs, *asked)
        logprobs = [[v.tolist() for v in found[name].values] for name in adapter_names]
        return Segment(seconds, len(questions), {"logprobs": logprobs, "tokens": tokens})

    return turn


def rankscope_generation(given: Given) -> Turn:
    """Every prompt continued by every model in one running batch."""
    base, adapter_names = ready(given)
    prompts = [base.tokenizer.encode(prompt) for prompt in given["prompts"]]
    stop = int(base.tokenizer.eos_token_id)  # type: ignore[arg-type]
    limits = GenerationLimits(
        max_new_tokens=given["max_new_tokens"],
        context=2048,
        batch_tokens=given["batch_tokens"],
        stop_ids=frozenset({stop}),
        stop_strings=(STOP,),
    )

    @torch.inference_mode()
    def turn() -> Segment:
        found, seconds = timed(generate, base, prompts, adapter_names, limits)
        texts = [[answer.text for answer in found[name]] for name in adapter_names]
        return Segment(seconds, len(prompts), {"texts": texts})

    return turn


# --- lm-evaluation-harness ----------------------------------------------------------------------


def best_of(sizes: Sequence[int], run: Callable[[int], float]) -> int:
    """The batch size with which a peer is fastest; tried from small to large while that helps.

    ``run`` tries one and returns its seconds.
    """
    best, least = sizes[0], float("inf")
    for size in sizes:
        seconds = run(size)
        if seconds < least:
            best, least = size, seconds
        elif seconds > 1.3 * least:
            break
    print(f"batch size: {best}", file=sys.stderr)
    return best


def harness_choice(given: Given) -> Turn:
    """lm-evaluation-harness's HFLM, one model after another."""
    from lm_eval.models.huggingface import HFLM

    models = [
        HFLM(
            pretrained=given["model"],
            peft=folder,
            device="cpu",
            dtype=given["dtype"],
            softmax_dtype="float32",
        )
        for folder in given["adapters"]
    ]
    requests = [
        request_of(models[0], question["prompt"], answer, question.get("max_length"))
        for question in given["questions"]
        for answer in question["answers"]
    ]
    counts = [len(question["answers"]) for question in given["questions"]]
    tokens = [[part[0][1], [r[2] for r in part]] for part in parts(requests, counts)]
    # From all over: the first ones may be shorter than the rest.
    step = max(1, len(counts) // TRIED)
    tried = [request for part in parts(requests, counts)[::step] for request in part]
    batch_size = best_of(given["batch_sizes"], lambda n: timed(score, models[0], tried, n)[1])

    def turn() -> Segment:
        found = [timed(score, model, requests, batch_size) for model in models]
        seconds = [took for _, took in found]
        logprobs = [[[v for v, _ in p] for p in parts(scored, counts)] for scored, _ in found]
        results = {"logprobs": logprobs, "tokens": tokens, "seconds_by_model": seconds}
        return Segment(sum(seconds), len(counts), results)

    return turn


def request_of(
    lm: Any, prompt: str, answer: str, max_length: int | None
) -> tuple[tuple[str, str], list[int], list[int]]:
    """The harness's request of a prompt and an answer, or of a text without a prompt."""
    if prompt:
        context, continuation = lm._encode_pair(prompt, answer)
    else:
        context, continuation = [lm.prefix_token_id], lm.tok_encode(answer)
    if max_length is not None:
        continuation = continuation[: max_length - len(context)]
    return (prompt, answer), context, continuation


def score(lm: Any, requests: Sequence[Any], batch_size: int) -> list[tuple[float, bool]]:
    """The harness's own scoring with a batch size."""
    lm.batch_size_per_gpu = batch_size
    found: list[tuple[float, bool]] = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    return found


def parts(flat: Sequence[Any], counts: Sequence[int]) -> list[list[Any]]:
    """A flat list cut into parts of the given lengths."""
    found, start = [], 0
    for count in counts:
        found.append(list(flat[start : start + count]))
        start += count
    return found


# --- transformers -------------------------------------------------------------------------------


def stock_generation(given: Given) -> Turn:
    """transformers' ``generate``, one model after another, adapters as PEFT loads them."""
    return generation(given, merged=False)


def stock_generation_merged(given: Given) -> Turn:
    """``stock_generation`` with every adapter merged into a base of its own."""
    return generation(given, merged=True)


def generation(given: Given, merged: bool) -> Turn:
    tokenizer = AutoTokenizer.from_pretrained(given["model"], padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    dtype, models = getattr(torch, given["dtype"]), []
    for folder in given["adapters"]:
        model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=dtype).eval()
        if folder is not None:
            model = PeftModel.from_pretrained(model, folder).eval()
            model = model.merge_and_unload() if merged else model
        models.append(model)
    prompts = given["prompts"]
    sizes = [size for size in given["batch_sizes"] if size <= len(prompts)]

    @torch.inference_mode()
    def written(model: Any, batch_size: int, count: int) -> list[str]:
        length = given["max_new_tokens"]
        return in_batches(model, tokenizer, length, batch_size, prompts[:count])

    batch_size = best_of(
        sizes or given["batch_sizes"][:1],
        lambda size: timed(written, models[0], size, size)[1] / size,
    )

    def turn() -> Segment:
        found = [timed(written, model, batch_size, len(prompts)) for model in models]
        texts = [[text.partition(STOP)[0] for text in of_model] for of_model, _ in found]
        return Segment(sum(took for _, took in found), len(prompts), {"texts": texts})

    return turn


def in_batches(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    batch_size: int,
    prompts: Sequence[str],
) -> list[str]:
    """Greedy text after every prompt, like lengths together, as the harness batches them."""
    lengths = [len(tokenizer(prompt).input_ids) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: -lengths[i])
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        batch = tokenizer([prompts[i] for i in members], padding=True, return_tensors="pt")
        ids = model.generate(
            **batch,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            stop_strings=[STOP],
            tokenizer=tokenizer,
            pad_token_id=tokenizer.pad_token_id,
        )
        width = batch["input_ids"].shape[1]
        for member, row in zip(members, ids, strict=True):
            texts[member] = tokenizer.decode(row[width:], skip_special_tokens=True)
    return texts
