"""What a run says of its progress, with a clock that the test moves."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from toy_training import trial

from rankscope.progress import ConsoleReporter, JsonlReporter, ProgressReporter, SpeedMeter
from rankscope.run.study_clock import StudyClock


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Lines(ProgressReporter):
    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []

    def advance(self, done: int, detail: str = "", **values: float | None) -> None:
        self.lines.append((done, detail))


def test_speed_and_time_left_are_those_of_the_last_steps() -> None:
    clock, lines = Clock(), Lines()
    meter = SpeedMeter(lines, 2, clock)
    clock.now += 50  # the first step is slow
    meter(1, 61, 500, [1.0, 2.5])
    assert lines.lines[-1] == (
        1,
        "loss 1.000 in the best trial, 2.500 in the worst, 10 tokens/s, 50 min left",
    )
    for step in range(2, 22):
        clock.now += 2
        meter(step, 61, 500, [1.0, 2.0])
    # Twenty steps of 2 s: 250 tokens/s, and 40 steps are left.
    assert lines.lines[-1] == (
        21,
        "loss 1.000 in the best trial, 2.000 in the worst, 250 tokens/s, 80 s left",
    )


def test_what_training_pauses_for_does_not_slow_it() -> None:
    clock, lines = Clock(), Lines()
    meter = SpeedMeter(lines, 1, clock)
    clock.now += 2
    meter(1, 3, 100, [1.0])
    with meter.paused():
        clock.now += 1000
    clock.now += 2
    meter(2, 3, 100, [1.0])
    assert lines.lines[-1] == (2, "loss 1.000, 50 tokens/s, 2 s left")


def test_trials_that_left_the_group_are_told() -> None:
    lines = Lines()
    meter = SpeedMeter(lines, 3, Clock())
    meter(1, 2, 10, [1.0, 2.0])
    meter(2, 2, 10, [])
    assert "2.000 in the worst (2 of 3 trials)" in lines.lines[0][1]
    assert "no finite loss (0 of 3 trials)" in lines.lines[1][1]


def test_away_from_a_terminal_there_are_plain_lines_and_a_log(tmp_path: Path) -> None:
    file = io.StringIO()
    with ConsoleReporter(Console(file=file, force_terminal=False, width=60)) as screen:
        screen.LINE_SECONDS = 0.0
        reporter = JsonlReporter(screen, tmp_path / "log.jsonl")
        reporter.stage("group 1/2 train", 2)
        reporter.advance(1, "loss 1.0 to 2.0, 10 tokens/s, 3 s left", loss_low=1.0, trials=2)
        reporter.note("[bold]is text\x1b[2J\u202e")
        reporter.finish("4.0 s")
    said = file.getvalue().splitlines()
    assert said[0] == "group 1/2 train: 1 of 2 done  loss 1.0 to 2.0, 10 tokens/s, 3 s left"
    assert said[1] == "note: [bold]is text[U+001B][2J[U+202E]"
    assert said[2].startswith("group 1/2 train: done in ")
    assert "\x1b" not in file.getvalue()
    assert (tmp_path / "log.jsonl").read_text("utf-8").isascii()
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["stage", "advance", "note", "finish"]
    assert (events[1]["done"], events[1]["loss_low"], events[1]["trials"]) == (1, 1.0, 2)
    assert "detail" not in events[1]
    assert isinstance(events[3]["seconds"], float)


def test_time_left_of_the_study_follows_its_groups() -> None:
    """Three groups with 20, 40 and 40 units of work; the first takes 10 s twice."""
    clock = Clock()
    groups = [(trial("a"),), (trial("b"),), (trial("c"),)]
    study = StudyClock({"a": 20.0, "b": 40.0, "c": 40.0}, clock)
    study.begin_group(groups[0])
    study.begin_stage("train a")
    assert study.left_text() == ""
    clock.now += 5
    # Half of a fifth of all training in 5 s: 45 s are left, and scoring is not known yet.
    assert study.seconds_left(0.5) == (45.0, True)
    assert study.left_text(0.5) == "at least 45 s left of the study"
    clock.now += 5
    study.begin_stage("evaluate")
    clock.now += 10
    study.end_group()
    study.begin_group(groups[1])
    # A fifth in 20 s: 80 s are left.
    assert study.left_text() == "80 s left of the study"
    study.begin_stage("train b")
    clock.now += 10
    # 40 s for each of b and c, of which 10 s are over.
    assert study.seconds_left(0.5) == (70.0, False)
    assert study.left_text() == "70 s left of the study"  # what is trained stays trained
    clock.now += 40
    # Half of b took 50 s, so the other half will, whatever the pace of the study.
    assert study.seconds_left(0.5) == (90.0, False)
    study.begin_stage("evaluate b")
    assert study.seconds_left(1.0) == (40.0, False)
    clock.now += 10
    study.end_group()
    study.begin_group(groups[2])
    # Of a and b 80 s for 60 units.
    assert study.seconds_left() == (pytest.approx(40 * 80 / 60), False)


def test_a_group_that_was_trained_before_says_nothing_of_the_rest() -> None:
    clock = Clock()
    study = StudyClock({"a": 50.0, "b": 10.0, "c": 10.0}, clock)
    study.begin_group((trial("a"),))
    study.begin_stage("evaluate a")
    clock.now += 1
    study.end_group()
    study.begin_group((trial("b"),))
    study.begin_stage("train b")
    clock.now += 10
    assert study.seconds_left(1.0) == (10.0, True)
    study.end_group()
    assert study.seconds_left() == (10.0, False)


def test_steps_of_an_earlier_run_take_no_time_in_this_one() -> None:
    clock = Clock()
    study = StudyClock({"a": 10.0, "b": 10.0}, clock)
    study.begin_group((trial("a"),))
    study.begin_stage("train a")
    meter = SpeedMeter(Lines(), 1, clock, study)
    clock.now += 1
    meter(501, 1000, 1, [1.0])
    # 499 steps of a and 1,000 of b, a second each.
    assert study.seconds_left() == (pytest.approx(1499), True)
    clock.now += 499
    meter(1000, 1000, 1, [1.0])
    study.end_group()
    assert study.seconds_left() == (pytest.approx(1000), False)


def test_a_step_shows_the_time_left_of_the_study(tmp_path: Path) -> None:
    clock, lines, path = Clock(), Lines(), tmp_path / "log.jsonl"
    study = StudyClock({"a": 1.0, "b": 3.0}, clock)
    study.begin_group((trial("a"),))
    study.begin_stage("train a")
    meter = SpeedMeter(JsonlReporter(lines, path), 1, clock, study)
    clock.now += 2
    meter(1, 4, 500, [1.0])
    # A quarter of the first of four parts took 2 s.
    assert lines.lines == [
        (
            1,
            "loss 1.000, 250 tokens/s, 6 s left in this stage, at least 30 s left of the study",
        )
    ]
    (event,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert (event["seconds_left"], event["study_seconds_left"]) == (6.0, 30.0)
