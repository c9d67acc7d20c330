"""Confirm a recommendation by the forgetting that the test split shows.

The validation split chose the arm with forgetting weighed and limited, but may have seen too little
forgetting by chance. Only the recommended arm is looked at: replacing it by another one that the
test split favors would overrate that arm.
"""

from dataclasses import replace

from rankscope.advise.headlines import headline
from rankscope.advise.messages import Measured, arm_name
from rankscope.advise.task_results import TaskResults
from rankscope.advise.verdict import Verdict, describe_changes, not_decided


def confirm_on_test(results: TaskResults, verdict: Verdict) -> Verdict:
    """Keep the recommendation, make it tentative, or withdraw it."""
    subject = verdict.subject
    if subject is None:
        return verdict
    arm, net = subject.summary, results.net_gain(subject)
    limit, forgetting = results.objective.max_forgetting, arm.forgetting
    fields = {
        "task": results.task,
        "arm": arm_name(arm),
        "changes": describe_changes(results, arm),
        "formula": results.objective.formula,
    }
    if limit is not None and forgetting is not None and forgetting.value > limit:
        unit = results.retention_unit
        over = {"forgetting": Measured(forgetting, unit), "limit": Measured(limit, unit)}
        return not_decided("over_limit_on_test", subject, **fields, **over)
    if net is not None and net.value <= 0:
        if net.high is not None and net.high < 0:
            text = headline("not_worth_it_on_test", **fields)
            return Verdict("do_not_fine_tune", "tentative", text, subject)
        shown = Measured(net, results.net_unit)
        return not_decided("worth_unclear", subject, **fields, net=shown)
    high = None if forgetting is None else forgetting.high
    keeps_limit = limit is None or (high is not None and high <= limit)
    is_worth_it = net is None or (net.low or 0.0) > 0
    is_counted = not results.lacks_retention_scores(arm) and not results.has_uncounted_forgetting(
        arm
    )
    if keeps_limit and is_worth_it and is_counted:
        return verdict
    return replace(verdict, confidence="tentative")
