"""Answers from vLLM (2309.06180), compared with the own engine's before any of them counts.

The server is started when training has left the device, on that device, and reads weights from
folders.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import torch

from rankscope.config.study import StudyConfig
from rankscope.errors import UserError
from rankscope.evaluate.continuous_batching import Generation, GenerationLimits, generate
from rankscope.evaluate.likelihood import continuation_logprobs
from rankscope.evaluate.scorers.scorer import Question
from rankscope.evaluate.vllm_server import (
    LARGEST_RANKS,
    Refused,
    Server,
    ServerEnded,
    VllmAnswer,
    find_command,
)
from rankscope.models.base import Base
from rankscope.records import DIFFERENCE, EQUAL, PARITY_SCHEMA, vllm_note

ANSWERS_COMPARED = 16  # Of each model, before any of its answers counts
LARGEST_DIFFERENCE = {torch.bfloat16: 0.1, torch.float16: 0.0125, torch.float32: 0.0001}
"""Of an answer's log p, nats per token, in the mean over the answers compared.

A logit between 16 and 32 is a multiple of .125 in bfloat16. Two engines that round it apart differ
by a third of that in the mean, .04; over 16 answers of one token by less than .07 (four standard
errors). The layers before add their own roundings; a longer answer averages over its tokens.
float16 has steps an eighth as large. In float32, 6e-6 was measured.
"""
LARGEST_MISSED = 1 / 10
"""Of vLLM's tokens, the share that the own engine would not write after the tokens before.

