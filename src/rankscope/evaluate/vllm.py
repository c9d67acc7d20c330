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
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch

from rankscope.config.study import StudyConfig
from rankscope.device import release_freed_memory
from rankscope.errors import UserError
from rankscope.evaluate.continuous_batching import Generation, GenerationLimits, generate
from rankscope.evaluate.likelihood import continuation_logprobs
from rankscope.evaluate.metrics import DIFFERENCE, EQUAL, vllm_note
from rankscope.evaluate.scorers.scorer import Question
from rankscope.models.base import Base
from rankscope.records import BASE

WHERE = "evaluate.engine"
LARGEST_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # Of adapters, as vLLM takes them
ADAPTERS_AT_ONCE = 8  # In a batch of the server; others wait in its memory
SHARE_OF_FREE = 0.9  # Of the device's free memory, for the server
CPU_CACHE_GIB = 2
ANSWERS_COMPARED = 16  # By model, before any of its answers counts
LARGEST_DIFFERENCE = 0.1
"""Mean difference of a token's log p, nats. In bfloat16 two ways to compute one model differ by .01
to .03; an adapter that is left out, or scaled otherwise, by more."""
LOG_BYTES = 2**16  # Of its end, in which the reason is looked for
WATCHED = (
    'exec 3<&0; "$@" </dev/null 3<&- & server=$!; (read -r _ <&3; kill $server) & wait $server'
)
"""A command that ends when the input of this shell does: when the process that holds it ends."""


class ServerEnded(Exception):
    """The server cannot be reached any more, or never could; says why."""


def find_command() -> str | None:
    beside = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    return shutil.which("vllm", path=beside)


def check_engine(config: StudyConfig) -> None:
    """Raise UserError: vLLM is asked for, and cannot be had."""
    if config.evaluate.engine != "vllm":
        return
    if config.train.devices > 1 or config.quantize != "none":
        found = "'vllm', with a base that several devices hold, or that is quantized"
        raise UserError(WHERE, found, "'own'")
    if find_command() is None:
        do = "install vllm in an environment of its own, and put its command on the PATH"
        raise UserError(WHERE, "'vllm', and no such command on the PATH", "one", do)


def engine_for(config: StudyConfig, device: torch.device) -> "Vllm | None":
    """The engine of a study; None: its own. ``auto`` takes vLLM on a GPU, if it is there."""
    check_engine(config)
    command, wish = find_command(), config.evaluate.engine
    is_worth_it = device.type == "cuda" and config.train.devices == 1 and config.quantize == "none"
    if command is None or not (wish == "vllm" or (wish == "auto" and is_worth_it)):
        return None
    return Vllm(command, gives_up=wish == "auto")


