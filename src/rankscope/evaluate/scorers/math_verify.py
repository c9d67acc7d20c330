"""Generated answers judged as mathematics by the library math-verify: 1/2 is 0.5.

The library ends a comparison that takes too long by a signal, which needs the main thread and
cannot interrupt the arithmetic of huge integers. So a process of its own compares, and the kernel
ends it after ``SECONDS`` of processor time: a busy machine changes no score.
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

SECONDS = 3  # Of processor time for one answer; usual ones take milliseconds
WORD_OR_MARK = re.compile(r"\$|\\boxed|\\\(|\\\[|(?:^|\s)[A-Za-z]{2,}(?=[\s.,;:!?]|$)")
"""A mark of LaTeX, or a word between blanks; letters beside anything else are variables."""
PROCESS = "from rankscope.evaluate.scorers.math_verify import answer_requests; answer_requests()"


class MathVerifyScorer(GenerationScorer):
    """Right if math-verify finds the answer equal to the gold answer, or if their texts are equal.

    Of a text with words, the library chooses the expression: a boxed one first.
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
        """Another release of the library may judge otherwise."""
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
        """Whether they are equal, and what was compared of the answer: None if nothing was found or
        the comparison took too much time or memory. Raises UserError: the library does not run."""
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
        if code < 0:  # A signal: of the limit on time, or of a system that lacks memory
            return False, None
        found, do = f"a process that ended with {code}", "python -c 'import math_verify' shows why"
        raise UserError(f"scorer {self.name!r}", found, "math-verify to run", do)


def as_expression(text: str) -> str:
    """A text without words as LaTeX, which math-verify reads only between marks; others as is."""
    text = text.strip()
    return text if WORD_OR_MARK.search(text) else f"${text}$"


def answer_requests() -> None:
    """Read pairs of gold answer and answer from standard input until its other end is closed, and
    print for each whether they are equal, and what was compared of the answer."""
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
            gold, answer = (parse(as_expression(t), parsing_timeout=None) for t in json.loads(line))
            is_equal = bool(gold and answer and verify(gold, answer, timeout_seconds=None))
            reply = [is_equal, str(answer[-1]) if answer else None]
        except Exception:  # an answer may hold anything, such as numbers too long to be printed
            reply = [False, None]
        print(json.dumps(reply), file=replies, flush=True)
