"""What is decided on one training task, and the clauses that describe an arm's result."""

from dataclasses import dataclass

from rankscope.advise.arms import Arm
from rankscope.advise.headlines import clause, headline
from rankscope.advise.messages import Field, Measured
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


def not_decided(name: str, subject: Arm | None = None, **fields: Field) -> Verdict:
    """Leave the question open, with the headline ``name`` of the catalogue."""
    return Verdict("not_decided", "none", headline(name, **fields), subject)


def confidence(firm: bool) -> Confidence:
    return "firm" if firm else "tentative"


def describe_changes(results: TaskResults, arm: ArmSummary) -> str:
    """Changes of score and retention against the base, as far as they are known."""
    parts = []
    if arm.gain is not None:
        parts.append(clause("gain", gain=Measured(arm.gain, results.unit)))
    if arm.forgetting is not None:
        forgetting = Measured(arm.forgetting, results.retention_unit)
        parts.append(clause("retention", forgetting=forgetting))
    return " and ".join(parts) or "not scored on the test split"


def describe_result(results: TaskResults, arm: ArmSummary) -> str:
    """Score, gain and change of retention in one clause."""
    if arm.score is None or arm.gain is None:
        return "its test score is missing"
    score, gain = Measured(arm.score, results.unit), Measured(arm.gain, results.unit)
    text = clause("score", score=score, gain=gain)
    if arm.forgetting is None:
        return text + clause("retention_unknown")
    forgetting = Measured(arm.forgetting, results.retention_unit)
    return f"{text}, and {clause('retention', forgetting=forgetting)}"
