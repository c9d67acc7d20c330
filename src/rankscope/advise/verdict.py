"""What is decided on one training task, and how its headline describes an arm."""

from dataclasses import dataclass

from rankscope.advise.arms import Arm
from rankscope.advise.headlines import HEADLINES, clause
from rankscope.advise.messages import Field, arm_name
from rankscope.advise.task_results import TaskResults
from rankscope.records import ArmSummary, Confidence, Decision


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision before its reasons are written."""

    decision: Decision
    confidence: Confidence
    headline: str
    subject: Arm | None
    """The arm that the reasons describe: the recommended one, or the closest to it."""

    @property
    def recommends_subject(self) -> bool:
        return self.decision in ("use", "use_full")


def conclude(
    results: TaskResults,
    decision: Decision,
    confidence: Confidence,
    headline: str,
    subject: Arm | None = None,
    /,
    **fields: Field,
) -> Verdict:
    """A verdict with a headline of the catalogue; task, formula and arm are filled in here."""
    fields |= {"task": results.task, "formula": results.objective.formula}
    if subject is not None:
        arm = subject.summary
        fields |= {"arm": arm_name(arm), "changes": describe_changes(results, arm)}
        fields |= {"result": describe_result(results, arm)}
    return Verdict(decision, confidence, HEADLINES[headline].format_map(fields), subject)


def firm_if(condition: bool) -> Confidence:
    return "firm" if condition else "tentative"


def describe_changes(results: TaskResults, arm: ArmSummary) -> str:
    """Changes of score and retention against the base, as far as they are known."""
    parts = []
    if arm.gain is not None:
        parts.append(clause("gain", gain=results.score(arm.gain)))
    if arm.forgetting is not None:
        parts.append(clause("retention", forgetting=results.retained(arm.forgetting)))
    return " and ".join(parts) or "not scored on the test split"


def describe_result(results: TaskResults, arm: ArmSummary) -> str:
    """Score, gain and change of retention in one clause."""
    if arm.score is None or arm.gain is None:
        return "its test score is missing"
    text = clause("score", score=results.score(arm.score), gain=results.score(arm.gain))
    if arm.forgetting is None:
        return text + clause("retention_unknown")
    return f"{text}, and {clause('retention', forgetting=results.retained(arm.forgetting))}"
