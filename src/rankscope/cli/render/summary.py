"""What ``run`` and ``report`` print: one row per arm, and the answer in words."""

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from rankscope.cli.terminal import print_line
from rankscope.formatting import MAX_NAME, UNKNOWN, clock, compact, number, plus_minus, safe_text
from rankscope.records import LEFT_OUT, ArmSummary, Recommendation, StudyRecords
from rankscope.report.answer import NEXT_STEPS_TITLE
from rankscope.report.page_limit import limited, not_shown
from rankscope.report.study_view import StudyView

CHOSEN = "\N{BLACK RIGHT-POINTING SMALL TRIANGLE}"


def summary_table(study: StudyRecords, recommendation: Recommendation) -> Table:
    """One row per arm, the base first, the recommended arm marked.

    Scores are of the test split, in percent or nats per token; differences in points; ``±`` is
    half the 95 % interval, ``±?`` an unknown one; seeds ``2/3``: one of three trials failed. The
    gain is that by which arms are compared: net of forgetting, if forgetting counts.
    """
    whole = StudyView(study, recommendation)
    view = limited(whole)
    all_arms = [arm for task in view.training_tasks for arm in view.arms(task)]
    gain = "net gain" if any(arm.net_gain for arm in all_arms) else "gain"
    table = Table(
        title=escape(safe_text(study.name, MAX_NAME)),
        title_justify="left",
        caption="\n".join([_caption(view, gain), *not_shown(whole, view)]),
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=0,
    )
    table.add_column("", no_wrap=True)
    # In eighty columns, an arm's name is the last thing to be cut.
    table.add_column("arm", overflow="fold", min_width=15)
    for heading in ("seeds", "in-domain", "retention", gain, "params", "time"):
        table.add_column(heading, justify="right")
    for position, task in enumerate(view.training_tasks):
        if position:
            table.add_section()
        if len(view.training_tasks) > 1:
            table.add_row("", f"[bold]{escape(safe_text(task, MAX_NAME))}[/bold]")
        table.add_row(*_base_row(view, task))
        chosen = view.advice(task).chosen
        for arm in view.arms(task):
            style = "bold green" if arm == chosen else ""
            row = _arm_row(view, arm, arm == chosen, shows_net_gain=gain == "net gain")
            table.add_row(*row, style=style)
        if not view.arms(task):
            table.add_row("", "no arm has finished")
    return table


def _caption(view: StudyView, gain: str) -> str:
    """Units of the columns; tasks of a study may differ."""
    tasks = view.training_tasks
    units = {
        "in-domain": {view.unit(task).score for task in tasks},
        "change of retention": {view.retention_unit(task).difference for task in tasks},
        gain: {view.net_unit(task).difference for task in tasks},
    }
    columns = [f"{name} in {' or '.join(sorted(found))}" for name, found in units.items() if found]
    if gain == "net gain":
        formula = view.study.config.objective.net_formula
        columns[-1] += f": {formula}, by which arms are compared"
    columns += ["± half the 95 % interval; time per trial"]
    without = [arm for task in tasks for arm in view.arms(task) if arm.score is None]
    if without:
        statuses = {trial.status for arm in without for trial in view.trials(arm)}
        by_choice = view.study.config.strategy == "adaptive" and statuses <= {"done", *LEFT_OUT}
        reason = ", as only finalists are" if by_choice else ""
        columns += [f"{UNKNOWN} not scored on test items{reason}"]
    return "; ".join(columns)


def _base_row(view: StudyView, task: str) -> list[str]:
    base, unit = view.base(task), view.unit(task)
    score = number(base.score * unit.scale, unit.digits) if base else "not scored"
    return ["", "base", "", score, "", "", "", ""]


def _arm_row(view: StudyView, arm: ArmSummary, chosen: bool, *, shows_net_gain: bool) -> list[str]:
    unit = view.unit(arm.task)
    gain = arm.net_gain if shows_net_gain else arm.gain
    seeds = f"[red]{arm.seeds}/{arm.seeds + arm.failed}[/red]" if arm.failed else str(arm.seeds)
    return [
        CHOSEN if chosen else "",
        escape(safe_text(arm.label, MAX_NAME)),
        seeds,
        plus_minus(arm.score, unit),
        plus_minus(view.retention_change(arm), view.retention_unit(arm.task), sign=True),
        plus_minus(gain, view.net_unit(arm.task), sign=True),
        compact(arm.trainable_parameters) if arm.trainable_parameters else UNKNOWN,
        clock(arm.seconds),
    ]


def print_answer(recommendation: Recommendation, *, with_reasons: bool) -> None:
    """Print the verdict for each training task and what weakens it; if asked for, the claims, the
    reasons and the next steps too."""
    for advice in recommendation.advice:
        print_line(f"{advice.task}: {advice.verdict}", "bold")
        lines = [advice.explanation]
        if with_reasons and advice.confidence != "none":
            lines += [f"- {c.text}" for c in (advice.better_than_base, advice.best_choice)]
        if with_reasons:
            lines += [f"- {reason.text}" for reason in advice.reasons]
        weak = [check for check in advice.checks if check.status != "fine"]
        if weak and with_reasons:
            lines.append("What weakens this answer:")
            lines += [f"- {check.value}: {check.text}" for check in weak]
        elif weak:
            lines.append(f"Weak points: {'; '.join(check.value for check in weak)}.")
        if with_reasons and advice.next_steps:
            lines.append(f"{NEXT_STEPS_TITLE}:")
            lines += [f"- {step.text}" for step in advice.next_steps]
        print_line("\n".join(f"  {line}" for line in lines))
