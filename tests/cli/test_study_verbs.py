"""The verbs of a study as a user meets them: the walk on own data, JSON, exit codes, export."""

import json
import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import Outcome, files_below, rankscope as command, settings, write_rows
from rich.console import Console

from pocket_world import pocket_rows
from rankscope.cli import terminal
from rankscope.cli.study_verbs import plan_table
from rankscope.models.model_folder import pocket_folder
from rankscope.records import Recommendation, TaskAdvice
from rankscope.run.plan import Plan
from rankscope.store import Ledger, TrialFailure

CHANGES = settings(
    "arms=[{method: lora, rank: [2, 4], lr: 2e-3}, {method: full, lr: 5e-4}]",
    "seeds=[0]",
    "strategy=grid",
    "train.max_steps=2",
    "train.max_length=64",
    "evaluate.retention=[pocket_cloze]",
    "evaluate.max_items=8",
    "dtype=float32",
)
"""A study of seconds out of the file that ``init`` writes."""


@dataclass(frozen=True)
class Walk:
    """The own-data walk: what each verb said, and where the study is."""

    file: Path
    out: Path
    said: dict[str, Outcome]


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """init, check, plan and run on own rows and a local model folder, from another directory."""
    folder = tmp_path_factory.mktemp("walk")
    shutil.copytree(pocket_folder(), folder / "my-model")
    rows = write_rows(folder / "mine.jsonl", pocket_rows("pocket_med", "train")[:80])
    file, out = folder / "studies" / "study.yaml", folder / "out"
    said = {
        "init": command("init", file, "--model", folder / "my-model", "--data", rows),
        "check": command("check", file, *CHANGES),
        "plan": command("plan", file, *CHANGES),
        "plan --json": command("plan", file, *CHANGES, "--json"),
        "run": command("run", file, *CHANGES, "--out", out),
        "run --json": command("run", file, *CHANGES, "--out", out, "--json"),
    }
    return Walk(file, out, said)


@pytest.fixture
def copied(walk: Walk, tmp_path: Path) -> Path:
    """A copy of the finished study, to be damaged."""
    shutil.copytree(walk.out, tmp_path / "copy")
    return tmp_path / "copy"


# --- the walk -----------------------------------------------------------------------------------


def test_the_walk_ends_well(walk: Walk) -> None:
    assert {verb: outcome.code for verb, outcome in walk.said.items()} == dict.fromkeys(
        walk.said, 0
    ), walk.said
    # Paths are written from the study file's folder and found from any other.
    assert f"model: {walk.out.parent / 'my-model'}\n" in walk.file.read_text("utf-8")
    assert f"train: {walk.out.parent / 'mine.jsonl'}\n" in walk.file.read_text("utf-8")
    # 80 rows: 16 are cut for the test split, 16 for validation, 48 are trained on.
    assert "48 training rows (plain prompts)" in walk.said["check"].told
    assert "3 trials in 2 groups: the study can run." in walk.said["check"].told
    assert "3 trials in 2 groups" in walk.said["plan"].told
    assert (walk.out / "report.html").is_file()
    assert (walk.out / "recommendation.json").is_file()
    assert f"report: {walk.out / 'report.html'}\n" in walk.said["run"].out


def test_json_is_all_there_is_on_standard_output(walk: Walk) -> None:
    plan = json.loads(walk.said["plan --json"].out)
    assert (plan["trials"], len(plan["groups"])) == (3, 2)
    assert [group["steps"] for group in plan["groups"]] == [2, 2]
    assert walk.said["plan --json"].err.startswith(f"Reading {walk.file} ...\npreparing: ")
    ran = walk.said["run --json"]
    printed = Recommendation.model_validate_json(ran.out)
    stored = (walk.out / "recommendation.json").read_text("utf-8")
    assert printed == Recommendation.model_validate_json(stored)
    assert "note: " in ran.err
    status = json.loads(command("status", walk.out, "--json").out)
    assert (status["state"], status["trials_by_status"]) == ("done", {"done": 3})
    assert None not in [value for trial in status["trials"] for value in trial.values()]
    assert [(t["method"], t.get("rank"), t["status"]) for t in status["trials"]] == [
        ("lora", 2, "done"),
        ("lora", 4, "done"),
        ("full", None, "done"),
    ]


