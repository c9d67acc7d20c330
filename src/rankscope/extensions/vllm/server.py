"""``vllm serve`` in a process of its own, and its HTTP interface.

The command ``vllm`` may be of another environment than this one, because it needs other versions
of libraries. The server ends with the process that started it, however that process ends.
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
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import torch

from rankscope.device import dtype_name, release_freed_memory, visible_gpus
from rankscope.errors import first_line
from rankscope.evaluate.continuous_batching import Generation, GenerationLimits
from rankscope.extensions.vllm import Refused, ServerEnded
from rankscope.extensions.vllm.serving import RANKS
from rankscope.models.base import Base
from rankscope.records import BASE

ADAPTERS_AT_ONCE = 8  # In a batch of the server; others are read again
PROMPTS_AT_ONCE = 512  # In a request: releases refuse more than 1,024
SHARE_OF_FREE = 0.5  # Of the device's free memory, for the server; log p is computed in the rest
MAX_START_SECONDS = 1800
MAX_REPLY_SECONDS, SLOWEST = 1800, 100  # And the tokens a second of the slowest server
WATCHED = """
exec 3<&0
"$@" </dev/null 3<&- &
server=$!
(read -r _ <&3; kill $server; sleep 30; kill -9 0) &
wait $server
"""
"""Shell script that runs a command until the input of the shell ends. That happens when the process
at its other end closes it or dies."""


@dataclass(slots=True)
class VllmAnswer(Generation):
    all_ids: list[int] = field(default_factory=list)  # With the token that ended it
    logprob: float = 0.0


def find_command() -> str | None:
    beside = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    return shutil.which("vllm", path=beside)


def serve_options(
    max_tokens: int, largest_rank: int, dtype: torch.dtype, gpu_memory: tuple[int, int] | None
) -> list[str]:
    """Return the options of ``vllm serve``.

    ``largest_rank`` is one of ``RANKS``, or 0 without adapters. ``gpu_memory`` holds the free and
    all bytes of the GPU; None is a CPU.
    """
    words = ["--served-model-name", BASE, "--generation-config", "vllm"]
    words += ["--max-model-len", str(max_tokens), "--dtype", dtype_name(dtype)]
    if largest_rank:
        words += ["--enable-lora", "--max-lora-rank", str(largest_rank)]
        words += ["--max-loras", str(ADAPTERS_AT_ONCE)]
    if gpu_memory is None:
        return [*words, "--enforce-eager"]  # compiling takes longer than the answers of a study
    share = SHARE_OF_FREE * gpu_memory[0] / gpu_memory[1]
    return [*words, "--gpu-memory-utilization", f"{share:.3f}"]


class Server:
    """Runs ``vllm serve`` on one folder of weights. Raises ServerEnded: it does not start."""

    def __init__(self, base: Base, folder: Path, max_tokens: int, largest_rank: int) -> None:
        self.base, self.folder, self.max_tokens = base, folder, max_tokens
        self.largest_rank = next((r for r in RANKS if r >= largest_rank > 0), 0)
        self.loaded: set[str] = set()
        self.key = secrets.token_hex()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        environment = {
            **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            "HF_HUB_OFFLINE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_API_KEY": self.key,
            "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
            "VLLM_MAX_STOP_STRINGS": "64",
            "VLLM_NO_USAGE_STATS": "1",
        }
        gpu_memory = None
        if base.device.type == "cuda":
            release_freed_memory()
            gpu_memory = torch.cuda.mem_get_info(base.device)
            environment["CUDA_VISIBLE_DEVICES"] = visible_gpus()[base.device.index or 0]
        words = [find_command() or "vllm", "serve", str(folder), "--host", "127.0.0.1"]
        words += ["--port", str(port), "--tokenizer", base.tokenizer.name_or_path]
        words += serve_options(max_tokens, self.largest_rank, base.model.dtype, gpu_memory)
        self.log = tempfile.NamedTemporaryFile()  # noqa: SIM115  (closed with the server)
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
                time.sleep(0.1)
        except BaseException:
            self.close()
            raise

    def suits(self, folder: Path, max_tokens: int, rank: int) -> bool:
        fits = max_tokens <= self.max_tokens and rank <= self.largest_rank
        return folder == self.folder and fits

    def load(self, name: str, folder: Path) -> None:
        """Load an adapter, unless it is loaded already."""
        if name not in self.loaded:
            body = {"lora_name": name, "lora_path": str(folder.resolve())}
            self._ask("/v1/load_lora_adapter", body)
            self.loaded.add(name)

    def answers(
        self, name: str | None, prompts: Sequence[Sequence[int]], limits: GenerationLimits
    ) -> list[VllmAnswer]:
        """Return the answers in the order of the prompts. Raises Refused and ServerEnded."""
        lengths = [min(limits.max_new_tokens, limits.context - len(prompt)) for prompt in prompts]
        answers = [VllmAnswer(name, *each) for each in zip(prompts, lengths, strict=True)]
        for length in set(lengths):
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
                seconds = MAX_REPLY_SECONDS + len(places) * length / SLOWEST
                reply = self._ask("/v1/completions", body, seconds)
                try:
                    choices = {choice["index"]: choice for choice in reply["choices"]}
                    for number, i in enumerate(places):
                        answer, choice = answers[i], choices[number]
                        answer.all_ids = list(choice["token_ids"])
                        answer.logprob = sum(choice["logprobs"]["token_logprobs"])
                        answer.stopped = choice["finish_reason"] == "stop"
                        ends = answer.stopped and answer.all_ids[-1] in limits.stop_ids
                        answer.ids = answer.all_ids[: -1 if ends else None]
                        answer.finish(limits, self.base.tokenizer)
                except (LookupError, TypeError) as error:
                    raise Refused(f"no reply as of vLLM 0.10.2 or later: {error!r}") from error
        return answers

    def close(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.process.communicate(timeout=30)  # closes its input, see WATCHED
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, 9)
        self.process.wait()
        self.log.close()

    def _is_up(self) -> bool:
        try:
            self._ask("/health", seconds=60)
        except ServerEnded:
            if self.process.poll() is not None:
                raise
            return False
        return True

    def _ask(self, path: str, body: Any = None, seconds: float = MAX_REPLY_SECONDS) -> Any:
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        try:
            with self.open(Request(self.address + path, data, headers), timeout=seconds) as reply:
                text = reply.read().decode()
        except HTTPError as error:
            told = f"{path}: status {error.code}, {error.read().decode(errors='replace')[:300]}"
            if path == "/health" or (error.code >= 500 and not self._is_up()):
                raise ServerEnded(told) from error
            raise Refused(f"vLLM refused {told}") from error
        except TimeoutError as error:
            raise ServerEnded(f"{path}: no reply in {seconds:.0f} s") from error
        except (OSError, HTTPException) as error:
            raise ServerEnded(self._last_line() or first_line(error)) from error
        # Of /health nothing, of an adapter a sentence.
        return json.loads(text) if text.startswith("{") else {}

    def _last_line(self) -> str:
        end = Path(self.log.name).read_bytes()[-(2**16) :]  # enough for the reason of its end
        lines = end.decode(errors="replace").splitlines()
        errors = [line for line in lines if "Error" in line]
        return (errors or lines or [""])[-1][-300:]
