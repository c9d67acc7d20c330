"""Generated answers whose text is compared."""

from rankscope.evaluate.scorers.generation import EqualAnswerScorer, normalized_answer


class ExactMatchScorer(EqualAnswerScorer):
    """Right if the answer, or the part that the task's ``extract`` matches, equals the gold
    answer."""

    name = "exact_match"
    summary = "greedy generation; equal texts (case, spacing, final full stop aside)"
    metrics = {"exact_match": "", "stopped": ""}

    def comparable(self, text: str) -> str:
        return normalized_answer(text)
