"""What is decided on one training task, and when it is firm."""

from dataclasses import dataclass
from typing import Literal

from rankscope.advise.arms import Arm
from rankscope.advise.case import Case
from rankscope.advise.caveats import FIRM_SEEDS
from rankscope.formatting import difference
from rankscope.records import ArmSummary, Decision

Confidence = Literal["firm", "tentative", "none"]

CONTAMINATION_SHARE = 0.01
"""Share of test rows seen in training above which a score is not trusted to be firm."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision before its reasons are written."""

    decision: Decision
    confidence: Confidence
    headline: str
    subject: Arm | None
    """The arm that the reasons speak of: the one recommended, or the nearest to it."""


def undecided(headline: str, subject: Arm | None = None) -> Verdict:
    """Nothing is recommended, since the data do not say."""
    return Verdict("not_decided", "none", headline, subject)


def is_firm(case: Case, arm: ArmSummary) -> bool:
    """Three seeds, none failed, none still to run, and test rows not seen in training."""
    record = case.record
    contaminated = record is not None and (
        sum(record.contamination.values()) > CONTAMINATION_SHARE * record.rows.get("test", 0)
    )
    return arm.seeds >= FIRM_SEEDS and arm.failed == 0 and not contaminated and not case.waiting


def changes(case: Case, arm: ArmSummary) -> str:
    """Signed changes of score and retention against the base, as far as they are known."""
    parts = []
    if arm.gain is not None:
        parts.append(f"{difference(arm.gain.value, case.unit)} against the base")
    if arm.forgetting is not None:
        change = difference(-arm.forgetting.value, case.retention_unit)
        parts.append(f"retention changes by {change}")
    return " and ".join(parts) or "not scored on the test split"