def test_verbs_of_a_study_print_one_document(walk: Walk, tmp_path: Path) -> None:
    words: dict[str, list[object]] = {
        "check": [walk.file, *CHANGES],
        "status": [walk.out],
        "verify": [walk.out],
        "export": [walk.out, trial_ids(walk.out)[2], "--out", tmp_path / "adapter"],
        "init": [tmp_path / "new.yaml", "--preset", "pocket"],
    }
    found = {}
    for verb, rest in words.items():
        outcome = command(verb, *rest, "--json")
        assert outcome.code == 0, outcome
        found[verb] = json.loads(outcome.out)
    assert found["check"]["trials"] == 3
    assert found["verify"]["ok"]
    assert found["export"]["kind"] == "adapter"
    assert found["init"]["next"] == f"rankscope check {tmp_path / 'new.yaml'}"


def test_status_says_who_runs_the_study_and_what_to_do_next(walk: Walk, copied: Path) -> None:
    with Ledger.open(copied, write=True) as ledger:
        ledger.fail_trials([TrialFailure(ledger.trials()[1].trial_id, "oom", "no room")])
        running = json.loads(command("status", copied, "--json").out)
        assert (running["state"], running["next"]) == ("running", f"rankscope status {copied}")
        assert f"process {os.getpid()} on " in command("status", copied).told
    failed = json.loads(command("status", copied, "--json").out)
    assert failed["state"] == "failed"
    assert failed["next"].endswith(f"study.resolved.yaml --out {copied} --retry oom")


def test_status_of_a_finished_study_says_what_to_do_with_it(copied: Path) -> None:
    """Its export follows the stored answer, and is left out where nothing is recommended."""
    file = copied / "recommendation.json"
    stored = Recommendation.model_validate_json(file.read_text("utf-8"))
    (advice,) = stored.advice
    by_method = {arm.method: advice.model_copy(update={"chosen": arm}) for arm in advice.arms}
    nothing = advice.model_copy(update={"chosen": None})
    export, compare = f"rankscope export {copied} --best", f"rankscope compare {copied} ANOTHER"

    def then(*tasks: TaskAdvice) -> list[str]:
        file.write_text(stored.model_copy(update={"advice": tasks}).model_dump_json(), "utf-8")
        steps: list[str] = json.loads(command("status", copied, "--json").out)["then"]
        return steps

    assert then(nothing) == [compare]
    assert then(by_method["full"]) == [f"{export} --out {copied}-model", compare]
    other = by_method["full"].model_copy(update={"task": "other"})
    assert then(by_method["lora"], other) == [
        f"{export} --task mine --out {copied}-mine-adapter",
        f"{export} --task other --out {copied}-other-model",
        compare,
    ]
    assert then(by_method["lora"]) == [f"{export} --out {copied}-adapter", compare]
    told = command("status", copied).told
    shown = f"next: rankscope open {copied} or: {export} --out {copied}-adapter or: "
    assert shown.replace(" ", "") in told.replace(" ", "")  # A long path is folded
    file.write_text("{", "utf-8")
    assert json.loads(command("status", copied, "--json").out)["then"] == [compare]
    with Ledger.open(copied, write=True) as ledger:
        ledger.fail_trials([TrialFailure(ledger.trials()[1].trial_id, "oom", "no room")])
    assert json.loads(command("status", copied, "--json").out)["then"] == []


def test_commands_that_are_printed_can_be_pasted(walk: Walk, tmp_path: Path) -> None:
    place = tmp_path / "a b"
    shutil.copytree(walk.out, place)
    assert f"next: rankscope open '{place}'" in command("status", place).told
    with Ledger.open(place, write=True) as ledger:
        ledger.fail_trials([TrialFailure(ledger.trials()[1].trial_id, "oom", "no room")])
    step = json.loads(command("status", place, "--json").out)["next"]
    words = [place / "study.resolved.yaml", "--out", place, "--retry", "oom"]
    assert shlex.split(step) == ["rankscope", "run", *map(str, words)]


