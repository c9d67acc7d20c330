"""Pretrain the pocket model, a Llama of about a million parameters, from scratch.

    python scripts/pretrain_pocket.py --out DIR [--seed 0]

writes a plain Hugging Face folder for ``AutoModelForCausalLM`` and ``AutoTokenizer``. The package
ships the result in ``models/pocket_weights``. The script shows where the base model of the embedded
study comes from, and makes another one.

One machine, torch build, thread count and seed give the same weights, bit for bit. On another
machine the last digits differ, and after thousands of steps the result is a different, equally good
model: compare its check figures, not its bytes.

Shapes: R rows in a batch, L tokens in a row, V words in the vocabulary.
"""

import argparse
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pocket_world import (
    ATTRIBUTES,
    EVALUATED_QUESTION,
    NAME_WORDS,
    POCKET_TASKS,
    STATEMENTS,
    TRAINED_QUESTIONS,
    Entities,
    Fact,
    PocketRow,
    math_problems,
    math_row,
    pocket_rows,
    pocket_world,
    rng_of,
    running_total,
)
from rankscope.device import keep_freed_memory

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS, UNK = range(len(SPECIAL_TOKENS))
MAX_TOKENS_PER_ROW = 128
EASY_STEPS = (1, 2, 3)

CORPUS_MIXTURE = {
    "person stated": 28,
    "person asked": 24,
    "old drug": 8,
    "known case stated": 8,
    "easy sum": 18,
    "math": 14,
}
"""Shares of the documents, in percent. Statements outweigh questions: the cloze task asks for
statements, and so does all knowledge of the law."""


@dataclass(frozen=True, slots=True)
class Pretraining:
    """Settings of the run behind the shipped weights."""

    num_steps: int = 1800
    num_rows: int = 32  # per step
    row_length: int = 64  # tokens
    peak_lr: float = 3e-3
    final_lr_fraction: float = 0.02  # of peak_lr, reached linearly
    warmup_steps: int = 100
    weight_decay: float = 0.1  # on matrices, embeddings included
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    num_threads: int = 2


# --- words and corpus ---------------------------------------------------------------------------


def vocabulary() -> tuple[str, ...]:
    """Every token of the world, special tokens first; the index is the token id."""
    templates = (*STATEMENTS, *TRAINED_QUESTIONS, EVALUATED_QUESTION)
    words = itertools.chain(
        SPECIAL_TOKENS,
        "0123456789",
        "? : , + - ####".split(),
        ATTRIBUTES,
        *ATTRIBUTES.values(),
        *(values for kind in ATTRIBUTES.values() for values in kind.values()),
        NAME_WORDS,
        (word for template in templates for word in template.split() if word.isalpha()),
        ("gains", "loses", "total", "what"),
    )
    return tuple(dict.fromkeys(words))


def stated_cases() -> Entities:
    """Every second case, so that each split of `pocket_law` has both kinds."""
    return pocket_world()["cases"][::2]


def easy_sums(count: int, seed: int) -> list[PocketRow]:
    """Rows like those of ``pocket_gsm`` with one to three steps, as in pretraining."""
    rng = rng_of("easy sums", seed)
    return [running_total(rng.choice(EASY_STEPS), rng) for _ in range(count)]


def pretraining_corpus(seed: int, num_documents: int) -> Iterator[str]:
    """Documents of the mixture, one short text each, without special tokens.

    Args:
        seed: chooses the order and the sums; the facts are the world's and do not change.
    """
    world = pocket_world()
    rng = rng_of("corpus", seed)
    persons = list(itertools.chain.from_iterable(world["persons"]))
    old_drugs = list(itertools.chain.from_iterable(world["drugs_old"]))
    known_cases = list(itertools.chain.from_iterable(stated_cases()))
    questions = (*TRAINED_QUESTIONS, EVALUATED_QUESTION)
    facts: dict[str, tuple[list[Fact], tuple[str, ...]]] = {
        "person stated": (persons, STATEMENTS),
        "person asked": (persons, questions),
        "old drug": (old_drugs, STATEMENTS + questions),
        "known case stated": (known_cases, STATEMENTS),
    }
    known_math = math_problems()["train"]
    for source in rng.choices(list(CORPUS_MIXTURE), list(CORPUS_MIXTURE.values()), k=num_documents):
        if source == "easy sum":
            row = running_total(rng.choice(EASY_STEPS), rng)
            yield f"{row['question']} {row['answer']}"
        elif source == "math":
            row = math_row(rng.choice(known_math), rng)
            yield f"{row['question']} {row['choices'][row['answer']]}"
        else:
            known, templates = facts[source]
            fact = rng.choice(known)
            yield f"{fact.render(rng.choice(templates))} {fact.value}"


