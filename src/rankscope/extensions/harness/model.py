"""One model as lm-evaluation-harness sees it; needs the package ``lm-eval``.

The harness renders prompts and judges answers. Text becomes tokens as in the harness's ``HFLM``,
and Rankscope's engine scores or continues them.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedTokenizerBase

from rankscope.data.chat import DATE_STRING, of_one_day
from rankscope.errors import UserError
from rankscope.evaluate.continuous_batching import GenerationLimits, generate
from rankscope.evaluate.likelihood import continuation_logprobs
from rankscope.evaluate.scorers.scorer import Question
from rankscope.models.base import Base

MAX_NEW_TOKENS = 256  # Longest generated answer of a task that sets no limit, as in the harness


class LmEvalModel(TemplateLM):  # type: ignore[misc]  # the package has no types
    def __init__(
        self, base: Base, adapter_name: str | None, context: int, batch_tokens: int
    ) -> None:
        super().__init__()
        self.base = base
        self.adapter_name = adapter_name
        self.context = context
        self.batch_tokens = batch_tokens
        self.tokenizer: PreTrainedTokenizerBase = base.tokenizer
        self.num_tokens = 0
        self.seconds = 0.0

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return self.base.record.label

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Encode a text; if it begins with the BOS token in writing, it gets no second one."""
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        bos = self.tokenizer.decode([self.prefix_token_id])
        if add_special_tokens is None and bos and string.startswith(str(bos)):
            options = {"add_special_tokens": False}
        ids: list[int] = self.tokenizer.encode(string, **options)
        return ids

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        text = self.tokenizer.apply_chat_template(
            chat_history,
            chat_template=of_one_day(self.tokenizer.get_chat_template()),
            date_string=DATE_STRING,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        assert isinstance(text, str)
        return text

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        values: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return values

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return (summed log p, whether greedy decoding writes it) of each continuation."""
        by_prompt: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, (_, prompt, _) in enumerate(requests):
            by_prompt[tuple(prompt)].append(number)
        questions = [
            Question(prompt, [requests[number][2] for number in numbers])
            for prompt, numbers in by_prompt.items()
        ]
        # The last token is predicted, not read.
        self.check_lengths([question.num_tokens - 1 for question in questions])
        logprobs = continuation_logprobs(
            self.base, questions, [self.adapter_name], self.batch_tokens, greedy=True
        )[self.adapter_name]
        self.num_tokens += logprobs.num_tokens
        self.seconds += logprobs.seconds
        pairs = {
            number: (float(value), not missed)
            for numbers, values, misses in zip(
                by_prompt.values(), logprobs.values, logprobs.missed, strict=True
            )
            for number, value, missed in zip(numbers, values, misses, strict=True)
        }
        return [pairs[number] for number in range(len(requests))]

    def check_lengths(self, lengths: Sequence[int]) -> None:
        """Refuse rows longer than the context: cut rows would be other rows."""
        too_long = [length for length in lengths if length > self.context]
        if too_long:
            raise UserError(
                "the task",
                f"{len(too_long)} of {len(lengths)} prompts that do not fit the model's context of "
                f"{self.context} tokens; the longest needs {max(too_long)}",
                do="use fewer examples (num_fewshot), or a model with a longer context",
            )

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return log p of each whole text, in windows of the context if it is longer."""
        windows: list[tuple[Any, list[int], list[int]]] = []
        counts = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            of_text = [
                make_disjoint_window(window)
                for window in get_rolling_token_windows(ids, self.prefix_token_id, self.context, 1)
            ]
            windows += [(None, list(prompt), list(rest)) for prompt, rest in of_text]
            counts.append(len(of_text))
        values = iter(self._loglikelihood_tokens(windows) if windows else [])
        return [sum(next(values)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        texts = [""] * len(requests)
        by_settings: dict[tuple[tuple[str, ...], int], list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            by_settings[_read_generation_settings(request.args[1])].append(number)
        for (stops, max_new_tokens), numbers in by_settings.items():
            prompts = [self.tok_encode(requests[i].args[0]) for i in numbers]
            self.check_lengths([len(prompt) + 1 for prompt in prompts])
            limits = GenerationLimits(
                max_new_tokens=max_new_tokens,
                context=self.context,
                batch_tokens=self.batch_tokens,
                stop_ids=frozenset({self.eot_token_id}),
                stop_strings=stops,
            )
            by_model = generate(self.base, prompts, [self.adapter_name], limits)
            for number, generation in zip(numbers, by_model[self.adapter_name], strict=True):
                texts[number] = generation.text
                self.num_tokens += len(generation.prompt) + len(generation.ids)
        return texts


def _read_generation_settings(settings: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    """Return (stop strings, most new tokens) of a task's ``generation_kwargs``."""
    given = dict(settings)
    until = given.pop("until", None) or []
    stops = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
    limit = MAX_NEW_TOKENS
    for name in ("max_gen_toks", "max_new_tokens"):
        limit = int(given.pop(name, limit))
    samples = bool(given.pop("do_sample", False)) and float(given.get("temperature", 1.0)) > 0
    given.pop("temperature", None)
    given.pop("top_p", None)
    if samples or given:
        raise UserError(
            "generation_kwargs of the task",
            ", ".join(sorted(given)) or "sampling",
            "until, max_gen_toks and do_sample: false, as answers are generated greedily",
        )
    return stops, limit
