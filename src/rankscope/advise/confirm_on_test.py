"""Confirm a recommendation by the forgetting that the test split shows.

The validation split chose the arm with forgetting weighed and limited, but may have seen too little
forgetting by chance. Only the recommended arm is looked at: replacing it by another one that the
test split favors would overrate that arm.
"""

from dataclasses import replace

from rankscope.advise.messages import Measured
from rankscope.advise.task_results import TaskResults
from rankscope.advise.verdict import Verdict, conclude


def confirm_on_test(results: TaskResults, verdict: Verdict) -> Verdict:
    """Keep the recommendation, make it tentative, or withdraw it."""
    subject = verdict.subject
    if subject is None:
        return verdict
    arm, net = subject.summary, results.net_gain(subject)
    limit, forgetting = results.objective.max_forgetting, arm.forgetting
    if limit is not None and forgetting is not None and forgetting.value > limit:
        fields = {"forgetting": results.retained(forgetting), "limit": results.retained(limit)}
        return conclude(results, "not_decided", "none", "over_limit_on_test", subject, **fields)
    if net is not None and net.value <= 0:
        if net.high is not None and net.high < 0:
            name = "not_worth_it_on_test"
            return conclude(results, "do_not_fine_tune", "tentative", name, subject)
        shown = Measured(net, results.net_unit)
        return conclude(results, "not_decided", "none", "worth_unclear", subject, net=shown)
    high = None if forgetting is None else forgetting.high
    keeps_limit = limit is None or (high is not None and high <= limit)
    is_worth_it = net is None or (net.low or 0.0) > 0
    is_counted = not (results.lacks_retention_scores(arm) or results.has_uncounted_forgetting(arm))
    if keeps_limit and is_worth_it and is_counted:
        return verdict
    return replace(verdict, confidence="tentative")
