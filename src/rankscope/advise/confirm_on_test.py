"""A recommendation held against what the test split says of forgetting.

The validation split has weighed forgetting and kept to the limit on it; by chance it may have seen
too little of it. Only the arm that was named is looked at: to go on to another by the test split
would flatter that one.
"""

from dataclasses import replace

from rankscope.advise.arms import Arm, retention_tasks
from rankscope.advise.case import Case
from rankscope.advise.comparisons import net_difference
from rankscope.advise.verdict import Verdict, changes, undecided
from rankscope.advise.wording import settings
from rankscope.formatting import amount, difference
from rankscope.records import ArmSummary, Estimate


def worth(case: Case, arm: Arm) -> Estimate | None:
    """Gain and forgetting in one, by the study's weights, test split.

    None where forgetting has no weight or was not measured: then the gain says it all.
    """
    shares = case.objective.weights
    if not shares[1] or arm.summary.forgetting is None:
        return None
    return net_difference(case.study, arm, None, shares)


def is_forgetting_unweighed(case: Case, arm: ArmSummary) -> bool:
    """Whether there is clear forgetting that the study weighs, can't add up and sets no limit."""
    forgot, limit = arm.forgetting, case.objective.max_forgetting
    is_clear = forgot is not None and (forgot.low or 0.0) > 0
    return case.is_forgetting_apart and limit is None and is_clear


def is_unmeasured(case: Case, arm: ArmSummary) -> bool:
    """Whether forgetting counts in this study, and is not known of the arm for want of scores."""
    counts = case.objective.retention > 0 or case.objective.max_forgetting is not None
    return counts and arm.forgetting is None and bool(retention_tasks(case.study, case.task))


def checked(case: Case, verdict: Verdict) -> Verdict:
    """The recommendation; less firm, or withdrawn, where the test split speaks against it."""
    if verdict.subject is None or verdict.decision not in ("use", "use_full"):
        return verdict
    arm, net = verdict.subject.summary, worth(case, verdict.subject)
    limit, forgot = case.objective.max_forgetting, arm.forgetting
    if limit is not None and forgot is not None and forgot.value > limit:
        return undecided(
            f"No arm can be named for {case.task}: {settings(arm)}, the choice of the validation "
            f"split, loses {amount(forgot.value, case.retention_unit)} of what the base knew on "
            f"the test split, where {amount(limit, case.retention_unit)} are allowed.",
            verdict.subject,
        )
    if net is not None and net.value <= 0:
        if net.high is not None and net.high < 0:
            return Verdict(
                "do_not_fine_tune",
                "tentative",
                f"By this study's weights ({case.objective.formula}) {settings(arm)}, the choice "
                f"of the validation split, is not worth it on {case.task}: {changes(case, arm)}.",
                verdict.subject,
            )
        return undecided(
            f"The data cannot tell whether {settings(arm)} is worth what it forgets on "
            f"{case.task}: {changes(case, arm)}, by the study's weights "
            f"{difference(net.value, case.net_unit)} in all.",
            verdict.subject,
        )
    high = None if forgot is None else forgot.high
    kept = limit is None or (high is not None and high <= limit)
    worth_it = net is None or (net.low or 0.0) > 0
    known = not is_unmeasured(case, arm) and not is_forgetting_unweighed(case, arm)
    return verdict if kept and worth_it and known else replace(verdict, confidence="tentative")
