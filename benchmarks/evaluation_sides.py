"""The sides of the races of evaluation; each is started in its own process by ``run_side``.

What is given, and returned, is JSON. ``given`` holds: ``model``, a folder; ``dtype``; ``adapters``,
folders in PEFT's format, with None for the bare base; ``questions`` or ``prompts``;
``batch_tokens`` for Rankscope, ``batch_sizes`` for the peers.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from evaluation_race import load
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
    """What a call returns, and its seconds."""
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


@torch.inference_mode()
def rankscope_choice(given: Given) -> dict[str, Any]:
    """Log p of every option under every model, and the seconds of all."""
    base, adapter_names = ready(given)
    encode = base.tokenizer.encode
    questions = [
        Question(encode(q["prompt"]), [encode(a, add_special_tokens=False) for a in q["answers"]])
        for q in given["questions"]
    ]
    continuation_logprobs(base, questions[:TRIED], adapter_names[:1], given["batch_tokens"])
    found, seconds = timed(
        continuation_logprobs, base, questions, adapter_names, given["batch_tokens"]
    )
    return {
        "logprobs": [
            [values.tolist() for values in found[adapter_name].values]
            for adapter_name in adapter_names
        ],
        "tokens": [[list(q.prompt), [list(c) for c in q.continuations]] for q in questions],
        "seconds": seconds,
        "computed_tokens": sum(found[adapter_name].num_tokens for adapter_name in adapter_names),
    }


@torch.inference_mode()
def rankscope_generation(given: Given) -> dict[str, Any]:
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
    generate(base, prompts[:2], adapter_names[:1], limits)
    found, seconds = timed(generate, base, prompts, adapter_names, limits)
    return {
        "texts": [[g.text for g in found[adapter_name]] for adapter_name in adapter_names],
        "seconds": seconds,
        "new_tokens": sum(
            len(g.ids) for adapter_name in adapter_names for g in found[adapter_name]
        ),
    }


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
    return best


def harness_choice(given: Given) -> dict[str, Any]:
    """lm-evaluation-harness's HFLM, one model after another; loading and tokenizing untimed."""
    from lm_eval.models.huggingface import HFLM

    logprobs, tokens, seconds, batch_size = [], [], [], None
    for folder in given["adapters"]:
        lm = HFLM(
            pretrained=given["model"],
            peft=folder,
            device="cpu",
            dtype=given["dtype"],
            softmax_dtype="float32",
        )
        requests = []
        for question in given["questions"]:
            for answer in question["answers"]:
                longest = question.get("max_length")
                requests.append(request_of(lm, question["prompt"], answer, longest))
        counts = [len(question["answers"]) for question in given["questions"]]
        if batch_size is None:
            # From all over: the first ones may be shorter than the rest.
            step = max(1, len(counts) // TRIED)
            chosen = [
                request
                for number, part in enumerate(parts(requests, counts))
                if number % step == 0
                for request in part
            ]
            batch_size = best_of(given["batch_sizes"], partial(seconds_of_scoring, lm, chosen))
        found, took = timed(score, lm, requests, batch_size)
        seconds.append(took)
        logprobs.append([[value for value, _ in part] for part in parts(found, counts)])
        if not tokens:
            tokens = [[part[0][1], [r[2] for r in part]] for part in parts(requests, counts)]
    return {
        "logprobs": logprobs,
        "tokens": tokens,
        "seconds": sum(seconds),
        "seconds_by_model": seconds,
        "batch_size": batch_size,
    }


def request_of(
    lm: Any, prompt: str, answer: str, max_length: int | None
) -> tuple[tuple[str, str], list[int], list[int]]:
    """What the harness makes of a prompt and an answer, or of a text without a prompt."""
    if prompt:
        context, continuation = lm._encode_pair(prompt, answer)
    else:
        context, continuation = [lm.prefix_token_id], lm.tok_encode(answer)
    if max_length is not None:
        continuation = continuation[: max_length - len(context)]
    return (prompt, answer), context, continuation


def seconds_of_scoring(lm: Any, requests: Sequence[Any], batch_size: int) -> float:
    """What a batch size costs."""
    return timed(score, lm, requests, batch_size)[1]


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


@torch.inference_mode()
def stock_generation(given: Given) -> dict[str, Any]:
    """transformers' ``generate``, one model after another; adapters merged where that is asked."""
    tokenizer = AutoTokenizer.from_pretrained(given["model"], padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    texts, seconds, new_tokens, batch_size = [], 0.0, 0, None
    for folder in given["adapters"]:
        dtype = getattr(torch, given["dtype"])
        model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=dtype).eval()
        if folder is not None:
            model = PeftModel.from_pretrained(model, folder).eval()
            if given["merged"]:
                model = model.merge_and_unload()

        run = partial(in_batches, model, tokenizer, given["max_new_tokens"])
        if batch_size is None:
            run(2, given["prompts"][:2])
            tried = given["batch_sizes"]
            sizes = [size for size in tried if size <= len(given["prompts"])] or tried[:1]
            batch_size = best_of(sizes, partial(seconds_per_prompt, run, given["prompts"]))
        found, took = timed(run, batch_size, given["prompts"])
        seconds += took
        texts.append([text.partition(STOP)[0] for text in found])
        new_tokens += sum(len(tokenizer(text).input_ids) for text in texts[-1])
    return {
        "texts": texts,
        "seconds": seconds,
        "new_tokens": new_tokens,
        "batch_size": batch_size,
    }


def seconds_per_prompt(
    run: Callable[[int, Sequence[str]], list[str]], prompts: Sequence[str], batch_size: int
) -> float:
    """What a batch size costs, tried on one batch."""
    return timed(run, batch_size, prompts[:batch_size])[1] / batch_size


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
