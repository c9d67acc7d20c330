"""Studies with replay, KL, early stops, and joined tasks: run, continued, identified."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import folder_contents
from finished_studies import LORA, MITIGATED, REPLAY, Finished
from pocket_study import (
    UNANALYZED,
    changed,
    leftovers,
    results,
    run_interrupted,
    small_study,
    study_file,
)
from safetensors.torch import load_file

from rankscope.advise.recommend import recommend
from rankscope.config.loader import load_study_file
from rankscope.data.study_data import _replay_notes as replay_notes
from rankscope.errors import UserError
from rankscope.records import BASE, StudyRecords, TrialRecords
from rankscope.run.outputs import write_outputs
from rankscope.run.trials import make_trials
from rankscope.store import snapshot_path, weights_path
from rankscope.tools.export import ExportRequest, export_trial


def trial_with(study: StudyRecords, word: str) -> TrialRecords:
    (found,) = [t for t in study.trials if word in t.spec.arm_label]
    return found


def test_every_arm_is_trained_as_asked_and_told_of(mitigated: Finished) -> None:
    study = mitigated.records
    assert {t.status for t in study.trials} == {"done"}
    replaying = trial_with(study, " replay=0.25xpocket_cloze")
    assert "kl=0.5" in replaying.spec.arm_label
    assert replaying.train.num_replay_tokens > 0
    # 8 steps of 8 rows and 2 or 3 general ones.
    assert len(replaying.train.penalties) == 8
    assert any("pocket_cloze: some arms replay training rows" in n for n in study.notes)
    stopping = trial_with(study, "patience=1")
    assert stopping.train.best_step is not None
    assert [p.step for p in stopping.curve if p.task == "pocket_med"] == list(
        range(2, stopping.train.steps + 1, 2)
    )
    page = (mitigated.out / "report.html").read_text("utf-8")
    assert all(found.spec.arm_label in page for found in study.trials)


def test_the_weights_of_a_stopped_trial_are_those_of_its_best_step(
    mitigated: Finished, tmp_path: Path
) -> None:
    """Not of the last it made, which were not kept."""
    out = mitigated.out
    trial = trial_with(mitigated.records, "patience=1")
    best, last = trial.train.best_step, trial.train.steps
    assert best < last
    label = trial.spec.trial_id
    export_trial(out, tmp_path / "best", ExportRequest(label=label, step=best))
    export_trial(out, tmp_path / "own", ExportRequest(label=label))
    assert folder_contents(tmp_path / "best") == folder_contents(tmp_path / "own")
    with pytest.raises(UserError, match=rf"no weights of step {last}, expected one of {best}\b"):
        export_trial(out, tmp_path / "last", ExportRequest(label=label, step=last))


def test_weights_kept_by_step_are_those_of_a_training_of_so_many_steps(
    mitigated: Finished, tmp_path: Path
) -> None:
    train = {**MITIGATED["train"], "max_steps": 5, "checkpoint_every": None}
    shorter = small_study(tmp_path, **MITIGATED | {"train": train}).run(tmp_path / "out")
    for i in (0, 4):  # LoRA, full
        place = mitigated.out / snapshot_path(mitigated.records.trials[i].spec, 5)
        expected = tmp_path / "out" / weights_path(shorter.trials[i].spec)
        for file in expected.glob("*.safetensors"):
            tensors, same = load_file(place / file.name), load_file(file)
            assert tensors.keys() == same.keys()
            assert all(tensors[name].equal(same[name]) for name in same)


def test_export_copies_the_weights_of_a_step(mitigated: Finished, tmp_path: Path) -> None:
    out, trials = mitigated.out, mitigated.records.trials
    for i in (0, 4):
        label = trials[i].spec.trial_id
        for step, place in (
            (5, snapshot_path(trials[i].spec, 5)),
            (8, weights_path(trials[i].spec)),
        ):
            target = tmp_path / f"{i}-{step}"
            export_trial(out, target, ExportRequest(label=label, step=step))
            for file in (out / place).glob("*.safetensors"):
                assert (target / file.name).read_bytes() == file.read_bytes()
        with pytest.raises(UserError, match=r"no weights of step 4, expected one of 5, 8"):
            export_trial(out, tmp_path / "none", ExportRequest(label=label, step=4))
    assert not (tmp_path / "none").exists()


def test_interrupted_over_and_over_it_comes_to_the_same_end(
    mitigated: Finished, tmp_path: Path
) -> None:
    """Between steps, points of curves, and scores alike, bit for bit: adapters with and
    without dropout, an early stop, full fine-tuning, and the weights kept by step."""
    user = run_interrupted(small_study(tmp_path, **MITIGATED), tmp_path / "out", every=12)
    assert user.stops > 3
    assert (user.steps, user.scored) == (mitigated.user.steps, mitigated.user.scored)
    assert results(tmp_path / "out") == results(mitigated.out)
    assert leftovers(tmp_path / "out") == []


# --- joined tasks


def test_a_joined_task_has_the_rows_and_items_of_its_parts(tmp_path: Path) -> None:
    """Multiple choice and written answers: each part is scored its own way."""
    joined = {"name": "both", "mixture": ["pocket_med", "pocket_gsm"]}
    two = {"tasks": ["pocket_med", joined], "arms": [LORA], "seeds": [0], "analyze": UNANALYZED}
    study = small_study(tmp_path, **two)
    inputs = study.check()
    assert len(inputs.data.rows["both"].rows) == 512 + 2000
    records = study.run(tmp_path / "out")
    assert [a.task for a in recommend(records).advice] == ["pocket_med", "both"]
    for model in (BASE, records.trials[1].spec.trial_id):
        whole = records.evals[model, "both", "test"]
        parts = [records.evals[model, name, "test"] for name in ("pocket_med", "pocket_gsm")]
        assert whole.n == sum(part.n for part in parts) == 32
        assert whole.score == pytest.approx(sum(p.score * p.n for p in parts) / whole.n)
        assert set(whole.metrics) == {"acc", "pocket_med.acc", "pocket_gsm.exact_match"}
    ids = records.items[BASE, "both", "test"].item_ids
    assert [i.split("/")[0] for i in ids[:4]] == ["pocket_med", "pocket_gsm"] * 2
    write_outputs(tmp_path / "out")
    assert "shares its training rows" in (tmp_path / "out" / "report.html").read_text("utf-8")


# --- identity


def ids(tmp_path: Path, arm: dict[str, Any], **changes: Any) -> str:
    config = load_study_file(study_file(tmp_path, arms=[arm], seeds=[0], **changes))
    hashes = {"pocket_med": "1" * 64, "pocket_cloze": "2" * 64, "pocket_math": "3" * 64}
    (trial,) = make_trials(config, "b" * 64, hashes, {}, hashes, hashes)
    return trial.trial_id


def test_what_an_option_says_is_part_of_the_id(tmp_path: Path) -> None:
    curve = changed("train", evaluate_every=2)
    stop = {**LORA, "early_stop": {"patience": 1}}
    found = [
        ids(tmp_path, LORA),
        ids(tmp_path, {**LORA, "replay": REPLAY}),
        ids(tmp_path, {**LORA, "replay": {**REPLAY, "share": 0.5}}),
        ids(tmp_path, {**LORA, "replay": {**REPLAY, "task": "pocket_math"}}),
        ids(tmp_path, {**LORA, "kl_to_base": 1}),
        ids(tmp_path, {**LORA, "kl_to_base": 0.5}),
        ids(tmp_path, stop, **curve),
        ids(tmp_path, {**LORA, "early_stop": {"patience": 2}}, **curve),
        ids(tmp_path, stop, **changed("train", evaluate_every=4)),
        ids(tmp_path, stop, **changed("train", evaluate_every=2, evaluate_items=7)),
    ]
    assert len(set(found)) == len(found)
    assert ids(tmp_path, LORA, **curve) == found[0]  # without an early stop curves only look


def test_test_items_are_no_part_of_the_id(tmp_path: Path) -> None:
    """Only the validation items decide when an early stop ends training."""
    task = {"name": "texts"} | {s: f"{s}.jsonl" for s in ("train", "validation", "test")}
    arms = [{**LORA, "early_stop": {"patience": 1}}]
    changes = {"tasks": [task], "arms": arms, "seeds": [0], **changed("train", evaluate_every=2)}
    for split in ("train", "validation", "test"):
        rows = [json.dumps({"text": f"{split} text number {i}"}) for i in range(20)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    found = []
    for changed_split in (None, "test", "validation"):
        if changed_split is not None:
            file = tmp_path / f"{changed_split}.jsonl"
            file.write_text(file.read_text().replace("number 3", "number three"))
        found.append(small_study(tmp_path, **changes).check().trials[0].trial_id)
    assert found[0] == found[1] != found[2]


# --- what is refused


def test_replay_of_what_transfer_is_measured_on_is_told(tmp_path: Path) -> None:
    arms = [{**LORA, "replay": {**REPLAY, "task": "pocket_gsm"}}]
    config = load_study_file(study_file(tmp_path, arms=arms))
    (note,) = replay_notes(config)
    assert note.startswith("pocket_gsm: some arms replay training rows of this task")
    assert note.endswith("not transfer: they are trained on it")
