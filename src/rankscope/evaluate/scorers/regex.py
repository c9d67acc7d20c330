"""Generated answers whose compared part is found by a regular expression."""

from typing import TYPE_CHECKING

from rankscope.config.patterns import matched_parts
from rankscope.errors import UserError
from rankscope.evaluate.scorers.generation import EqualAnswerScorer

if TYPE_CHECKING:
    from regex import Pattern

    from rankscope.data.registry import TaskSpec


class RegexScorer(EqualAnswerScorer):
    """Right if the answer's last match of the task's ``extract`` equals the gold answer exactly.

    The match is its group, or all of it. The gold answer is reduced to its own last match, if it
    has one.
    """

    name = "regex"
    summary = "greedy generation; the last match of `extract` equals the gold answer"
    metrics = {"exact_match": "", "answered": "", "stopped": ""}

    def check_task(self, spec: "TaskSpec") -> None:
        super().check_task(spec)
        if spec.extract is None:
            expected = 'a regular expression of the part to compare, such as "answer is (\\\\w+)"'
            raise UserError(f"task {spec.name!r}: scorer 'regex'", "no 'extract'", expected)

    def part(self, pattern: "Pattern[str] | None", text: str) -> str | None:
        assert pattern is not None  # check_task
        parts = [part for part in matched_parts(pattern, text) if part is not None]
        return parts[-1] if parts else None

    def comparable(self, text: str) -> str:
        return text.strip()
