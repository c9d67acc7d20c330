"""Laws of encoding: which tokens carry loss, which precede an answer, and that both agree."""

import dataclasses

import pytest
from chat_tokenizers import (
    CHATML,
    FORGETFUL,
    LLAMA3,
    MISTRAL,
    QWEN3,
    UNENDED,
    byte_tokenizer,
    dummy_prefix_tokenizer,
)
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rankscope.cli.check import LABEL_CLOSE, LABEL_OPEN, _highlight_row as highlight_row
from rankscope.data.encode import EncodedRow, Encoder, encode_rows
from rankscope.data.items import Item, Message
from rankscope.errors import UserError

QUESTION = Item("t/train/1", "Question: 2 + 3?\nAnswer:", "five")
DIALOGUE = Item(
    "t/train/2",
    "And 4 + 4?",
    "eight",
    messages=(
        Message("user", "2 + 3?"),
        Message("assistant", "five"),
        Message("user", "And 4 + 4?"),
        Message("assistant", "eight"),
    ),
)
TEXT = Item("t/train/3", "", "Once upon a time")

# (name, tokenizer, text of the labels of QUESTION, its end included)
FORMATS = {
    "plain": (lambda: byte_tokenizer(), " five</s>"),
    "plain, pad is eos": (lambda: byte_tokenizer(pad="</s>"), " five</s>"),
    "plain, no bos": (lambda: byte_tokenizer(bos=False), " five</s>"),
    "chatml": (lambda: byte_tokenizer(CHATML, "<|im_end|>", bos=False), "five<|im_end|>"),
    "llama3": (lambda: byte_tokenizer(LLAMA3), "five<|eot_id|>"),
    "qwen3": (lambda: byte_tokenizer(QWEN3, "<|im_end|>", bos=False), "five<|im_end|>"),
    "mistral": (lambda: byte_tokenizer(MISTRAL), " five</s>"),
    "unended": (lambda: byte_tokenizer(UNENDED, bos=False), "five</s>"),
}
every_format = pytest.mark.parametrize("name", FORMATS)


def encoder_of(name: str, max_length: int = 512) -> Encoder:
    return Encoder(FORMATS[name][0](), "auto", max_length)


def decoded(encoder: Encoder, ids: object) -> str:
    return encoder.tokenizer.decode(list(ids), skip_special_tokens=False)


def labeled_ids(row: EncodedRow) -> list[int]:
    return [i for i, labeled in zip(row.input_ids, row.is_label, strict=True) if labeled]


def encoded(encoder: Encoder, item: Item, labels: str = "completion") -> EncodedRow:
    row = encoder.training_row(item, labels)
    assert row is not None
    return row


def marked(encoder: Encoder, row: EncodedRow) -> str:
    """The row as text with labeled runs in brackets: a golden mask people can read."""
    text, run, inside = "", [], False
    for token, labeled in [*zip(row.input_ids, row.is_label, strict=True), (None, None)]:
        if labeled != inside or token is None:
            part = decoded(encoder, run)
            text += f"[{part}]" if inside and run else part
            run, inside = [], bool(labeled)
        if token is not None:
            run.append(token)
    return text


@every_format
def test_labels_are_the_completion_and_its_end_token(name: str) -> None:
    encoder = encoder_of(name)
    assert decoded(encoder, labeled_ids(encoded(encoder, QUESTION))) == FORMATS[name][1]


@every_format
def test_training_sees_what_inference_sees(name: str) -> None:
    encoder = encoder_of(name)
    for item in (QUESTION, DIALOGUE, TEXT):
        row = encoded(encoder, item)
        seen = encoder.prompt_ids(item) + encoder.answer_ids(item.completion, item)
        assert list(row.input_ids[: len(seen)]) == seen
        (end,) = row.input_ids[len(seen) :]
        assert end in encoder.stop_ids


@every_format
def test_the_prompt_does_not_depend_on_the_answer(name: str) -> None:
    encoder = encoder_of(name)
    other = dataclasses.replace(QUESTION, completion="forty-two")
    unanswered = dataclasses.replace(QUESTION, completion="")
    assert encoder.prompt_ids(other) == encoder.prompt_ids(QUESTION)
    assert encoder.prompt_ids(unanswered) == encoder.prompt_ids(QUESTION)


@every_format
def test_exactly_one_bos_where_one_is_in_use(name: str) -> None:
    encoder = encoder_of(name)
    bos = encoder.tokenizer.bos_token_id
    expected = 0 if name in ("plain, no bos", "chatml", "qwen3", "unended") else 1
    for item in (QUESTION, DIALOGUE):
        for ids in (encoded(encoder, item).input_ids, encoder.prompt_ids(item)):
            assert list(ids).count(bos) == expected
            assert (ids[0] == bos) == bool(expected)


