"""Answers from vLLM (2309.06180): a server of its own process, which reads weights from folders.

The command ``vllm`` may be of another environment than this one, as it needs other versions of
libraries: all else goes through its HTTP interface. The server is started when training has left
the device, and ends with the process that started it, however that ends.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http.client import HTTPException
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import torch

from rankscope.config.study import StudyConfig
from rankscope.device import release_freed_memory, visible_gpus
from rankscope.errors import UserError, first_line
from rankscope.evaluate.continuous_batching import Generation, GenerationLimits, generate
from rankscope.evaluate.likelihood import continuation_logprobs
from rankscope.evaluate.scorers.scorer import Question
from rankscope.models.base import Base
from rankscope.records import BASE, DIFFERENCE, EQUAL, vllm_note

LARGEST_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # Of adapters, as vLLM takes them
ADAPTERS_AT_ONCE = 8  # In a batch of the server; others are read again
PROMPTS_AT_ONCE = 512  # In a request: releases refuse more than 1,024
SHARE_OF_FREE = 0.5  # Of the device's free memory, for the server; log p is computed in the rest
CPU_CACHE_GIB = 2
MAX_START_SECONDS = 1800
ANSWERS_COMPARED = 16  # Of each model, before any of its answers counts
LARGEST_DIFFERENCE = 0.1
"""Of an answer's log p, nats per token, in the mean. In bfloat16 two ways to compute one model
differed by .006 to .04."""
LOG_BYTES = 2**16  # Of the end of the server's log, in which the reason of its end is looked for
WATCHED = """
exec 3<&0
"$@" </dev/null 3<&- &
server=$!
(read -r _ <&3; kill $server; sleep 30; kill -9 0) &
wait $server
"""
"""Runs a command that ends when the input of this shell does, which is when the process at its
other end closes it or dies."""


class ServerEnded(Exception):
    """The server cannot be reached any more, or never could; says why."""


class Refused(Exception):
    """The server does not do what it is asked for; says why."""


class VllmAnswer(NamedTuple):
    generation: Generation
    ids: list[int]  # With the token that ended it
    logprob: float


def find_command() -> str | None:
    beside = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    return shutil.which("vllm", path=beside)


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
        self.unfit: dict[Path, str] = {}  # Why a folder is left to the own engine
        self.failure = ""  # Why everything is
        self._server: _Server | None = None

    def metrics(self, name: str | None) -> dict[str, float]:
        """Of a model whose answers it writes; empty for another."""
        return self.parity.get(self.folders[name], {}) if self._is_served(name) else {}

    def notes(self) -> list[str]:
        reasons = [f"{folder}: {reason}" for folder, reason in self.unfit.items()]
        reasons += [self.failure] if self.failure else []
        left = [f"answers are left to the own engine: {reason}" for reason in reasons]
        return [*left, *vllm_note(self.parity.values())]

    def generate(
        self,
        base: Base,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str | None],
        limits: GenerationLimits,
    ) -> dict[str | None, list[Generation]]:
        found: dict[str | None, list[Generation]] = {}
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
                    self.parity[folder] = self._compared(base, name, ours[name], theirs, limits)
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

    def _compared(
        self,
        base: Base,
        name: str | None,
        ours: Sequence[Generation],
        theirs: "Sequence[VllmAnswer]",
        limits: GenerationLimits,
    ) -> dict[str, float]:
        """Raises Refused: the answers are of another model, or of the base without its adapter."""
        questions = [Question(a.generation.prompt, [a.ids]) for a in theirs]
        models = [name] if name is None else [name, None]
        computed = continuation_logprobs(base, questions, models, limits.batch_tokens)
        distances = {
            model: fmean(
                abs(total - answer.logprob) / len(answer.ids)
                for answer, total in zip(theirs, of.totals.tolist(), strict=True)
            )
            for model, of in computed.items()
        }
        if not distances[name] <= min(LARGEST_DIFFERENCE, 2 * distances[None]):
            raise Refused(
                f"vLLM computes another model: log p of its answers differs by "
                f"{distances[name]:.2g} nats per token from that of the own engine, and by "
                f"{distances[None]:.2g} from the one without the adapter"
            )
        pairs = zip(ours, theirs, strict=True)
        return {
            EQUAL: fmean(own.text == answer.generation.text for own, answer in pairs),
            DIFFERENCE: distances[name],
        }

    def _server_for(
        self,
        base: Base,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str | None],
        limits: GenerationLimits,
    ) -> "_Server":
        """One for these models, with room for the longest prompt and its answer."""
        ranks = [_settings(self.folders[name])["r"] for name in names if name is not None]
        folder = self.base_folder if ranks else self.folders[None]
        needed = min(limits.context, max(map(len, prompts)) + limits.max_new_tokens)
        if self._server is None or not self._server.suits(folder, needed, max(ranks, default=0)):
            self.close()
            room = min(limits.context, 2 ** (needed - 1).bit_length())  # for longer splits, too
            self._server = _Server(self.base_folder, base, folder, room, max(ranks, default=0))
        return self._server


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


class _Server:
    """``vllm serve`` on one folder of weights. Raises ServerEnded: it does not start."""

    def __init__(
        self, tokenizer: Path, base: Base, folder: Path, max_tokens: int, largest_rank: int
    ) -> None:
        self.base, self.folder, self.max_tokens = base, folder, max_tokens
        self.largest_rank = next((r for r in LARGEST_RANKS if r >= largest_rank > 0), 0)
        self.loaded: set[str] = set()
        self.key = secrets.token_hex()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        words = [find_command() or "vllm", "serve", str(folder), "--tokenizer", str(tokenizer)]
        words += ["--served-model-name", BASE, "--host", "127.0.0.1", "--port", str(port)]
        words += ["--generation-config", "vllm", "--max-model-len", str(max_tokens)]
        words += ["--dtype", str(base.model.dtype).removeprefix("torch.")]
        if self.largest_rank:
            words += ["--enable-lora", "--max-lora-rank", str(self.largest_rank)]
            words += ["--max-loras", str(ADAPTERS_AT_ONCE)]
        environment = {
            **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            "HF_HUB_OFFLINE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_API_KEY": self.key,
            "VLLM_CPU_KVCACHE_SPACE": str(CPU_CACHE_GIB),
            "VLLM_MAX_STOP_STRINGS": "64",
            "VLLM_NO_USAGE_STATS": "1",
        }
        if base.device.type == "cuda":
            release_freed_memory()
            free_bytes, all_bytes = torch.cuda.mem_get_info(base.device)
            share = SHARE_OF_FREE * free_bytes / all_bytes
            words += ["--gpu-memory-utilization", f"{share:.3f}"]
            environment["CUDA_VISIBLE_DEVICES"] = visible_gpus()[base.device.index or 0]
        else:
            words += ["--enforce-eager"]  # compiling takes longer than the answers of a study
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the server)
        self.process = subprocess.Popen(
            ["sh", "-c", WATCHED, "sh", *words],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal reaches this process alone
        )
        # Not by a proxy, which the environment may name.
        self.open = build_opener(ProxyHandler({})).open
        started = time.monotonic()
        try:
            while not self._is_up():
                if time.monotonic() - started > MAX_START_SECONDS:
                    raise ServerEnded(f"not up after {MAX_START_SECONDS} s: {self._last_line()}")
                time.sleep(0.5)
        except BaseException:
            self.close()
            raise

    def suits(self, folder: Path, max_tokens: int, rank: int) -> bool:
        fits = max_tokens <= self.max_tokens and rank <= self.largest_rank
        return folder == self.folder and fits

    def load(self, name: str, folder: Path) -> None:
        """An adapter, once."""
        if name not in self.loaded:
            body = {"lora_name": name, "lora_path": str(folder.resolve())}
            self._ask("/v1/load_lora_adapter", body)
            self.loaded.add(name)

    def answers(
        self, name: str | None, prompts: Sequence[Sequence[int]], limits: GenerationLimits
    ) -> list[VllmAnswer]:
        """In the order of the prompts. Raises Refused and ServerEnded."""
        lengths = [min(limits.max_new_tokens, limits.context - len(prompt)) for prompt in prompts]
        found: dict[int, VllmAnswer] = {}
        for length in sorted(set(lengths)):
            alike = [i for i, of_prompt in enumerate(lengths) if of_prompt == length]
            for start in range(0, len(alike), PROMPTS_AT_ONCE):
                places = alike[start : start + PROMPTS_AT_ONCE]
                body = {
                    "model": BASE if name is None else name,
                    "prompt": [list(prompts[i]) for i in places],
                    "max_tokens": length,
                    "temperature": 0,
                    "stop": list(limits.stop_strings),
                    "stop_token_ids": sorted(limits.stop_ids),
                    "ignore_eos": True,  # the end tokens are those above
                    "return_token_ids": True,
                    "logprobs": 0,  # of the token itself
                }
                for choice in self._ask("/v1/completions", body)["choices"]:
                    i = places[choice["index"]]
                    found[i] = self._answer(name, prompts[i], length, choice, limits)
        return [found[i] for i in range(len(prompts))]

    def _answer(
        self,
        name: str | None,
        prompt: Sequence[int],
        length: int,
        choice: dict[str, Any],
        limits: GenerationLimits,
    ) -> VllmAnswer:
        ids = choice.get("token_ids")
        if ids is None:
            raise Refused("answers without token_ids, which vLLM has from 0.10.2 on")
        is_stopped = choice["finish_reason"] == "stop"
        written = ids[:-1] if is_stopped and ids[-1] in limits.stop_ids else list(ids)
        generation = Generation(name, prompt, length, ids=written, stopped=is_stopped)
        generation.finish(limits, self.base.tokenizer)
        return VllmAnswer(generation, list(ids), sum(choice["logprobs"]["token_logprobs"]))

    def close(self) -> None:
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()  # ends it, see WATCHED
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, 9)
        self.process.wait()
        self.log.close()

    def _is_up(self) -> bool:
        try:
            self._ask("/health")
        except ServerEnded:
            if self.process.poll() is not None:
                raise
            return False
        return True

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        try:
            with self.open(Request(self.address + path, data, headers)) as reply:
                text = reply.read().decode()
        except HTTPError as error:
            told = f"{path}: status {error.code}, {error.read().decode(errors='replace')[:300]}"
            if path == "/health" or (error.code >= 500 and not self._is_up()):
                raise ServerEnded(told) from error
            raise Refused(f"vLLM refused {told}") from error
        except (OSError, HTTPException) as error:
            raise ServerEnded(self._last_line() or first_line(error)) from error
        # Of /health nothing, of an adapter a sentence.
        read: dict[str, Any] = json.loads(text) if text.startswith("{") else {}
        return read

    def _last_line(self) -> str:
        # Read without a seek: the server writes at the same offset of the file.
        size = os.fstat(self.log.fileno()).st_size
        read = os.pread(self.log.fileno(), LOG_BYTES, max(0, size - LOG_BYTES))
        lines = read.decode(errors="replace").splitlines()
        errors = [line for line in lines if "Error" in line]
        return (errors or lines or [""])[-1][-300:]