class Vllm:
    """Writes greedy answers as :func:`~rankscope.evaluate.continuous_batching.generate` does.

    Models that vLLM cannot read are left to that function, and so is everything after a failure if
    the engine ``gives_up``.
    """

    def __init__(self, command: str, *, gives_up: bool) -> None:
        self.command, self.gives_up = command, gives_up
        self.folders: Mapping[str | None, Path] = {}
        """Weights by adapter name; None: of the model itself. Set it before each split."""
        self.failure = ""  # Why it gave up
        self.parity: dict[Path, dict[str, float]] = {}
        """``EQUAL`` and ``DIFFERENCE`` by folder."""
        self._server: _Server | None = None

    def metrics(self, name: str | None) -> dict[str, float]:
        """Of a model whose answers it wrote; empty for another."""
        return self.parity.get(self.folders.get(name, Path()), {})

    def generate(
        self,
        base: Base,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str | None],
        limits: GenerationLimits,
    ) -> dict[str | None, list[Generation]]:
        served = [] if self.failure else [n for n in names if _is_readable(self.folders.get(n))]
        found: dict[str | None, list[Generation]] = {}
        if served:
            try:
                found = self._generate_twice(base, prompts, served, limits)
            except UserError as error:
                self.close()
                if not self.gives_up:
                    raise
                self.failure = str(error)
                for name in served:
                    self.parity.pop(self.folders[name], None)
        rest = [name for name in names if name not in found]
        found |= generate(base, prompts, rest, limits) if rest else {}
        return {name: found[name] for name in names}

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def notes(self) -> list[str]:
        failed = [f"the own engine wrote: {self.failure}"] if self.failure else []
        return failed + vllm_note(self.parity.values())

    def _generate_twice(
        self,
        base: Base,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str | None],
        limits: GenerationLimits,
    ) -> dict[str | None, list[Generation]]:
        """A server that ends half-way is started once more, and writes all answers again."""
        for is_last in (False, True):
            try:
                server = self._server_for(base, prompts, names, limits)
                for name in names:
                    self._compare(server, base, prompts[:ANSWERS_COMPARED], name, limits)
                write = partial(server.answers, prompts=prompts, limits=limits)
                with ThreadPoolExecutor(len(names)) as pool:
                    return dict(zip(names, map(_generations, pool.map(write, names)), strict=True))
            except ServerEnded as error:
                self.close()
                if is_last:
                    do = "set 'own', or make 'vllm serve' work for this model"
                    raise UserError(WHERE, f"vLLM, which ended twice ({error})", do=do) from error
        raise AssertionError

    def _server_for(
        self,
        base: Base,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str | None],
        limits: GenerationLimits,
    ) -> "_Server":
        """One that holds these models, and has room for the longest prompt with its answer."""
        adapters = {name: self.folders[name] for name in names if name is not None}
        folder = base.folder if adapters else self.folders[None]
        longest = min(limits.context, max(map(len, prompts)) + limits.max_new_tokens)
        rank = max([_settings(path)["r"] for path in adapters.values()], default=0)
        if self._server is None or not self._server.suits(folder, longest, rank):
            self.close()
            self._server = _Server(self.command, base, folder, longest, rank)
        for name, path in adapters.items():
            self._server.load(name, path)
        return self._server

    def _compare(
        self,
        server: "_Server",
        base: Base,
        prompts: Sequence[Sequence[int]],
        name: str | None,
        limits: GenerationLimits,
    ) -> None:
        """Raises UserError: vLLM computes another model from this folder."""
        folder = self.folders[name]
        if folder in self.parity:
            return
        answers = server.answers(name, prompts, limits)
        theirs = _generations(answers)
        ours = generate(base, prompts, [name], limits)[name]
        written = [(i, choice["token_ids"]) for i, choice in enumerate(answers) if theirs[i].ids]
        questions = [Question(prompts[i], [ids]) for i, ids in written]
        totals = continuation_logprobs(base, questions, [name], limits.batch_tokens)[name].totals
        differences = [
            abs(total - sum(answers[i]["logprobs"]["token_logprobs"])) / len(ids)
            for (i, ids), total in zip(written, totals.tolist(), strict=True)
        ]
        self.parity[folder] = {
            EQUAL: fmean(a.text == b.text for a, b in zip(ours, theirs, strict=True)),
            DIFFERENCE: fmean(differences) if differences else 0.0,
        }
        if not self.parity[folder][DIFFERENCE] <= LARGEST_DIFFERENCE:
            raise UserError(
                WHERE,
                f"log p that differ by {self.parity.pop(folder)[DIFFERENCE]:.2g} nats a "
                f"token between vLLM {server.version} and the own engine ({folder.name})",
                f"at most {LARGEST_DIFFERENCE}: the same model",
                "set 'own'",
            )


def _settings(folder: Path) -> dict[str, Any]:
    settings = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    assert isinstance(settings, dict)
    return settings


def _is_readable(folder: Path | None) -> bool:
    """Whether vLLM reads it: a whole model, or plain LoRA of one rank on linear layers inside."""
    if folder is None or not (folder / "adapter_config.json").exists():
        return folder is not None
    settings = _settings(folder)
    beyond = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_pattern")
    targets, init = settings.get("target_modules"), settings.get("init_lora_weights")
    return (
        settings.get("peft_type") == "LORA"
        and settings.get("bias") in (None, "none")
        and not any(settings.get(key) for key in (*beyond, "target_parameters"))
        and isinstance(targets, list)
        and not {"lm_head", "embed_tokens"} & set(targets)
        and (not isinstance(init, str) or init == "gaussian")  # others may change the base
        and settings["r"] <= LARGEST_RANKS[-1]
    )