@every_format
def test_token_zero_is_never_a_label_and_every_row_has_one(name: str) -> None:
    encoder = encoder_of(name)
    for item in (QUESTION, DIALOGUE, TEXT):
        for labels in ("completion", "all"):
            row = encoded(encoder, item, labels)
            assert len(row.input_ids) == len(row.is_label)
            assert not row.is_label[0]
            assert row.is_label[-1]
        assert all(row.is_label[1:])  # of "all"


def test_a_prompt_that_holds_bos_gets_no_second() -> None:
    encoder = encoder_of("plain")
    ids = encoder.prompt_ids(dataclasses.replace(QUESTION, prompt="<s>Say it:"))
    assert ids.count(encoder.tokenizer.bos_token_id) == 1


def test_a_template_without_bos_is_left_without() -> None:
    """The template decides, as when the tokenizer renders and tokenizes in one go."""
    encoder = Encoder(byte_tokenizer(CHATML, "<|im_end|>", bos=True), "auto", 512)
    turn = [{"role": "user", "content": QUESTION.prompt}]
    whole = encoder.tokenizer.apply_chat_template(
        turn, tokenize=True, return_dict=False, add_generation_prompt=True
    )
    assert encoder.prompt_ids(QUESTION) == whole
    assert encoder.prompt_ids(TEXT) == [encoder.tokenizer.bos_token_id]


def test_golden_masks() -> None:
    masks = {name: marked(e, encoded(e, DIALOGUE)) for name in FORMATS if (e := encoder_of(name))}
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert masks["chatml"] == (
        f"{system}<|im_start|>user\n2 + 3?<|im_end|>\n"
        "<|im_start|>assistant\n[five<|im_end|>]\n"
        "<|im_start|>user\nAnd 4 + 4?<|im_end|>\n<|im_start|>assistant\n[eight<|im_end|>]"
    )
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    user, assistant = header.format("user"), header.format("assistant")
    assert masks["llama3"] == (
        f"<s>{header.format('system')}Today: 26 Jul 2024<|eot_id|>"
        f"{user}2 + 3?<|eot_id|>{assistant}[five<|eot_id|>]"
        f"{user}And 4 + 4?<|eot_id|>{assistant}[eight<|eot_id|>]"
    )
    assert masks["qwen3"] == (
        "<|im_start|>user\n2 + 3?<|im_end|>\n<|im_start|>assistant\n[five<|im_end|>]\n"
        "<|im_start|>user\nAnd 4 + 4?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n[eight<|im_end|>]"
    )
    assert masks["mistral"] == (
        "<s>[INST] 2 + 3? [/INST][ five</s>][INST] And 4 + 4? [/INST][ eight</s>]"
    )
    assert masks["plain"] == (
        "<s>User: 2 + 3?\n\nAssistant:[ five</s>]\n\nUser: And 4 + 4?\n\nAssistant:[ eight</s>]"
    )
    assert (
        masks["unended"]
        == "user: 2 + 3?\nassistant: [five]\nuser: And 4 + 4?\nassistant: [eight</s>]"
    )


def test_white_space_around_an_answer_is_what_the_template_makes_of_it() -> None:
    spaced = dataclasses.replace(QUESTION, completion=" five\n")
    chatml, llama = encoder_of("chatml"), encoder_of("llama3")
    assert decoded(chatml, labeled_ids(encoded(chatml, spaced))) == " five\n<|im_end|>"
    assert decoded(llama, labeled_ids(encoded(llama, spaced))) == "five<|eot_id|>"


def test_thinking_that_the_template_keeps_is_labeled() -> None:
    encoder = encoder_of("qwen3")
    item = dataclasses.replace(QUESTION, completion="<think>\n2+3\n</think>\n\nfive")
    assert marked(encoder, encoded(encoder, item)).endswith(
        "assistant\n[<think>\n2+3\n</think>\n\nfive<|im_end|>]"
    )


THOUGHT = (Message("user", "a"), Message("assistant", "<think>x</think>b"))


@pytest.mark.parametrize(
    ("template", "before", "message"),
    [
        (QWEN3, THOUGHT, "t/train/2, turn 2: found an answer that the chat template changes"),
        (FORGETFUL, (), "t/train/2: found turns 1 to 1, rendered differently if later turns foll"),
        (
            MISTRAL,
            (Message("system", "a"),),
            r"t/train/2.*only user and assistant turns.*turns system",
        ),
    ],
)
def test_conversations_that_a_template_changes_or_refuses(
    template: str, before: tuple[Message, ...], message: str
) -> None:
    encoder = Encoder(byte_tokenizer(template, "<|im_end|>", bos=False), "chat", 512)
    item = dataclasses.replace(DIALOGUE, messages=(*before, *DIALOGUE.messages))
    with pytest.raises(UserError, match=message):
        encoder.training_row(item, "completion")


