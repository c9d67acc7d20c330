"""Many ``rankscope status`` beside a run: they print nothing wrong, its records are the same."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from launcher import Launcher

from fault_points import Options, Point, Undisturbed, last_lines, new_folders, tiny_study
from rankscope.errors import OK

COUNT = 200
NOT_YET = ("found no study here", "no run has stored a study yet")
"""A reader may be told this before the run has written anything."""
READERS = """
import contextlib, io, json, os, sys
from pathlib import Path

import rankscope.cli.status
from rankscope.cli import run_command_line

out, end, folder, count = sys.argv[1:]
os.nice(19)  # the run shall come to its end beside them
for number in range(int(count)):
    if os.fork() == 0:
        seen, evaluations, is_last = {}, 0, False
        while not is_last:
            is_last = os.path.exists(end)
            printed, errors = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
                try:
                    code = run_command_line(["status", out, "--json"])
                except BaseException as error:
                    code, text = 1, repr(error)
                else:
                    text = errors.getvalue()
            if code == 0:
                now = json.loads(printed.getvalue())["evaluations"]
                if now < evaluations:
                    text = f"{evaluations} evaluations, then {now}"
                evaluations = now
            key = json.dumps([code, text])
            seen[key] = seen.get(key, 0) + 1
        Path(folder, f"{number}.json").write_text(json.dumps(seen))
        os._exit(0)
print("reading", flush=True)
for _ in range(int(count)):
    os.wait()
"""


@dataclass
class Readings:
    """Readings of all readers."""

    total: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def add(self, code: int, text: str, times: int) -> None:
        self.total += times
        is_early = code == 2 and any(words in text for words in NOT_YET)
        if not is_early and (code, text) != (OK, ""):
            self.faults[f"exit {code}: {text.strip()}"] += times


@contextmanager
def readers(out: Path, folder: Path, count: int) -> Iterator[Readings]:
    """``count`` processes that give ``status OUT --json`` over and over, once more at the end."""
    folder.mkdir()
    readings = Readings()
    words = [str(out), str(folder / "end"), str(folder), str(count)]
    process = subprocess.Popen([sys.executable, "-c", READERS, *words], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        process.stdout.readline()  # all have begun
        yield readings
    finally:
        (folder / "end").touch()
        process.wait()
        process.stdout.close()
    files = list(folder.glob("*.json"))
    if len(files) < count:
        readings.faults["a reader died"] += count - len(files)
    for file in files:
        for key, times in json.loads(file.read_text()).items():
            readings.add(*json.loads(key), times)


def points(options: Options) -> Iterator[Point]:
    """Three runs, each beside two hundred readers from before its first write on."""
    with Launcher(options.folder) as launcher:
        whole = Undisturbed.of(launcher, tiny_study(options.folder / "study"))
        places = new_folders(options.folder)
        count = min(COUNT, options.points or COUNT)
        for number in range(3):
            out = next(places)
            with readers(out, options.folder / f"readers-{number}", count) as seen:
                ran = launcher.run("run", whole.file, "--out", out)
            problem = "; ".join(f"{n} x {text}" for text, n in seen.faults.most_common(3))
            if ran.code != OK:
                problem = f"the run ended in {ran.code}: {last_lines(ran)}"
            what = f"{count} readers, {seen.total} readings"
            yield Point(what, f"{seen.total:,} readings", problem or whole.differs(out))
