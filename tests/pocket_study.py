"""A whole study on the pocket model that takes seconds, and what of its results must not vary."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml

from rankscope.ledger import Ledger
from rankscope.study import Study

SETTINGS: dict[str, Any] = {
    "name": "small",
    "model": "pocket",
    "tasks": ["pocket_med"],
    "arms": [
        {"method": "lora", "rank": 2, "lr": 2e-3},
        # With dropout, whose generators a resumed run must have back.
        {"method": "lora", "rank": 8, "lr": 2e-3, "dropout": 0.1},
        {"method": "full", "lr": 5e-4},
    ],
    "seeds": [0, 1],
    "train": {
        "max_steps": 8,
        "batch_size": 4,
        "gradient_accumulation": 2,
        "max_length": 64,
        "checkpoint_seconds": 1e-3,  # after every step: whatever stops a run, it resumes within
    },
    "evaluate": {
        "retention": ["pocket_cloze"],
        "cross_domain": ["pocket_gsm"],
        "max_items": 16,
        "max_new_tokens": 8,
    },
    "max_pack": 2,
    "dtype": "float32",
}
NUM_LORA, NUM_TRIALS, NUM_PACKS = 4, 6, 4
EVALS_EACH = 5
"""Selection and report split of the training task and the retention task; report split of the
cross-domain task."""


def study_file(folder: Path, **changes: Any) -> Path:
    """The study written to ``folder`` with some top-level settings replaced; None removes one."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {k: v for k, v in {**SETTINGS, **changes}.items() if v is not None}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def small_study(folder: Path, **changes: Any) -> Study:
    """The study, read from a file in ``folder``."""
    return Study.load(study_file(folder, **changes))


def changed(section: str, **values: Any) -> dict[str, Any]:
    """``changes`` that replace single values of one section."""
    return {section: {**SETTINGS[section], **values}}


def results(out: Path) -> dict[str, Any]:
    """Everything a study came to, but for times and memory; every stored file by its hash."""
    measured = {"seconds", "peak_memory_bytes"}
    with Ledger.open(out, write=False) as ledger:
        study = ledger.load()
        files = {artifact.path: artifact.sha256 for artifact in ledger.artifacts()}
    return {
        "config": dict(study.config),
        "model": study.model,
        "tasks": study.tasks,
        "notes": study.notes,
        "trials": {
            t.spec.label: (
                t.spec,
                t.status,
                t.failure,
                t.train.model_dump(exclude=measured) if t.train else None,
                t.spectra.model_dump(exclude=measured) if t.spectra else None,
            )
            for t in study.trials
        },
        "curves": {
            t.spec.label: [point.model_dump(exclude=measured) for point in t.curve]
            for t in study.trials
        },
        "evals": {key: e.model_dump(exclude=measured) for key, e in study.evals.items()},
        "files": files,
    }


def leftovers(out: Path) -> list[str]:
    """What a run that came to its end must not leave: staged files, states, halves of files."""
    found = [
        *(out / "tmp").glob("*"),
        *(out / "checkpoints").glob("*"),
        *out.glob("*.part"),
        *out.glob("*.new"),
    ]
    return sorted(path.relative_to(out).as_posix() for path in found)


LAUNCHER = """
import json, os, sys
import rankscope.cli, rankscope.study, rankscope.report.tables, rankscope.screens.study

for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        file = os.open(order["messages"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        null = os.open(os.devnull, os.O_RDONLY)
        for number, into in ((null, 0), (file, 1), (file, 2)):
            os.dup2(number, into)
        sys.argv = ["rankscope", *order["arguments"]]
        rankscope.cli.main()
    print(child, flush=True)
    status = os.waitpid(child, 0)[1]
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Launcher:
    """Starts ``rankscope`` commands, each a process of its own that is born with the imports done.

    Importing torch takes longer than the whole small study, and a process that dies meanwhile
    proves nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.messages = folder / "messages.txt"
        self.parent = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
            cwd=folder,
        )
        self.child = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.parent.stdin is not None
        assert self.parent.stdout is not None
        if self.child:
            self.send(signal.SIGKILL)
        self.parent.stdin.close()
        self.parent.wait()
        self.parent.stdout.close()

    def start(self, *arguments: object) -> None:
        """Begin one command."""
        assert self.parent.stdin is not None
        order = {"messages": str(self.messages), "arguments": [str(a) for a in arguments]}
        self.parent.stdin.write(json.dumps(order).encode() + b"\n")
        self.parent.stdin.flush()
        self.child = self.answer()

    def answer(self) -> int:
        """The launcher's next number; unbuffered, so that ``select`` sees what is left."""
        assert self.parent.stdout is not None
        text = b""
        while not text.endswith(b"\n"):
            byte = os.read(self.parent.stdout.fileno(), 1)
            assert byte, "the launcher died"
            text += byte
        return int(text)

    def ended(self, seconds: float | None = None) -> int | None:
        """The command's exit code, minus the signal's number where one killed it.

        None where it still runs after ``seconds``; without them this waits for its end.
        """
        ready, _, _ = select.select([self.parent.stdout], [], [], seconds)
        if not ready:
            return None
        self.child = 0
        return self.answer()

    def send(self, number: int) -> None:
        """Send the running command a signal."""
        os.kill(self.child, number)

    def said(self) -> str:
        """What the last command printed."""
        return self.messages.read_text(encoding="utf-8", errors="replace")


def last_stage(out: Path) -> Mapping[str, Any]:
    """The newest event of a run's log; empty where there is none."""
    try:
        lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError):
        return {}
