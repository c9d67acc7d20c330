"""Prompts as arms: the base itself, scored on items after other examples or a system text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import rankscope
from pocket_study import Undisturbed, changed, results, run_interrupted, small_study

from rankscope.advise.recommend import recommend
from rankscope.errors import UserError
from rankscope.records import BASE, EvalKey, StudyRecords, TrialRecords
from rankscope.report.study_view import StudyView
from rankscope.report.use_it import _prompt_steps
from rankscope.run.executors.local import LocalExecutor
from rankscope.run.outputs import write_outputs
from rankscope.run.prepare import prepare
from rankscope.run.workers.worker import work
from rankscope.store import Ledger
from rankscope.tools.evaluate import score
from rankscope.tools.export import ExportRequest, export_trial

LORA, LABEL = {"method": "lora", "rank": 2, "lr": 2e-3}, "r=2 lr=0.002"
SHOTS = {"method": "prompt", "num_fewshot": 3}
TEXT = "which risk has drug Pemek Tulin ?"
SYSTEM = {"method": "prompt", "system": TEXT}
SHORT: dict[str, Any] = {
    "seeds": [0],
    "arms": [LORA, SHOTS, SYSTEM],
    **changed("train", max_steps=4),
}


def prompts_of(records: StudyRecords) -> dict[str, TrialRecords]:
    return {
        "system" if t.spec.prompt.system else "shots": t
        for t in records.trials
        if t.spec.prompt is not None
    }


def shared(found: Mapping[str, Any]) -> dict[str, Any]:
    """The results of a study that do not belong to a prompt."""
    own = {label for label in found["trials"] if "prompt" in label}
    ids = {found["trials"][label][0].trial_id for label in own}
    return {
        "tasks": found["tasks"],
        "trials": {k: v for k, v in found["trials"].items() if k not in own},
        "evals": {k: v for k, v in found["evals"].items() if k[0] not in ids},
        "files": {k: v for k, v in found["files"].items() if not ids & set(k.split("/"))},
    }


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prompted") / "out"
    small_study(out.parent, **SHORT).run(out)
    return out


def test_scores_are_those_of_eval_and_pair_with_the_base(prompted: Path, tmp_path: Path) -> None:
    records = Ledger.read(prompted)
    trials = prompts_of(records)
    assert {t.status for t in records.trials} == {"done"}
    limits = {"max_items": 16, "max_new_tokens": 8}
    alone, _ = score(
        "pocket",
        ["pocket_med"],
        num_fewshot=3,
        settings={"dtype": "float32"},
        out=tmp_path,
        **limits,
    )
    theirs = alone.items[BASE, "pocket_med", "test"]
    for label, trial in trials.items():
        for task, split in (
            ("pocket_med", "test"),
            ("pocket_cloze", "test"),
            ("pocket_gsm", "test"),
        ):
            key: EvalKey = (trial.spec.trial_id, task, split)  # type: ignore[assignment]
            own, base = records.items[key], records.items[BASE, task, split]  # type: ignore[index]
            assert own.item_ids == base.item_ids
            is_the_base = np.array_equal(own.gold_logprobs, base.gold_logprobs)
            # Examples are shown with the training task alone, the system text everywhere.
            assert is_the_base == (label == "shots" and task != "pocket_med")
    own = records.items[trials["shots"].spec.trial_id, "pocket_med", "test"]
    assert own.item_ids == theirs.item_ids
    assert np.array_equal(own.gold_logprobs, theirs.gold_logprobs)
    assert np.array_equal(own.scores, theirs.scores)


def test_a_study_without_them_is_the_same(prompted: Path, tmp_path: Path) -> None:
    without = small_study(tmp_path, **SHORT | {"arms": [LORA]})
    without.run(tmp_path / "out")
    assert shared(results(prompted)) == shared(results(tmp_path / "out"))
    assert len(results(prompted)["trials"]) == 3


QUICK = SHORT | {"arms": [LORA, SHOTS], "analyze": {}, **changed("evaluate", retention=[])}


def test_it_ends_alike_after_interruptions_and_with_workers(tmp_path: Path) -> None:
    small_study(tmp_path / "a", **QUICK).run(tmp_path / "a/out")
    whole = Undisturbed(results(tmp_path / "a/out"), 0.0)
    user = run_interrupted(small_study(tmp_path / "b", **QUICK), tmp_path / "b/out", every=7)
    assert user.stops > 1
    whole.assert_equal(tmp_path / "b/out")
    study = small_study(tmp_path / "c", **QUICK)
    executor = LocalExecutor(study.config, 1)
    executor.run = lambda unit: work(unit.parents[1], unit.name)  # in this process
    study.run(tmp_path / "c/out", executor=executor)
    assert results(tmp_path / "c/out")["evals"] == whole.results["evals"]


def test_the_answer_counts_no_parameter_and_the_tokens_of_an_item(prompted: Path) -> None:
    advice = recommend(Ledger.read(prompted)).advice[0]
    shots, lora = (next(a for a in advice.arms if a.label == n) for n in ("prompt 3-shot", LABEL))
    assert (shots.trainable_parameters, shots.seeds, lora.tokens_per_item) == (0, 1, None)
    study = prepare(small_study(prompted.parent, **SHORT).config)
    trial = next(t for t in study.trials if t.arm_label == shots.label)
    read = np.mean([item.read for item in study.items_of(trial)["pocket_med", "validation"]])
    assert shots.tokens_per_item == pytest.approx(read)
    assert f"{shots.label}: reads {read:,.0f} tokens an item, the base" in "".join(study.notes)
    (row,) = [row for row in advice.rows if "prompt" in row.roles]
    best = max((a for a in advice.arms if not a.trains), key=lambda a: a.expected.net.value)
    assert row.arm == best


def test_the_text_on_the_page_is_the_text_that_was_scored(prompted: Path) -> None:
    records = Ledger.read(prompted)
    view = StudyView(records, recommend(records))
    study = prepare(small_study(prompted.parent, **SHORT).config)
    for trial in (t for t in study.trials if t.prompt):
        seen = study.data.seen_by(trial)
        encoder, item = seen.encoder, seen.tasks["pocket_med"].test[0]
        shown = _prompt_steps(view, "pocket_med", trial.prompt)[1].code
        ids = encoder.text_ids(shown.removesuffix("...") + item.prompt)
        assert encoder.prompt_ids(item) == [*encoder.bos_ids, *ids]


def test_it_is_shown_and_not_exported(prompted: Path, tmp_path: Path) -> None:
    records = Ledger.read(prompted)
    label = prompts_of(records)["shots"].spec.arm_label
    with pytest.raises(
        UserError, match=r"a prompt, which has no weights.*'Use it' in report\.html"
    ):
        export_trial(prompted, tmp_path / "adapter", ExportRequest(label=label))
    assert not (tmp_path / "adapter").exists()
    write_outputs(prompted)
    page = (prompted / "report.html").read_text("utf-8")
    assert "est prompt" in page
    plan = rankscope("plan", prompted.parent / "small.yaml").out
    assert "prompt 3-shot" in plan
    assert "tokens an item, the base" in plan


def test_a_search_leaves_none_out_and_scores_its_test_items(tmp_path: Path) -> None:
    arms = [{**LORA, "rank": [2, 8], "lr": [1e-4, 2e-3]}, SHOTS]
    search = {"arms": arms, "seeds": [0, 1], "strategy": "search", "budget": "2 trials"}
    study = small_study(tmp_path, **SHORT | search)
    records = study.run(tmp_path / "out")
    (prompt,) = [t for t in records.trials if t.spec.prompt]
    assert prompt.status == "done"
    assert (prompt.spec.trial_id, "pocket_med", "test") in records.evals
    assert study.plan().trials == 9


def test_a_mixture_shows_examples_of_each_part(tmp_path: Path) -> None:
    both = {"name": "both", "mixture": ["pocket_med", "pocket_law"]}
    changes = {"tasks": [both], "arms": [LORA, SHOTS]}
    study = prepare(small_study(tmp_path, **SHORT | changes).config, is_plan=True)
    (trial,) = [t for t in study.trials if t.prompt]
    assert [task for task, *_ in trial.prompt.examples] == ["pocket_med"] * 3 + ["pocket_law"] * 3
    for part in study.data.seen_by(trial).tasks["both"].parts:
        assert {len(item.fewshot) for item in part.test} == {3}
