"""What ``status`` prints: a row per trial, what failed and why, and the next command."""

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from rankscope.cli.render.table import terminal_table
from rankscope.formatting import clock, count, duration, number, rough_duration, terminal_text
from rankscope.records import FAILED, WAITING, StudyRecords, TrialRecords
from rankscope.store import running_process

MAX_FAILURES = 20  # Most reasons printed


def status_data(study: StudyRecords, folder: Path) -> dict[str, object]:
    """The state of a study, then of each of its trials; what is not known is left out."""
    return {
        "study": study.name,
        "folder": str(folder),
        "model": study.model.label,
        "state": _state(study, folder),
        "trials_by_status": dict(Counter(trial.status for trial in study.trials)),
        "evaluations": len(study.evals),
        "seconds": study.total_seconds,
        "now": _last_event(folder) if running_process(folder) else None,
        "next": _next_command(study, folder),
        "trials": _trials_data(study),
    }


def _last_event(folder: Path) -> dict[str, Any] | None:
    try:
        *_, last = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        event: dict[str, Any] = json.loads(last)
    except (OSError, ValueError):  # no log, or a line that is being written
        return None
    return event


def _event_text(event: Mapping[str, Any]) -> str:
    """Such as ``group 1/2 train: 40 of 160, loss 2.134, 3 min left``."""
    what = str(event.get("name") or event.get("text") or event.get("event"))
    parts = [f"{what}: {event['done']} of {event.get('total', '?')}" if "done" in event else what]
    if event.get("loss_low") is not None:
        parts.append(f"loss {event['loss_low']:.3f}")
    if event.get("seconds_left") is not None:
        parts.append(f"{rough_duration(event['seconds_left'])} left")
    if event.get("study_seconds_left") is not None:
        parts.append(f"{rough_duration(event['study_seconds_left'])} left of the study")
    return ", ".join(parts)


def _state(study: StudyRecords, folder: Path) -> str:
    if running_process(folder):
        return "running"
    if any(trial.status in WAITING for trial in study.trials):
        return "unfinished"
    return "failed" if any(trial.status in FAILED for trial in study.trials) else "done"


def _next_command(study: StudyRecords, folder: Path) -> str:
    failed = sorted({trial.status for trial in study.trials} & FAILED)
    out = shlex.quote(str(folder))
    run = f"rankscope run {shlex.quote(str(folder / 'study.resolved.yaml'))} --out {out}"
    commands = {
        "running": f"rankscope status {out}",
        "unfinished": run,
        "failed": f"{run} --retry {','.join(failed)}",
    }
    return commands.get(_state(study, folder), f"rankscope report {out}")


def _trials_data(study: StudyRecords) -> list[dict[str, Any]]:
    evaluations = Counter(trial_id for trial_id, _, _ in study.evals)
    return [_trial_data(trial, evaluations[trial.spec.trial_id]) for trial in study.trials]


def _trial_data(trial: TrialRecords, evaluations: int) -> dict[str, Any]:
    data: dict[str, Any] = trial.spec.model_dump(mode="json", exclude_none=True)
    del data["schema_version"]
    data |= {"arm": trial.spec.arm_label, "status": trial.status, "evaluations": evaluations}
    if (train := trial.training) is not None:
        loss = train.losses[-1].loss if train.losses else None
        data |= {"steps": train.steps, "seconds": train.seconds, "loss": loss}
    if trial.failure:
        data["failure" if trial.status in FAILED else "reason"] = trial.failure
    if trial.curve:
        data["curve"] = [point.model_dump(mode="json") for point in trial.curve]
    return data


def status_table(study: StudyRecords, folder: Path) -> RenderableType:
    """A row per trial, then the reasons of those that failed, counts and the next command."""
    several = len({trial.spec.task for trial in study.trials}) > 1
    rows = [
        {
            "trial": trial["trial_id"],
            **({"task": trial["task"]} if several else {}),
            "arm": trial["arm"],
            "seed": str(trial["seed"]),
            "status": trial["status"],
            "loss": number(trial.get("loss"), 3),
            "time": clock(trial.get("seconds")),
            "scores": str(trial["evaluations"]),
        }
        for trial in _trials_data(study)
    ]
    styles = ["red" if trial.status in FAILED else "" for trial in study.trials]
    right = ("seed", "loss", "time", "scores")
    title = f"{study.name} on {study.model.label}"
    return Group(
        terminal_table(rows, title, right=right, styles=styles),
        *_failures(study),
        Text(terminal_text(_summary(study, folder)), overflow="fold"),
        Text(terminal_text(f"next: {_next_command(study, folder)}"), overflow="fold"),
    )


def _failures(study: StudyRecords) -> Iterator[Text]:
    failed = [trial for trial in study.trials if trial.status in FAILED and trial.failure]
    for trial in failed[:MAX_FAILURES]:
        text = f"{trial.spec.trial_id}: {trial.status}: {trial.failure}"
        yield Text(terminal_text(text), style="red", overflow="fold")
    if (more := len(failed) - MAX_FAILURES) > 0:
        yield Text(f"and {more:,} more that failed; --json lists all", style="red")


def _summary(study: StudyRecords, folder: Path) -> str:
    statuses = Counter(trial.status for trial in study.trials)
    counts = ", ".join(f"{n} {status}" for status, n in statuses.items()) or "none yet"
    process = running_process(folder)
    running = f"; process {process} is running it" if process else ""
    if process and (event := _last_event(folder)):
        running += f": {_event_text(event)}"
    spent = duration(study.total_seconds) + (" before this run" if running else "")
    steps = sorted(set(_checkpoint_steps(folder)))
    stored = f"; checkpoint after step {', '.join(map(str, steps))}" if steps else ""
    return f"{count(len(study.trials), 'trial')}: {counts}; {spent}{stored}{running}"


def _checkpoint_steps(folder: Path) -> Iterator[int]:
    """Steps after which groups and workers' units that are not done left a checkpoint."""
    with suppress(OSError):  # a run removes what it has taken up
        for below in ("checkpoints", "units/*/checkpoints"):
            for sums in folder.glob(f"{below}/*/step-*/SHA256SUMS"):
                yield int(sums.parent.name.removeprefix("step-").partition(".")[0])