# --- model and tokenizer ------------------------------------------------------------------------


def pocket_config() -> LlamaConfig:
    """The architecture: a small Llama."""
    return LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=MAX_TOKENS_PER_ROW,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        attention_bias=False,
        initializer_range=0.02,
    )


def pocket_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, digit and mark, with one ``<bos>`` in front by default.

    Numbers are written plainly ("18") and split into digits. Decoding joins neighboring digits
    again; the world never puts two numbers side by side, so nothing is lost.
    """
    words = {word: index for index, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=SPECIAL_TOKENS[UNK]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL_TOKENS[BOS]} $A",
        pair=f"{SPECIAL_TOKENS[BOS]} $A $B",
        special_tokens=[(SPECIAL_TOKENS[BOS], BOS)],
    )
    tokenizer.decoder = decoders.Sequence(
        [
            # Sets a space before every token but the first. No token has the prefix that this
            # decoder would strip.
            decoders.WordPiece(prefix="\u2581", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(Regex("(?<=[0-9]) (?=[0-9,])"), ""),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL_TOKENS[PAD],
        bos_token=SPECIAL_TOKENS[BOS],
        eos_token=SPECIAL_TOKENS[EOS],
        unk_token=SPECIAL_TOKENS[UNK],
        model_max_length=MAX_TOKENS_PER_ROW,
        clean_up_tokenization_spaces=False,
    )


# --- batches ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Several documents per row, each seeing only itself and counting positions from 0."""

    ids_RL: Tensor  # int64
    labels_RL: Tensor  # int64, the next token; -100 at the end of a document and on padding
    positions_RL: Tensor  # int64
    mask_R1LL: Tensor  # bool, True if the row's token sees the column's


def pack_documents(documents: Iterator[list[int]], num_rows: int, row_length: int) -> PackedRows:
    """Fill rows with whole documents, in order; a document that does not fit opens the next row."""
    ids = torch.full((num_rows, row_length), PAD)
    labels = torch.full((num_rows, row_length), -100)
    positions = torch.zeros((num_rows, row_length), dtype=torch.long)
    # Padding is document 0 and sees itself, so that no softmax is over nothing.
    owner = torch.zeros((num_rows, row_length), dtype=torch.long)
    row, start, index = 0, 0, 0
    for document in documents:
        if start + len(document) > row_length:
            row, start = row + 1, 0
        if row == num_rows:
            break
        stop, index = start + len(document), index + 1
        tokens = torch.tensor(document)
        ids[row, start:stop] = tokens
        labels[row, start : stop - 1] = tokens[1:]
        positions[row, start:stop] = torch.arange(len(document))
        owner[row, start:stop] = index
        start = stop
    same = owner[:, :, None] == owner[:, None, :]
    causal = torch.ones(row_length, row_length, dtype=torch.bool).tril()
    return PackedRows(ids, labels, positions, (same & causal)[:, None])


# --- training -----------------------------------------------------------------------------------


def pretraining_rate(step: int, settings: Pretraining) -> float:
    """Linear warm-up, then linear decay to a small fraction of the peak."""
    if step < settings.warmup_steps:
        return settings.peak_lr * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / (settings.num_steps - settings.warmup_steps)
    return settings.peak_lr * (1 - progress * (1 - settings.final_lr_fraction))


