"""Output of ``status``: a row per trial, failures with their reasons, and the next command."""

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

from rankscope.cli.terminal import folded, terminal_table
from rankscope.formatting import clock, count, duration, rough_duration
from rankscope.records import (
    FAILED,
    WAITING,
    Recommendation,
    StudyRecords,
    TaskAdvice,
    TrialRecords,
)
from rankscope.report.columns import Column
from rankscope.store import running_process

MAX_FAILURES = 20  # Most reasons printed


def status_data(study: StudyRecords, folder: Path) -> dict[str, Any]:
    """Return the state of a study, then of each of its trials; unknown values are left out."""
    statuses, process = Counter(trial.status for trial in study.trials), running_process(folder)
    failed, out = sorted(statuses.keys() & FAILED), str(folder)
    run = ["rankscope", "run", str(folder / "study.resolved.yaml"), "--out", out]
    state, step = "done", ["rankscope", "report", out]
    if process:
        state, step = "running", ["rankscope", "status", out]
    elif statuses.keys() & WAITING:
        state, step = "unfinished", run
    elif failed:
        state, step = "failed", [*run, "--retry", ",".join(failed)]
    advice = _stored_advice(folder) if state == "done" else ()
    export = _export_steps(study, folder, advice)
    then = [*export, ["rankscope", "compare", out, "ANOTHER"]]
    step = ["rankscope", "open", out] if advice else step
    evaluations = Counter(trial_id for trial_id, _, _ in study.evals)
    return {
        "study": study.name,
        "folder": out,
        "model": study.model.label,
        "state": state,
        "trials_by_status": dict(statuses),
        "evaluations": len(study.evals),
        "seconds": study.total_seconds,
        "answer": [f"{of.task}: {of.verdict} {of.summary}" for of in advice],
        "page": folder / "report.html" if advice else None,
        "now": _last_event(folder) if process else None,
        "next": shlex.join(step),
        "then": [shlex.join(words) for words in then] if state == "done" else [],
        "trials": [_trial_data(t, evaluations[t.spec.trial_id]) for t in study.trials],
    }


def _stored_advice(folder: Path) -> tuple[TaskAdvice, ...]:
    try:
        text = (folder / "recommendation.json").read_text(encoding="utf-8")
        return Recommendation.model_validate_json(text).advice
    except (OSError, ValueError):  # not written yet, or altered, as ``verify`` says
        return ()


def _export_steps(
    study: StudyRecords, folder: Path, advice: Sequence[TaskAdvice]
) -> Iterator[list[str]]:
    """Yield how to export the recommended model, if the study has its weights."""
    for task in advice if study.config.arms else ():  # imported scores have no arms
        if task.chosen is not None and task.chosen.trains:
            name = [task.task] * (len(advice) > 1)
            option = ["--task", *name] if name else []
            out = "-".join([str(folder), *name, "model" if task.chosen.is_full else "adapter"])
            yield ["rankscope", "export", str(folder), "--best", *option, "--out", out]


def _last_event(folder: Path) -> dict[str, Any] | None:
    try:
        *_, last = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        event: dict[str, Any] = json.loads(last)
    except (OSError, ValueError):  # no log, or a line that is being written
        return None
    return event


def _event_text(event: Mapping[str, Any]) -> str:
    """Write an event, such as ``group 1/2 train: 40 of 160, loss 2.134, 3 min left``."""
    what = str(event.get("name") or event.get("text") or event.get("event"))
    parts = [f"{what}: {event['done']} of {event.get('total', '?')}" if "done" in event else what]
    if event.get("loss_low") is not None:
        parts.append(f"loss {event['loss_low']:.3f}")
    for name, of in (("seconds_left", ""), ("study_seconds_left", " of the study")):
        if event.get(name) is not None:
            parts.append(f"{rough_duration(event[name])} left{of}")
    return ", ".join(parts)


def _trial_data(trial: TrialRecords, evaluations: int) -> dict[str, Any]:
    data: dict[str, Any] = trial.spec.model_dump(mode="json", exclude_none=True)
    del data["schema_version"]
    data |= {"arm": trial.spec.arm_label, "status": trial.status, "evaluations": evaluations}
    if (train := trial.train) is not None:
        loss = train.losses[-1].loss if train.losses else None
        data |= {"steps": train.steps, "seconds": train.seconds, "loss": loss}
    if trial.failure:
        data["failure" if trial.status in FAILED else "reason"] = trial.failure
    if trial.curve:
        data["curve"] = [point.model_dump(mode="json") for point in trial.curve]
    return data


_COLUMNS = {
    "trial_id": Column("trial"),
    "seed": Column(text=str),
    "loss": Column(digits=3),
    "seconds": Column("time", text=clock),
    "evaluations": Column("scores"),
}


def status_table(data: Mapping[str, Any]) -> RenderableType:
    """Show a row per trial, then the reasons of failures, counts and the next command."""
    trials = data["trials"]
    task = ["task"] if len({trial["task"] for trial in trials}) > 1 else []
    names = ("trial_id", *task, "arm", "seed", "status", "loss", "seconds", "evaluations")
    styles = ["red" if trial["status"] in FAILED else "" for trial in trials]
    failed = [f"{t['trial_id']}: {t['status']}: {t['failure']}" for t in trials if "failure" in t]
    if (more := len(failed) - MAX_FAILURES) > 0:
        failed[MAX_FAILURES:] = [f"and {more:,} more that failed; --json lists all"]
    title = f"{data['study']} on {data['model']}"
    answer = [*data["answer"], *([f"page: {data['page']}"] if data["page"] else [])]
    lines = [
        _summary(data),
        *answer,
        f"next: {data['next']}",
        *(f"  or: {step}" for step in data["then"]),
    ]
    return Group(
        terminal_table(trials, title, _COLUMNS, names, styles=styles),
        *(folded(text, "red") for text in failed),
        *map(folded, lines),
    )


def _summary(data: Mapping[str, Any]) -> str:
    folder = Path(data["folder"])
    statuses, total = data["trials_by_status"], count(len(data["trials"]), "run")
    counts = ", ".join(f"{n} {status}" for status, n in statuses.items()) or "none yet"
    process = running_process(folder)
    running = f"; process {process} is running it" if process else ""
    if process and data["now"]:
        running += f": {_event_text(data['now'])}"
    spent = duration(data["seconds"]) + (" before this run" if running else "")
    steps = sorted(set(_checkpoint_steps(folder)))
    stored = f"; checkpoint after step {', '.join(map(str, steps))}" if steps else ""
    return f"{total}: {counts}; {spent}{stored}{running}"


def _checkpoint_steps(folder: Path) -> Iterator[int]:
    """Yield the steps of the checkpoints that unfinished groups and units left."""
    with suppress(OSError):  # a run removes those that it has taken up
        for below in ("checkpoints", "units/*/checkpoints"):
            for sums in folder.glob(f"{below}/*/step-*/SHA256SUMS"):
                yield int(sums.parent.name.removeprefix("step-").partition(".")[0])