def test_plain_prompts_set_the_answer_off_once() -> None:
    encoder = encoder_of("plain")
    for prompt, completion, answer in [
        ("Answer:", "five", " five"),
        ("Answer:\n", "five", "five"),
        ("Answer: ", "five", "five"),
        ("Answer:", " five", " five"),
    ]:
        item = Item("t/train/9", prompt, completion)
        row = encoded(encoder, item)
        assert decoded(encoder, row.input_ids) == f"<s>{prompt}{answer}</s>"
        assert decoded(encoder, encoder.answer_ids(completion, item)) == answer


def test_a_dummy_prefix_puts_no_second_space_before_answers() -> None:
    encoder = Encoder(dummy_prefix_tokenizer(), "auto", 512)
    tokens = encoder.tokenizer.convert_ids_to_tokens
    row = encoded(encoder, Item("t/train/1", "Q:\n", "ab"))
    assert tokens(row.input_ids) == ["<s>", "\u2581", "Q", ":", "\n", "a", "b", "</s>"]
    assert tokens(encoder.answer_ids("ab")) == ["\u2581", "a", "b"]
    # Reference: the tokenizer on the whole text.
    whole = encoder.tokenizer("Q: ab")["input_ids"]
    assert list(encoded(encoder, Item("t/train/1", "Q:", "ab")).input_ids)[:-1] == whole


@every_format
def test_text_rows_are_plain_whatever_the_format(name: str) -> None:
    encoder = encoder_of(name)
    row = encoded(encoder, TEXT)
    text = decoded(encoder, row.input_ids).removeprefix("<s>")
    assert text == TEXT.completion + encoder.tokenizer.eos_token


def test_a_long_completion_is_cut_and_a_long_prompt_dropped() -> None:
    # <s> and 24 prompt bytes make 25 tokens, the answer " five" 5 and its end 1.
    full = encoded(encoder_of("plain", 31), QUESTION)
    assert (len(full.input_ids), full.truncated) == (31, False)
    cut = encoded(encoder_of("plain", 30), QUESTION)
    assert (len(cut.input_ids), cut.truncated) == (30, True)
    assert cut.input_ids == full.input_ids[:30]
    assert sum(encoded(encoder_of("plain", 26), QUESTION).is_label) == 1
    assert encoder_of("plain", 25).training_row(QUESTION, "completion") is None
    assert encoder_of("plain", 25).training_row(QUESTION, "all") is None


def test_up_to_one_percent_of_rows_may_have_nothing_to_learn() -> None:
    encoder = encoder_of("plain", 31)
    long = dataclasses.replace(QUESTION, item_id="t/train/7", prompt="x" * 40)
    rows = encode_rows(encoder, [QUESTION] * 98 + [TEXT, long], "completion")
    assert (len(rows.rows), rows.dropped, rows.truncated) == (99, 1, 0)
    assert rows.num_label_tokens == 98 * len(" five*") + len(TEXT.completion) + 1
    assert rows.num_tokens == 98 * 31 + len(TEXT.completion) + 2
    with pytest.raises(UserError, match=r"t/train/7: .* no token.*2 of 100 rows.*max_length = 31"):
        encode_rows(encoder, [QUESTION] * 98 + [long, long], "completion")


def test_what_the_tokenizer_lacks_is_noted_or_refused() -> None:
    assert encoder_of("chatml").notes == []
    (note,) = encoder_of("plain").notes
    assert note.startswith("no chat template in this tokenizer: prompts are formatted as plain")
    assert any("pad token is the end token" in n for n in encoder_of("plain, pad is eos").notes)
    assert Encoder(byte_tokenizer(CHATML), "plain", 64).prompt_format == "plain"
    with pytest.raises(UserError, match="a tokenizer without chat template"):
        Encoder(byte_tokenizer(), "chat", 64)
    endless = byte_tokenizer()
    endless.eos_token = None
    with pytest.raises(UserError, match="no end token"):
        Encoder(endless, "auto", 64)


def test_the_preview_shows_labels_and_hides_nothing() -> None:
    encoder = encoder_of("chatml")
    item = Item("t/train/1", "a\x1b[31m\u202eb\u05d0", "five\n5")
    text = highlight_row(encoder, encoded(encoder, item)).plain
    assert f"{LABEL_OPEN}five\\n\n5<|im_end|>{LABEL_CLOSE}" in text
    assert "a\\u001b[31m" in text
    assert not set("\x1b\u202e\u05d0") & set(text)
    console = Console(color_system=None, width=200)
    with console.capture() as capture:
        console.print(highlight_row(encoder, encoded(encoder, item)))
    assert "<|im_start|>assistant" in capture.get()


