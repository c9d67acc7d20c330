"""Generated answers judged as mathematics by the library math-verify: 1/2 is 0.5.

The library ends a long comparison by a signal, which needs the main thread and cannot interrupt the
arithmetic of huge integers. So a separate process compares, and the kernel ends it after
``SECONDS`` of processor time. A busy machine thus changes no score.
"""

import atexit
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import suppress
from importlib import metadata
from typing import TYPE_CHECKING, Any

from rankscope.errors import UserError
from rankscope.evaluate.scorers.generation import GenerationScorer, Judgment, normalized_answer

if TYPE_CHECKING:
    from regex import Pattern

    from rankscope.data.encode import Encoder
    from rankscope.data.items import Item
    from rankscope.data.registry import TaskSpec

SECONDS = 3  # Processor time for one answer; usual ones take milliseconds
WORD_OR_MARK = re.compile(r"\$|\\boxed|\\\(|\\\[|(?:^|\s)[A-Za-z]{2,}(?=[\s.,;:!?]|$)")
"""Matches a mark of LaTeX, or a word between blanks; letters beside anything else are variables."""
PROCESS = "from rankscope.evaluate.scorers.math_verify import _answer_requests; _answer_requests()"


class MathVerifyScorer(GenerationScorer):
    """Right if math-verify finds the answer equal to the gold answer, or if their texts are equal.

    In a text with words, the library chooses the expression: a boxed one first.
    """

    name = "math_verify"
    summary = "greedy generation; equal to the gold answer as mathematics, by math-verify"
    metrics = {"math_verify": "", "answered": "", "stopped": ""}

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        atexit.register(self.close)

    def close(self) -> None:
        """End the process that compares; another comparison begins a new one."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(BrokenPipeError), process:  # closes its pipes and waits for its end
                process.kill()

    def check_task(self, spec: "TaskSpec") -> None:
        super().check_task(spec)
        if importlib.util.find_spec("math_verify") is None:
            place = f"task {spec.name!r}, scorer {self.name!r}"
            raise UserError(
                place, "no package math-verify", "it installed", "pip install 'rankscope[math]'"
            )

    def encoder_settings(self, encoder: "Encoder") -> dict[str, Any]:
        """Name the library's release, which may judge differently from another."""
        return {"math-verify": metadata.version("math-verify")}

    def judge_answer(self, item: "Item", text: str, pattern: "Pattern[str] | None") -> Judgment:
        gold = item.reference or item.completion
        gold = (self.part(pattern, gold) if pattern else None) or gold
        part = self.part(pattern, text)
        if part is None or normalized_answer(part) == normalized_answer(gold):
            return float(part is not None), gold, part
        is_equal, found = self._compare(gold, part)
        return float(is_equal), gold, found

    def _compare(self, gold: str, answer: str) -> tuple[bool, str | None]:
        """Return whether both are equal, and the compared part of the answer.

        The part is None if nothing was found, or if the comparison took too much time or memory.
        Raises UserError: the library does not run.
        """
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", PROCESS],  # -P: as of ``run.workers.starter``
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    encoding="ascii",
                    start_new_session=True,  # Ctrl-C in the terminal reaches this process alone
                )
            requests, replies = self._process.stdin, self._process.stdout
            assert requests is not None
            assert replies is not None
            try:
                with suppress(BrokenPipeError):  # it has ended
                    requests.write(json.dumps([gold, answer]) + "\n")
                    requests.flush()
                if reply := replies.readline():
                    is_equal, found = json.loads(reply)
                    return is_equal, found
                code = self._process.wait()
            except BaseException:  # its reply would be taken for the next one's
                self.close()
                raise
            self.close()
        if code < 0:  # A signal: from the limit on time, or from a system short of memory
            return False, None
        found, do = f"a process that ended with {code}", "python -c 'import math_verify' shows why"
        raise UserError(f"scorer {self.name!r}", found, "math-verify to run", do)


def _as_expression(text: str) -> str:
    """Wrap a text without words in marks of LaTeX, which math-verify needs; keep other texts."""
    text = text.strip()
    return text if WORD_OR_MARK.search(text) else f"${text}$"


def _answer_requests() -> None:
    """Answer requests to compare, until standard input is closed.

    Each request is a pair of gold answer and answer. The reply says whether they are equal, and
    which part of the answer was compared.
    """
    import logging
    import resource

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # nothing else may print there
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    for line in sys.stdin:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        spent = int(usage.ru_utime + usage.ru_stime)
        resource.setrlimit(resource.RLIMIT_CPU, (spent + SECONDS, most))
        try:
            gold, answer = (
                parse(_as_expression(t), parsing_timeout=None) for t in json.loads(line)
            )
            is_equal = bool(gold and answer and verify(gold, answer, timeout_seconds=None))
            reply = [is_equal, str(answer[-1]) if answer else None]
        except Exception:  # an answer may hold anything, such as numbers too long to be printed
            reply = [False, None]
        print(json.dumps(reply), file=replies, flush=True)
