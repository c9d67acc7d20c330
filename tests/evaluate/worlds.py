"""What the evaluation tests score: a byte-level tokenizer, items, and adapters that change much."""

from dataclasses import replace
from functools import lru_cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rankscope.data.encode import Encoder
from rankscope.data.items import LETTERS, Item
from rankscope.data.joined import in_turns
from rankscope.data.tasks import LoadedTask, TaskSpec
from rankscope.models.base import Base
from rankscope.models.lora import Adapter
from rankscope.models.methods import new_adapter
from rankscope.records import TrialSpec
from tiny_models import VOCABULARY, base_of, tiny_llama

CORPUS = ["the cat sat on the mat and the other cat sat there", "Question: Answer: 1 2 3 18 42"]


@lru_cache(maxsize=1)
def tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes and a few merges; ids 0, 1, 2 are pad, begin and end as in the tiny model."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def encoder(max_length: int | None = 200) -> Encoder:
    return Encoder(tokenizer(), "plain", max_length)


def base(num_layers: int = 2) -> Base:
    """The tiny model with weights large enough that its predictions are far from uniform."""
    model = tiny_llama(num_layers=num_layers)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return base_of(model, tokenizer())


def adapter(base: Base, rank: int, seed: int, size: float = 0.3) -> Adapter:
    """A random adapter on q, v and down_proj; ``size`` 0 leaves B at zero."""
    trial = TrialSpec(
        trial_id=f"r{rank}-s{seed}",
        task="toy",
        method="lora",
        rank=rank,
        alpha=2.0 * rank,
        lr=1e-3,
        targets=("q_proj", "v_proj", "down_proj"),
        dropout=0.5,
        seed=seed,
    )
    made = new_adapter(base.model, trial)
    generator = torch.Generator().manual_seed(seed)
    for b in made.b.values():
        b.data.copy_(size * torch.randn(b.shape, generator=generator))
    return made


def choice_item(number: int, prompt: str, choices: tuple[str, ...], answer: int) -> Item:
    return Item(
        item_id=f"toy/test/{number}",
        prompt=prompt,
        completion=choices[answer],
        choices=choices,
        answer=answer,
        subject="even" if number % 2 == 0 else None,
        question=prompt,
    )


def choice_items() -> tuple[Item, ...]:
    """Options of one and many tokens, prefixes of each other, beyond ASCII; prompts short, long."""
    return (
        choice_item(1, "Question: the cat sat on the\nAnswer:", ("mat", "other mat", "1"), 0),
        choice_item(2, "a", ("1", "18", "182", "1823"), 2),
        choice_item(
            3, "Question: which of the two is it and where was it?\nAnswer:", ("é", "日本語"), 1
        ),
        choice_item(4, "the " * 40, ("cat", "cat sat", "cat sat on the mat", "🙂", "no"), 3),
        choice_item(5, "Question: 1 2 3\nAnswer:", ("4", "5", "6", "7"), 0),
        choice_item(6, "Ωmega", ("a b c d e f g h i j", "k"), 0),
    )


def lettered(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """The same items with their options listed in the prompt."""
    made = []
    for number, item in enumerate(items, 1):
        options = "\n".join(f"{a}. {b}" for a, b in zip(LETTERS, item.choices, strict=False))
        assert item.answer is not None
        prompt = f"{item.prompt}\n{options}\nAnswer:"
        made.append(choice_item(number, prompt, item.choices, item.answer))
    return tuple(made)


def loaded(items: tuple[Item, ...], scorer: str, prompt: str = "{question}") -> LoadedTask:
    """A task whose report split is ``items`` and whose selection split is the first of them."""
    return LoadedTask(
        spec=TaskSpec("toy", "A toy.", scorer, prompt),
        train=(),
        selection=items[:1],
        report=items,
        sha256="0" * 64,
        dropped=0,
        source="made here",
        leaks={},
        notes=(),
    )


def joined_of(*parts: LoadedTask) -> LoadedTask:
    """Tasks of equal ids as one, its items in turns; those of the first keep their ids."""
    renamed = [parts[0]]
    for number, part in enumerate(parts[1:]):
        items = tuple(replace(item, item_id=f"{number}/{item.item_id}") for item in part.report)
        renamed.append(replace(part, selection=(), report=items))
    report = in_turns([part.report for part in renamed])
    return replace(parts[0], selection=(), report=report, parts=tuple(renamed))