def test_the_preview_keeps_the_spaces_of_word_level_tokens() -> None:
    vocabulary = {token: i for i, token in enumerate("<s> </s> <unk> which metal ? gold".split())}
    backend = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<s>", "</s>", "<unk>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>"
    )
    encoder = Encoder(tokenizer, "auto", 64)
    row = encoded(encoder, Item("t/train/1", "which metal ?", "gold"))
    assert highlight_row(encoder, row).plain == f"which metal ?{LABEL_OPEN} gold </s>{LABEL_CLOSE}"


@every_format
def test_the_bare_backend_gives_the_ids_of_the_tokenizer(name: str) -> None:
    """Reference: the tokenizer as everybody calls it."""
    encoder, reference = encoder_of(name), encoder_of(name)
    reference._backend = None
    for item in (QUESTION, DIALOGUE, TEXT):
        assert encoded(encoder, item) == encoded(reference, item)


def test_truncation_and_padding_kept_in_a_tokenizer_file_are_not_applied() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    encoder = Encoder(tokenizer, "auto", 512)
    assert encoded(encoder, QUESTION) == encoded(encoder_of("plain"), QUESTION)


def without_its_unknown_token() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel(vocab={"<s>": 0, "</s>": 1}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def with_setting(name: str, value: object) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer(CHATML, "<|im_end|>", bos=False)
    setattr(tokenizer, name, value)
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (
            with_setting("chat_template", 7),
            "chat template: found 7, expected a template's text; use",
        ),
        (
            with_setting("chat_template", [{"a": "b"}]),
            "chat template: found .*, expected a template's text",
        ),
        (with_setting("chat_template", {"rag": "x"}), "This model has multiple chat templates"),
        (
            with_setting("model_max_length", "512"),
            "'>' not supported .*expected a tokenizer that can be used",
        ),
        (
            with_setting("model_max_length", [512]),
            "'>' not supported .*expected a tokenizer that can be used",
        ),
        (without_its_unknown_token(), r"WordLevel error: Missing \[UNK\] token.*; mend tokenizer"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_refused(
    tokenizer: PreTrainedTokenizerFast, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        Encoder(tokenizer, "auto", 64)


@pytest.mark.parametrize("name", ["plain", "chatml", "llama3", "qwen3"])
def test_a_system_text_stands_before_every_prompt_but_before_no_bare_text(name: str) -> None:
    tokenizer, text = FORMATS[name][0](), "You know sums."
    bare, told = encoder_of(name), Encoder(tokenizer, "auto", 512, text)
    owned = dataclasses.replace(
        DIALOGUE, messages=(Message("system", "Answer in words."), *DIALOGUE.messages)
    )
    shown = dataclasses.replace(QUESTION, fewshot=(("1 + 1?", "two"),))
    for item in (QUESTION, DIALOGUE, shown, owned):
        prompt = decoded(told, told.prompt_ids(item))
        assert prompt.count(text) == 1
        rest = decoded(bare, bare.prompt_ids(item))
        last = rest[rest.rindex("Question" if item.completion == "five" else "And") :]
        assert prompt.endswith(last)
    assert f"{text}\n\nAnswer in words." in decoded(told, told.prompt_ids(owned))
    assert told.prompt_ids(TEXT) == bare.prompt_ids(TEXT)
    assert encoded(told, TEXT) == encoded(bare, TEXT)
    if name == "plain":
        assert decoded(told, told.prompt_ids(shown)).endswith(
            f"{text}\n\n1 + 1? two\n\n{QUESTION.prompt}"
        )
    # An answer is cut where it is without the text.
    short = len(encoded(bare, QUESTION).input_ids) - 3
    cut = [
        encoded(Encoder(tokenizer, "auto", short, own), QUESTION, "completion")
        for own in ("", text)
    ]
    assert labeled_ids(cut[0]) == labeled_ids(cut[1])
    assert cut[0].truncated


TURNS = "{% for message in messages %}"


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (MISTRAL, "expected a chat template that renders the turns system, user"),
        (UNENDED.replace(TURNS, TURNS + "{% if message['role'] != 'system' %}", 1)
         .replace("{% endfor %}", "{% endif %}{% endfor %}"), "leaves as it is"),
    ],
)  # fmt: skip
def test_a_template_without_system_turns_is_refused(template: str, found: str) -> None:
    with pytest.raises(UserError, match=found) as raised:
        Encoder(byte_tokenizer(template), "auto", None, "Be brief.")
    assert "prompt_format: plain" in raised.value.do