Rounding to bfloat16 swaps two nearly equal tokens at two to four in a hundred, as
``benchmarks/vllm_parity.py`` measured. The difference of log p does not show an engine that samples
or penalizes repetition: log p of what it writes is right.
"""


def resolved_engine(config: StudyConfig, device: torch.device, dtype: torch.dtype) -> str:
    """``own`` or ``vllm``; ``auto`` is vLLM on a GPU where it can be. Raises UserError: it is asked
    for and cannot be."""
    wish, reason, do = config.evaluate.engine, "", "set 'own'"
    if config.train.devices > 1 or config.quantize != "none":
        reason = "a base that several devices hold, or that is quantized"
    elif device.type == "cuda" and dtype == torch.float32:
        reason = "float32, in which it has no adapters on a GPU"
    elif find_command() is None:
        reason = "no such command on the PATH"
        do = "install vLLM in an environment of its own, and put its command on the PATH"
    if wish == "auto":
        return "own" if reason or device.type != "cuda" else "vllm"
    if wish == "vllm" and reason:
        raise UserError("evaluate.engine", f"'vllm', and {reason}", do=do)
    return wish


class Vllm:
    """Writes greedy answers as :func:`~rankscope.evaluate.continuous_batching.generate` does.

    Models that vLLM cannot read, refuses or computes otherwise are left to that function, and so is
    everything once a server has failed twice.
    """

    def __init__(self, base_folder: Path) -> None:
        self.base_folder = base_folder
        self.folders: Mapping[str | None, Path] = {}
        """Weights by adapter name; None: of the model itself."""
        self.parity: dict[Path, dict[str, float]] = {}
        """``EQUAL`` and ``DIFFERENCE`` by folder."""
        self.tables: dict[str | None, pa.Table] = {}
        """By adapter name, the answers compared that no file holds yet (``PARITY_SCHEMA``)."""
        self.written: set[Path] = set()  # Folders whose answers it wrote
        self.unfit: dict[Path, str] = {}  # Why a folder is left to the own engine
        self.failure = ""  # Why everything is
        self._server: Server | None = None

    def metrics(self, name: str | None) -> dict[str, float]:
        """Of a model whose answers it writes; empty for another."""
        return self.parity.get(self.folders[name], {}) if self._is_served(name) else {}

    def notes(self) -> list[str]:
        reasons = [f"{folder}: {reason}" for folder, reason in self.unfit.items()]
        reasons += [self.failure] if self.failure else []
        left = [f"answers are left to the own engine: {reason}" for reason in reasons]
        return [*left, *vllm_note([self.parity[folder] for folder in self.written])]

    def generate(
        self,
        base: Base,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str | None],
        limits: GenerationLimits,
        item_ids: Sequence[str],
    ) -> dict[str | None, list[Generation]]:
        """``item_ids`` are those of the prompts."""
        found: dict[str | None, list[Generation]] = {}
        for is_last in (False, True):  # a server that ends half-way is started once more
            served = [name for name in names if self._is_served(name)]
            if not served:
                break
            try:
                found = self._write(base, prompts, served, limits, item_ids)
                self.written |= {self.folders[name] for name in found}
                break
            except (ServerEnded, Refused) as error:
                self.close()
                if is_last:
                    self.failure = f"vLLM failed twice: {error}"
        rest = [name for name in names if name not in found]
        found |= generate(base, prompts, rest, limits) if rest else {}
        return {name: found[name] for name in names}

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _is_served(self, name: str | None) -> bool:
        folder = self.folders[name]
        return not self.failure and folder not in self.unfit and _is_readable(folder, name)

    def _write(
        self,
        base: Base,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str | None],
        limits: GenerationLimits,
        item_ids: Sequence[str],
    ) -> dict[str | None, list[Generation]]:
        """Answers of those models that the server computes as the own engine does."""
        server = self._server_for(base, prompts, names, limits)
        first = prompts[:ANSWERS_COMPARED]
        new = [name for name in names if self.folders[name] not in self.parity]
        ours = generate(base, first, new, limits) if new else {}
        for name in names:
            folder = self.folders[name]
            try:
                if name is not None:
                    server.load(name, folder)
                if name in ours:
                    theirs = server.answers(name, first, limits)
                    table = compared(base, item_ids, name, ours[name], theirs, limits.batch_tokens)
                    self.tables[name] = table
                    self.parity[folder] = parity(table, base.model.dtype)
            except Refused as error:
                self.unfit[folder] = str(error)
        served = [name for name in names if self._is_served(name)]
        write = partial(server.answers, prompts=prompts, limits=limits)
        with ThreadPoolExecutor(len(names)) as pool:
            try:
                written = [[a.generation for a in answers] for answers in pool.map(write, served)]
            except BaseException:
                self.close()  # so that the other requests break off
                raise
        return dict(zip(served, written, strict=True))

    def _server_for(
        self,
        base: Base,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str | None],
        limits: GenerationLimits,
    ) -> Server:
        """One for these models, with room for the longest prompt and its answer."""
        ranks = [_settings(self.folders[name])["r"] for name in names if name is not None]
        folder = self.base_folder if ranks else self.folders[None]
        needed = min(limits.context, max(map(len, prompts)) + limits.max_new_tokens)
        if self._server is None or not self._server.suits(folder, needed, max(ranks, default=0)):
            self.close()
            room = min(limits.context, 2 ** (needed - 1).bit_length())  # for longer splits, too
            self._server = Server(self.base_folder, base, folder, room, max(ranks, default=0))
        return self._server


def compared(
    base: Base,
    item_ids: Sequence[str],
    name: str | None,
    ours: Sequence[Generation],
    theirs: Sequence[VllmAnswer],
    batch_tokens: int,
) -> pa.Table:
    """The first answers of both engines under one model: a table of ``PARITY_SCHEMA``."""
    questions = [Question(answer.generation.prompt, [answer.ids]) for answer in theirs]
    models = [name] if name is None else [name, None]
    computed = continuation_logprobs(base, questions, models, batch_tokens, greedy=True)
    rows = []
    for i, (own, answer) in enumerate(zip(ours, theirs, strict=True)):
        tokens = len(answer.ids)
        of_own, of_base = (float(computed[of].values[i][0]) / tokens for of in (name, None))
        rows.append(
            {
                "item_id": item_ids[i],
                "own": own.text,
                "vllm": answer.generation.text,
                "equal": own.text == answer.generation.text,
                "tokens": tokens,
                "missed": int(computed[name].missed[i][0]),
                "own_logprob": of_own,
                "vllm_logprob": answer.logprob / tokens,
                "difference": abs(of_own - answer.logprob / tokens),
                "difference_without_adapter": abs(of_base - answer.logprob / tokens),
            }
        )
    return pa.Table.from_pylist(rows, PARITY_SCHEMA)


def parity(table: pa.Table, dtype: torch.dtype) -> dict[str, float]:
    """``EQUAL`` and ``DIFFERENCE`` of answers that were compared. Raises Refused: they are of
    another model, of the base without its adapter, or not greedy."""
    columns = table.to_pydict()
    difference, without = (
        fmean(columns[name]) for name in ("difference", "difference_without_adapter")
    )
    missed, tokens = sum(columns["missed"]), sum(columns["tokens"])
    if not difference <= min(LARGEST_DIFFERENCE[dtype], 2 * without):
        raise Refused(
            f"vLLM computes another model: log p of its answers differs by {difference:.2g} nats "
            f"per token from that of the own engine, and by {without:.2g} from the one without the "
            "adapter"
        )
    if missed > max(2, LARGEST_MISSED * tokens):
        raise Refused(f"vLLM writes other tokens than the likeliest: {missed} of {tokens}")
    return {EQUAL: fmean(columns["equal"]), DIFFERENCE: difference}


def _settings(folder: Path) -> dict[str, Any]:
    settings = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    assert isinstance(settings, dict)
    return settings


def _is_readable(folder: Path, name: str | None) -> bool:
    """Whether it is a whole model, or plain LoRA of one rank on linear layers inside."""
    if not (folder / "adapter_config.json").exists():
        return True
    settings = _settings(folder)
    targets, init = settings.get("target_modules"), settings.get("init_lora_weights")
    return (
        name is not None  # a model that runs by PEFT
        and settings.get("peft_type") == "LORA"
        and not any(settings.get(key) for key in ("use_dora", "rank_pattern", "alpha_pattern"))
        and (not isinstance(init, str) or init == "gaussian")  # others may change the base
        and isinstance(targets, list)
        and not {"lm_head", "embed_tokens"} & set(targets)
        and settings["r"] <= LARGEST_RANKS[-1]
    )
