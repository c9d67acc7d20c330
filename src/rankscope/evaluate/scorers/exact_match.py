"""Generated answers whose text is compared."""

from rankscope.evaluate.scorers.generation import EqualAnswerScorer, normalized_answer


class ExactMatchScorer(EqualAnswerScorer):
    """Compares the answer, or what the task's ``extract`` matches in it, with the gold answer.

    Case, spacing and a final full stop do not count.
    """

    name = "exact_match"
    summary = "greedy generation; equal texts (case, spacing, final full stop aside)"
    metrics = {"exact_match": "", "stopped": ""}

    def comparable(self, text: str) -> str:
        return normalized_answer(text)