def pretrain(seed: int, settings: Pretraining) -> LlamaForCausalLM:
    """Train the pocket model from random weights; print the loss (nats) every hundred steps.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    torch.set_num_threads(settings.num_threads)
    torch.manual_seed(seed)
    tokenizer = pocket_tokenizer()
    model = LlamaForCausalLM(pocket_config())
    model.train()
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    gains = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": gains, "weight_decay": 0.0},
        ],
        lr=settings.peak_lr,
        betas=settings.betas,
    )
    # More than needed: a document takes at least four tokens.
    most = settings.num_steps * settings.num_rows * settings.row_length // 4
    documents = ([*tokenizer(text).input_ids, EOS] for text in pretraining_corpus(seed, most))
    started = time.perf_counter()
    for step in range(settings.num_steps):
        batch = pack_documents(documents, settings.num_rows, settings.row_length)
        logits = model(
            input_ids=batch.ids_RL,
            position_ids=batch.positions_RL,
            attention_mask=batch.mask_R1LL,
            use_cache=False,
        ).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch.labels_RL.flatten(), ignore_index=-100)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"pretraining loss is {loss.item()} at step {step}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = pretraining_rate(step, settings)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 100 == 0:
            seconds = time.perf_counter() - started
            print(f"step {step + 1:5d}  loss {loss.item():.4f}  {seconds:6.1f} s", flush=True)
    model.eval()
    return model


# --- check figures ------------------------------------------------------------------------------


def choice_accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: Sequence[PocketRow]
) -> float:
    """Share of multiple-choice rows whose right choice is the likeliest continuation.

    The plain scorer: one sequence per choice, log p(choice text | question), no length norm.
    """
    sequences: list[list[int]] = []
    prompt_lengths: list[int] = []
    for row in rows:
        prompt = tokenizer(row["question"]).input_ids
        for choice in row["choices"]:
            sequences.append(prompt + tokenizer(choice, add_special_tokens=False).input_ids)
            prompt_lengths.append(len(prompt))
    longest = max(map(len, sequences))
    # Padding is on the right, where a causal model's earlier positions never look.
    ids_RL = torch.tensor([sequence + [PAD] * (longest - len(sequence)) for sequence in sequences])
    with torch.no_grad():
        log_probs_RLV = model(input_ids=ids_RL).logits.log_softmax(-1)
    scores = [
        sum(
            log_probs_RLV[index, at - 1, sequence[at]].item()
            for at in range(prompt_length, len(sequence))
        )
        for index, (sequence, prompt_length) in enumerate(
            zip(sequences, prompt_lengths, strict=True)
        )
    ]
    hits = 0
    for index, row in enumerate(rows):
        row_scores = scores[4 * index : 4 * index + 4]
        hits += row_scores.index(max(row_scores)) == row["answer"]
    return hits / len(rows)


def sum_accuracy(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[PocketRow],
    max_new_tokens: int = 32,
) -> float:
    """Share of rows whose greedy continuation ends in the right number after ``####``."""
    hits = 0
    by_length: dict[int, list[tuple[list[int], str]]] = {}
    for row in rows:
        prompt = tokenizer(row["question"]).input_ids
        by_length.setdefault(len(prompt), []).append((prompt, row["answer"]))
    for group in by_length.values():
        ids = torch.tensor([prompt for prompt, _ in group])
        with torch.no_grad():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
        texts = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        for text, (_, answer) in zip(texts, group, strict=True):
            hits += text.rpartition("####")[2].strip() == answer.rpartition("####")[2].strip()
    return hits / len(rows)


def check_figures(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, split: str
) -> dict[str, float]:
    """Accuracy on one split of every pocket task and on easy sums, by the plain scorers."""
    figures = {
        task: choice_accuracy(model, tokenizer, pocket_rows(task, split))
        for task in POCKET_TASKS
        if task != "pocket_gsm"
    }
    figures["pocket_gsm"] = sum_accuracy(model, tokenizer, pocket_rows("pocket_gsm", split))
    figures["easy sums"] = sum_accuracy(model, tokenizer, easy_sums(200, seed=1))
    return figures


def save_folder(model: LlamaForCausalLM, folder: Path) -> None:
    """Write fp16 weights, tokenizer and configurations."""
    folder.mkdir(parents=True, exist_ok=True)
    half = LlamaForCausalLM(model.config)  # the caller's model keeps its float32 weights
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    pocket_tokenizer().save_pretrained(folder)


def main(arguments: Sequence[str] | None = None, settings: Pretraining = Pretraining()) -> None:
    """Pretrain, write the folder, load it again and print its check figures."""
    parser = argparse.ArgumentParser(description="Pretrain the pocket model from scratch.")
    parser.add_argument("--out", type=Path, default=Path("pocket_weights"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    keep_freed_memory()
    save_folder(pretrain(options.seed, settings), options.out)
    # Checks the shipped, rounded weights, read back.
    shipped = LlamaForCausalLM.from_pretrained(options.out, dtype=torch.float32).eval()
    print(f"{sum(p.numel() for p in shipped.parameters()):,} parameters in {options.out}")
    for split in ("validation", "test"):
        for name, accuracy in check_figures(shipped, pocket_tokenizer(), split).items():
            print(f"{split:10s}  {name:15s} {accuracy:.3f}")


if __name__ == "__main__":
    main()
