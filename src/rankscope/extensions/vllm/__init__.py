"""Answers from vLLM (2309.06180), compared with the own engine's before any of them counts.

The server is started when training has left the device, on that device, and reads weights from
folders. Its file ``serving`` tells the page how to serve a model with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rankscope.errors import UserError
from rankscope.evaluate.engines.engine import Engine, Names, Prompts
from rankscope.formatting import count

if TYPE_CHECKING:
    import torch

    from rankscope.config.study import StudyConfig
    from rankscope.evaluate.continuous_batching import GenerationLimits
    from rankscope.evaluate.engines.engine import Answers
    from rankscope.extensions.vllm.server import Server
    from rankscope.models.base import Base
    from rankscope.records import EvalRecord

Parity = dict[str, float]
ANSWERS_COMPARED = 16  # Of each model, before any of its answers counts
EQUAL, DIFFERENCE = "vllm_equal", "vllm_difference"
"""Metrics of a model's first answers: the share that the own engine writes, too, and the difference
of their log p from the own engine's, nats per token."""


class ServerEnded(Exception):
    """The server cannot be reached any more, or never could; says why."""


class Refused(Exception):
    """The server refuses a request, or computes something else; says why."""


class VllmEngine(Engine):
    """Writes answers with a server of vLLM.

    The own engine takes the models that the server cannot read, refuses or computes otherwise. It
    takes everything once a server has failed twice.
    """

    name = "vllm"

    def __init__(self) -> None:
        super().__init__()
        self.parity: dict[Path, Parity] = {}
        """``EQUAL`` and ``DIFFERENCE`` of models whose answers it wrote, by folder."""
        self.unfit: dict[Path, str] = {}  # Why a folder is left to the own engine
        self.failure = ""  # Why everything is left to the own engine
        self._server: Server | None = None

    @classmethod
    def check(cls, config: StudyConfig, device: torch.device, dtype: torch.dtype) -> None:
        from rankscope.extensions.vllm.server import find_command

        found, do = "", "set 'own'"
        if config.train.devices > 1 or config.quantize != "none":
            found = "a base that several devices hold, or that is quantized"
        elif device.type == "cuda" and dtype.itemsize == 4:
            found = "float32, in which it has no adapters on a GPU"
        elif find_command() is None:
            found = "no such command on the PATH"
            do = "install vLLM in an environment of its own, and put its command on the PATH"
        if found:
            raise UserError("evaluate.engine", f"'vllm', and {found}", do=do)

    @classmethod
    def study_notes(cls, scores: Iterable[EvalRecord]) -> list[str]:
        return _note({s.trial_id: s.metrics for s in scores if EQUAL in s.metrics}.values())

    def begin(self, folder_of: Callable[[str | None], Path]) -> None:
        self.folder_of = cache(folder_of)
        self.tables.clear()  # of a model that failed

    def metrics(self, name: str | None) -> dict[str, float]:
        return self.parity.get(self.folder_of(name), {}) if self._is_served(name) else {}

    def notes(self) -> list[str]:
        unfit = [f"{folder}: {reason}" for folder, reason in self.unfit.items()]
        reasons = filter(None, [*unfit, self.failure])
        left = [f"answers are left to the own engine: {reason}" for reason in reasons]
        return [*left, *_note(self.parity.values())]

    def generate(
        self, base: Base, prompts: Prompts, names: Names, limits: GenerationLimits
    ) -> Answers:
        found: Answers = {}
        for is_last in (False, True):  # a server that ends half-way is started once more
            served = [name for name in names if self._is_served(name)]
            if not served:
                break
            try:
                found = self._write(base, prompts, served, limits)
                break
            except (ServerEnded, Refused) as error:
                self.close()
                if is_last:
                    self.failure = f"vLLM failed twice: {error}"
        rest = [name for name in names if name not in found]
        found |= super().generate(base, prompts, rest, limits)
        return {name: found[name] for name in names}

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _is_served(self, name: str | None) -> bool:
        folder = self.folder_of(name)
        return not self.failure and folder not in self.unfit and _is_readable(folder, name)

    def _write(
        self, base: Base, prompts: Prompts, names: Names, limits: GenerationLimits
    ) -> Answers:
        """Return the answers of the models that the server computes like the own engine."""
        from rankscope.extensions.vllm.comparison import compared, parity
        from rankscope.extensions.vllm.server import Server

        ranks = [_settings(self.folder_of(name))["r"] for name in names if name is not None]
        folder, rank = base.folder if ranks else self.folder_of(None), max(ranks, default=0)
        needed = min(limits.context, max(map(len, prompts.values())) + limits.max_new_tokens)
        if not ((server := self._server) and server.suits(folder, needed, rank)):
            self.close()
            room = min(limits.context, 2 ** (needed - 1).bit_length())  # for longer splits, too
            server = self._server = Server(base, folder, room, rank)
        first, found = dict(islice(prompts.items(), ANSWERS_COMPARED)), dict[Path, Parity]()
        new = [name for name in names if self.folder_of(name) not in self.parity]
        ours = super().generate(base, first, new, limits)
        for name in names:
            folder = self.folder_of(name)
            try:
                if name is not None:
                    server.load(name, folder)
                if name in ours:
                    theirs = server.answers(name, [*first.values()], limits)
                    pairs = [*zip(first, ours[name], theirs, strict=True)]
                    table = self.tables[name] = compared(base, name, pairs, limits.batch_tokens)
                    found[folder] = parity(table, base.model.dtype)
            except Refused as error:
                self.unfit[folder] = str(error)
        served = [name for name in names if self._is_served(name)]
        write = partial(server.answers, prompts=[*prompts.values()], limits=limits)
        with ThreadPoolExecutor(len(names)) as pool:
            try:
                written = [*pool.map(write, served)]
            except BaseException:
                self.close()  # so that the other requests break off
                raise
        self.parity |= found
        return {n: [*answers] for n, answers in zip(served, written, strict=True)}


def _note(written: Collection[Mapping[str, float]]) -> list[str]:
    """Write a sentence on models whose answers vLLM wrote, from their metrics; none without any."""
    if not written:
        return []
    equal, largest = fmean(m[EQUAL] for m in written), max(m[DIFFERENCE] for m in written)
    return [
        f"vLLM wrote the answers of {count(len(written), 'model')}; both engines wrote the first "
        f"ones: {equal:.1%} have the same text; their log p per token differs by {largest:.2g} "
        "nats on average in the model where it differs most (by item: artifacts/*/vllm/)"
    ]


def _settings(folder: Path) -> Any:
    file = folder / "adapter_config.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else {}


def _is_readable(folder: Path, name: str | None) -> bool:
    """Whether a folder holds a whole model, or plain LoRA of one rank on inner linear layers."""
    from rankscope.extensions.vllm.serving import obstacle

    settings = _settings(folder)
    targets, init = settings.get("target_modules"), settings.get("init_lora_weights")
    return not settings or (
        name is not None  # a model that runs by PEFT
        and settings.get("peft_type") == "LORA"  # mlx-lm's own files have no such key
        and not obstacle(settings)
        and (not isinstance(init, str) or init == "gaussian")  # others may change the base
        and isinstance(targets, list)
        and not {"lm_head", "embed_tokens"} & set(targets)
    )