@pytest.mark.pitfall(28)
def test_failed_trials_are_shown_and_end_a_run_with_3(walk: Walk, copied: Path) -> None:
    with Ledger.open(copied, write=True) as ledger:
        failed = ledger.trials()[1].trial_id
        ledger.fail_trials([TrialFailure(failed, "diverged", "loss is nan at step 3\x1b[2J")])
    outcome = command("status", copied)
    assert outcome.code == 0
    assert f"{failed}: diverged: loss is nan at step 3\\u001b[2J" in outcome.told
    assert "3 runs: 2 done, 1 diverged" in outcome.told
    again = command("run", walk.file, *CHANGES, "--out", copied, "--json")
    assert again.code == 3, again.err
    Recommendation.model_validate_json(again.out)
    retried = command("run", walk.file, *CHANGES, "--out", copied, "--retry", "oom,diverged")
    assert retried.code == 0, retried.err
    assert "3 runs: 3 done" in command("status", copied).told


# --- export -------------------------------------------------------------------------------------


def trial_ids(out: Path) -> dict[int | None, str]:
    """Trial id by rank."""
    with Ledger.open(out, write=False) as ledger:
        return {trial.rank: trial.trial_id for trial in ledger.trials()}


def test_export_refuses(walk: Walk, tmp_path: Path) -> None:
    ids = trial_ids(walk.out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for words, part in (
        ((ids[2], "--out", tmp_path / "full"), "found a folder with files in it"),
        ((ids[2], "--out", tmp_path / "full" / "mine.txt"), "found a file"),
        ((ids[2], "--out", walk.out / "artifacts" / "new"), "inside the study"),
        (("../x", "--out", tmp_path / "x"), "found no trial '../x'"),
    ):
        outcome = command("export", walk.out, *words)
        assert outcome.code == 2, outcome
        assert part in outcome.err
    assert files_below(tmp_path) == {"full", "full/mine.txt"}
    assert not (walk.out / "artifacts" / "new").exists()


# --- how it looks -------------------------------------------------------------------------------


def table_lines(text: str) -> list[str]:
    """The rows of the first table: what stands between its rule and the next blank line."""
    lines = [line.rstrip() for line in text.splitlines()]
    rule = next(i for i, line in enumerate(lines) if set(line.strip()) == {"─"})
    return lines[rule + 1 : lines.index("", rule)]


def test_tables_fit_eighty_columns_and_nothing_in_them_breaks(
    tmp_path: Path, walk: Walk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "out_console", Console(width=80))
    file = tmp_path / "pocket.yaml"
    assert command("init", file, "--preset", "pocket").code == 0
    checked = command("check", file, "--rows", "1").out
    names = [line.split()[0] for line in table_lines(checked)]
    assert names == ["pocket_med", "pocket_law", "pocket_gsm", "pocket_general", "pocket_cloze",
                     "pocket_math"]  # fmt: skip
    assert "cross-domain" in checked
    assert "train/val/test" in checked
    plan = Plan.model_validate_json(command("plan", file, "--json").out)
    # With a column for the task, which a study of one task leaves out.
    two_tasks = (plan.groups[0].model_copy(update={"task": "pocket_law"}), *plan.groups[1:])
    planned = []
    for groups in (plan.groups, two_tasks):
        with terminal.out_console.capture() as capture:
            terminal.print_result(plan_table(plan.model_copy(update={"groups": groups})))
        planned.append(capture.get())
    # 24 LoRA trials in groups of at most 16, and 6 full ones.
    assert [len(table_lines(text)) for text in planned] == [8, 8]
    assert "full lr=0.00025 seed=0" in planned[0]
    assert "pocket_law" in planned[1]
    status = command("status", walk.out).out
    assert [line.split()[0] for line in table_lines(status)] == list(trial_ids(walk.out).values())
    for text in (checked, *planned, status):
        assert max(map(len, text.splitlines())) <= 80