def _generations(answers: "Sequence[dict[str, Any]]") -> list[Generation]:
    return [answer["generation"] for answer in answers]


class _Server:
    """``vllm serve`` on one folder of weights."""

    def __init__(
        self, command: str, base: Base, folder: Path, max_tokens: int, largest_rank: int
    ) -> None:
        self.base, self.folder, self.max_tokens = base, folder, max_tokens
        self.largest_rank = next((r for r in LARGEST_RANKS if r >= largest_rank > 0), 0)
        self.loaded: set[str] = set()
        self.key = secrets.token_hex()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        words = [command, "serve", str(folder), "--served-model-name", BASE]
        words += ["--host", "127.0.0.1", "--port", str(port), "--generation-config", "vllm"]
        words += ["--dtype", str(base.model.dtype).removeprefix("torch.")]
        words += ["--max-model-len", str(max_tokens)]
        if self.largest_rank:
            words += ["--enable-lora", "--max-lora-rank", str(self.largest_rank)]
            words += ["--max-loras", str(ADAPTERS_AT_ONCE)]
        if base.device.type == "cuda":
            release_freed_memory()
            free_bytes, all_bytes = torch.cuda.mem_get_info(base.device)
            share = SHARE_OF_FREE * free_bytes / all_bytes
            words += ["--gpu-memory-utilization", f"{share:.3f}"]
        else:
            words += ["--enforce-eager"]  # compiling takes longer than the answers of a study
        environment = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_API_KEY": self.key}
        environment |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        environment |= {"VLLM_CPU_KVCACHE_SPACE": str(CPU_CACHE_GIB)}
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the server)
        self.process = subprocess.Popen(
            ["sh", "-c", WATCHED, "sh", *words],
            env=_other_python() | environment,
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal reaches this process alone
        )
        try:
            while not self._is_up():
                time.sleep(0.5)
            self.version = str(self._ask("/version")["version"])
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
    ) -> list[dict[str, Any]]:
        """The server's answers in order, each with its ``generation``."""
        lengths = [min(limits.max_new_tokens, limits.context - len(prompt)) for prompt in prompts]
        found: list[dict[str, Any]] = [{}] * len(prompts)
        for length in sorted(set(lengths)):
            places = [i for i, of_prompt in enumerate(lengths) if of_prompt == length]
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
                is_stopped = choice["finish_reason"] == "stop"
                ids = list(choice["token_ids"])
                if is_stopped and ids and ids[-1] in limits.stop_ids:
                    ids.pop()
                generation = Generation(name, prompts[i], length, ids=ids, stopped=is_stopped)
                generation.finish(limits, self.base.tokenizer)
                found[i] = choice | {"generation": generation}
        return found

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
        """Raises UserError: vLLM refuses; ServerEnded: it is not there."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        try:
            with urlopen(Request(self.address + path, data, headers)) as reply:
                text = reply.read().decode()
        except HTTPError as error:
            told = error.read().decode(errors="replace")[:300]
            if error.code >= 500:
                raise ServerEnded(f"{path}: status {error.code}, {told}") from error
            found = f"vLLM refused {path} with status {error.code}: {told}"
            expected = (
                "a release that has it, 0.10 or later, and a model and adapters that it loads"
            )
            raise UserError(WHERE, found, expected, "or set 'own'") from error
        except (OSError, HTTPException) as error:
            raise ServerEnded(self._last_line() or str(error)) from error
        try:
            read = json.loads(text)
        except ValueError:
            read = {}
        return read if isinstance(read, dict) else {}

    def _last_line(self) -> str:
        # Not by its position, which is that of the server, too.
        size = os.fstat(self.log.fileno()).st_size
        read = os.pread(self.log.fileno(), LOG_BYTES, max(0, size - LOG_BYTES))
        lines = read.decode(errors="replace").splitlines()
        errors = [line for line in lines if "Error" in line]
        return (errors or lines or [""])[-1][-300:]


def _other_python() -> dict[str, str]:
    """The environment without what would show another Python this one's packages."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
