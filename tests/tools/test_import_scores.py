"""Scores made elsewhere as a study: the three sources, the same decision, and what is refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, rankscope, write_rows
from synthetic_study import Truth, synthetic_study

from rankscope import load
from rankscope.advise.recommend import recommend
from rankscope.records import ArmSummary, StudyRecords
from rankscope.store import Ledger

Row = dict[str, Any]


def write_table(path: Path, rows: list[Row]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row))
        writer.writeheader()
        writer.writerows(rows)
    return path


def imported(source: Path, *words: str) -> Outcome:
    return rankscope("import", source, "--out", source.parent / "out", *words)


def study_of(source: Path, *words: str) -> StudyRecords:
    outcome = imported(source, *words)
    assert outcome.code == 0, outcome.told
    return Ledger.read(source.parent / "out")


def rows_of(study: StudyRecords) -> list[Row]:
    """A study's scores, and of its training what the table has columns for."""
    trials = {trial.spec.trial_id: trial for trial in study.trials}
    rows = []
    for (model, task, split), items in study.items.items():
        own: Row = {"arm": "base", "task": task, "split": split, "chance": study.task(task).chance}
        if (trial := trials.get(model)) is not None and trial.train is not None:
            spec = trial.spec
            own |= {"arm": f"run {spec.method} {spec.rank}", "seed": spec.seed}
            own |= {"method": spec.method, "rank": spec.rank, "alpha": spec.alpha, "lr": spec.lr}
            own |= {"parameters": trial.train.trainable_parameters, "seconds": trial.train.seconds}
        columns = (items.item_ids, items.scores, items.gold_logprobs, items.subjects)
        for item, score, gold, subject in zip(*columns, strict=True):
            rows.append({**own, "item": item, "score": score, "subject": subject})
            if gold == gold:
                rows[-1]["gold_logprob"] = gold
    return rows


@pytest.fixture(scope="module")
def original() -> StudyRecords:
    return synthetic_study(Truth(num_items=60, subjects=12))


@pytest.fixture(scope="module")
def again(original: StudyRecords, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same scores, imported."""
    source = write_table(tmp_path_factory.mktemp("again") / "scores.csv", rows_of(original))
    study_of(source, "--task", "med", "--retention", "general")
    return source.parent / "out"


NOT_HELD = {"rows", "peak_memory_bytes"}
"""Figures of an arm that the table has no column for, or the original study no need of."""


def test_a_finished_study_that_is_imported_has_the_same_answer(
    original: StudyRecords, again: Path
) -> None:
    expected, found = (recommend(study).advice[0] for study in (original, Ledger.read(again)))

    def figures(arm: ArmSummary) -> Row:
        return arm.model_dump(exclude=NOT_HELD)

    assert found.verdict == expected.verdict
    assert list(map(figures, found.arms)) == list(map(figures, expected.arms))
    assert found.comparisons == expected.comparisons
    assert found.reasons == expected.reasons


def test_every_verb_for_a_study_reads_it(again: Path) -> None:
    for words in (["status", again], ["verify", again], ["report", again]):
        assert rankscope(*words).code == 0
    frames = load(again)
    assert set(frames.trials["status"]) == {"done"}
    assert len(frames.items) == 13 * 3 * 2 * 60
    assert "run lora 8" in "".join(frames.records.notes)
    page = (again / "report.html").read_text("utf-8")
    assert "overlap with the training rows is not known" in page
    assert not any(text in page for text in ("No test row is in", "rankscope export", ">nan<"))
    refused = rankscope("export", again, "--out", again.parent / "adapter")
    assert (refused.code, "was trained here" in refused.told) == (2, True)


def test_two_imports_are_compared_item_by_item_if_their_bases_answered_alike(
    original: StudyRecords, again: Path, tmp_path: Path
) -> None:
    fewer = [row for row in rows_of(original) if row.get("seed") != 2]
    source = write_table(tmp_path / "scores.csv", fewer)
    study_of(source, "--task", "med", "--retention", "general")
    compared = rankscope("compare", again, tmp_path / "out", "--json")
    cells = json.loads(compared.out)["pairs"][0]["cells"]
    assert {cell["paired"] for cell in cells} == {True}
    assert {cell["arm"] for cell in cells} == {
        None,
        *(a.label for a in recommend(original).advice[0].arms),
    }


# --- small tables ---------------------------------------------------------------------------------


def table_of(arms: dict[str, list[float]], **columns: Any) -> list[Row]:
    """A row for each arm and score; the scores of an arm are of items 0, 1, ..."""
    return [
        {"arm": arm, "seed": 0, "task": "t", "item": item, "score": score, **columns}
        for arm, scores in arms.items()
        for item, score in enumerate(scores)
    ]


def test_a_page_without_ranks_names_the_arms_that_may_do(tmp_path: Path) -> None:
    rows = table_of({"base": [0] * 30, "mine": [1] * 28 + [0] * 2})
    study_of(write_table(tmp_path / "scores.csv", rows))
    assert rankscope("report", tmp_path / "out").code == 0
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "Probability of being within 2 points of the best: mine " in page
    assert "No rank is likely" not in page


def test_items_are_matched_and_what_is_not_common_is_counted(tmp_path: Path) -> None:
    rows = table_of({"base": [0, 0, 1, 1], "mine": [1, 1, 1]})
    rows += [{"arm": "base", "task": "kept", "item": 0, "score": -2.0}]
    study = study_of(write_table(tmp_path / "a.csv", rows), "--retention", "kept")
    evals = {record.task: record for key, record in study.evals.items() if key[0] != "base"}
    assert (evals["t"].score, evals["t"].n, len(evals)) == (1.0, 3, 1)
    assert [(t.name, t.trained_on, t.score_unit, t.rows["test"]) for t in study.tasks] == [
        ("t", True, "accuracy", 3),
        ("kept", False, "log_probability", 1),
    ]
    assert study.trials[0].spec.arm_label == "mine"  # its settings are not known
    said = " ".join(study.notes)
    assert "t: 1 of 4 test items are left out, because some model lacks them." in said
    assert "kept: no test scores of mine seed=0." in said


def test_means_without_items_give_wide_intervals_and_a_lower_rank_is_smaller(
    tmp_path: Path,
) -> None:
    rows: list[Row] = [{"name": "raw", "task": "t", "value": 0.4}]
    rows += [
        {"name": f"lora {rank}", "seed": seed, "task": "t", "value": 0.7, "rank": rank, "x": 1}
        for rank in (8, 64)
        for seed in (0, 1)
    ]
    words = ("--map", "arm=name", "--map", "score=value", "--base", "raw")
    study = study_of(write_table(tmp_path / "a.csv", rows), *words)
    advice = recommend(study).advice[0]
    assert [arm.label for arm in advice.arms] == ["r=8", "r=64"]
    assert {arm.alpha for arm in advice.arms} == {16, 128}
    assert advice.chosen is None or advice.chosen.label == "r=8"
    assert (advice.p_within_margin or 1.0) < 0.8
    assert [arm.gain.value for arm in advice.arms if arm.gain] == pytest.approx([0.3, 0.3])
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "t: there are means without items, so intervals are wide." in page
    assert "learning rate not known" in page


def write_samples(file: Path, values: list[float], metric: str = "acc", name: str = "none") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"doc_id": n, "filter": name, "metrics": [metric, "acc_norm"], metric: v, "acc_norm": 1 - v}
        for n, v in enumerate(values)
    ]
    write_rows(file, rows)
    return file


def test_samples_of_lm_evaluation_harness_are_read(tmp_path: Path) -> None:
    folder, time = tmp_path / "evals", "2026-01-02T03-04-05.678"
    for arm, values in (
        ("base", [False, False, True]),
        ("r8-seed0", [1, 0, 1]),
        ("r8-seed1", [1, 1, 1]),
    ):
        place = folder / arm / "owner__model"  # as the harness calls the folder of a model
        write_samples(place / "samples_arc_easy_2025-01-01T00-00-00.0.jsonl", [0, 0, 0])
        write_samples(place / f"samples_arc_easy_{time}.jsonl", values)
        file = write_samples(place / f"samples_gsm8k_{time}.jsonl", values, "exact_match", "strict")
        other = write_samples(tmp_path / "x.jsonl", [1, 1, 1], "exact_match", "flexible")
        file.write_text(file.read_text() + other.read_text())
    study = study_of(folder, "--task", "arc_easy")
    scores = {(k[0] == "base", r.task): (r.metric, r.score) for k, r in study.evals.items()}
    assert scores[True, "arc_easy"] == ("acc,none", pytest.approx(1 / 3))
    assert scores[True, "gsm8k"] == ("exact_match,strict", pytest.approx(1 / 3))
    assert [(t.spec.arm_label, t.spec.seed) for t in study.trials] == [("r8", 0), ("r8", 1)]
    assert [arm.seeds for arm in recommend(study).advice[0].arms] == [2]
    (tmp_path / "out").rename(tmp_path / "before")
    chosen = study_of(folder, "--task", "gsm8k", "--map", "score=exact_match,flexible")
    assert chosen.evals["base", "gsm8k", "test"].score == 1.0


def peft_result(name: str, accuracy: float, created: str, **config: Any) -> Row:
    train = {"seed": 0, "optimizer_kwargs": {"lr": 1e-4, "weight_decay": 0.1}}
    last = {"step": 5000, "test accuracy": accuracy, "forgetting": 0.08}
    return {
        "run_info": {
            "created_at": created,
            "experiment_name": name,
            "train_config": train,
            "peft_config": {"peft_type": "LORA", "lora_alpha": 64, **config} if config else None,
        },
        "train_info": {
            "status": "success" if accuracy else "failed",
            "num_trainable_params": 1000 * config.get("r", 999),
            "train_time": 60.5,
            "accelerator_memory_max": 7_000_000,
            "metrics": [{"step": 250, "valid accuracy": 0.1}, last],
        },
        "meta_info": {},
    }


def test_results_of_pefts_method_comparison_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    results = [
        peft_result("lora/rank32", 0.43, "2026-02-01", r=32),
        peft_result("lora/rank32", 0.1, "2026-01-01", r=32),  # an earlier run
        peft_result("lora/rank64-rslora", 0.53, "2026-01-01", r=64, use_rslora=True),
        peft_result("full-finetuning", 0.5, "2026-01-01"),
        peft_result("lora/broken", 0.0, "2026-01-01", r=8),
    ]
    for place, result in enumerate(results):
        (folder / f"{place}.json").write_text(json.dumps(result))
    study = study_of(folder, "--base", "gsm8k=0.2")
    advice = recommend(study).advice[0]
    arms = {arm.label: arm for arm in advice.arms}
    assert set(arms) == {"lora/rank32", "lora/rank64-rslora", "full-finetuning"}
    arm = arms["lora/rank32"]
    assert (arm.rank, arm.alpha, arm.lr, arm.trainable_parameters) == (32, 64, 1e-4, 32_000)
    assert (arm.seconds, arm.peak_memory_bytes) == (60.5, 7_000_000)
    changes = [change.value for change in (arm.gain, arm.forgetting) if change]
    assert changes == pytest.approx([0.23, 0.08])
    assert arms["full-finetuning"].is_full
    (tmp_path / "out").rename(tmp_path / "before")
    told = imported(folder).told
    assert "found 1 fault," in told
    assert "task gsm8k: found no test scores of the base" in told
    assert "give its mean: --base gsm8k=SCORE" in told


GOOD = table_of({"base": [0, 1], "a": [1, 1]})
LAST = {**GOOD[3], "item": 2}  # one more row


def changed(**values: Any) -> list[Row]:
    return [row | values for row in GOOD]


# (rows, options, parts of the message)
REFUSED: list[tuple[list[Row], str, list[str]]] = [
    ([*GOOD, GOOD[3]], "", ["column item: found 1 more rows of an item, first a, 0, t, test, 1"]),
    (GOOD[2:], "", ["column arm: found arms a, expected 'base' and others; name the base with"]),
    (GOOD[:2], "", ["column arm: found arms base, expected 'base' and others"]),
    (GOOD, "--base c", ["column arm: found arms another base, a, expected 'base'"]),
    ([GOOD[0] | {"item": 9}, *GOOD[2:]], "", ["task t: found no test item that the base and all"]),
    (
        [*GOOD, *(row | {"task": "u"} for row in GOOD[2:])],
        "--task t",
        ["task u: found no test", "add its rows"],
    ),
    ([*GOOD, LAST | {"score": "inf"}], "", ["'inf' in 1 rows, first row 5, expected a finite"]),
    ([*GOOD, LAST | {"score": ""}], "", ["column score: found '' in 1 rows"]),
    (changed(score=60.5), "", ["found scores from 60.5 to 60.5", "divide percentages by 100"]),
    (changed(score=-1), "--metric accuracy", ["scores from -1 to -1"]),
    (
        [*GOOD, LAST | {"metric": "f1"}, LAST | {"arm": "base", "metric": "acc"}],
        "",
        ["column metric: found several values for task t, expected one"],
    ),
    ([*GOOD, LAST | {"lr": 1}, LAST | {"item": 3, "lr": 2}], "", ["column lr: found several"]),
    (changed(split="train"), "", ["column split: found 'train' in 4 rows, first row 1, expected"]),
    (changed(seed=1e17), "", ["column seed: found '1e+17' in 4 rows"]),
    (changed(lr="fast"), "", ["column lr: found 'fast' in 4 rows"]),
    (changed(task="../t"), "", ["column task: found '../t', expected 1 to 64"]),
    ([*GOOD, *changed(task="u")], "", ["--task: found t, u, expected the one", "--task t or u"]),
    (GOOD, "--task u", ["task u: found no scores, expected one of t"]),
    (GOOD, "--retention t", ["--task: found none, expected the one task"]),
    (GOOD, "--map score=acc", ["--map score=acc: found no column 'acc'", "found no column score"]),
    (GOOD, "--map scor=score", ["--map scor=score: found 'scor', expected one of arm, seed"]),
    (
        [*GOOD, GOOD[3], LAST | {"score": "nan", "rank": "x"}],
        "--retention kept --map lrr=seed",
        ["found 5 faults", "'lrr'", "found 'nan'", "found 'x'", "1 more rows", "task kept: found"],
    ),
]


@pytest.mark.parametrize(("rows", "words", "said"), REFUSED)
def test_scores_that_cannot_be_compared_are_refused_and_nothing_is_written(
    rows: list[Row], words: str, said: list[str], tmp_path: Path
) -> None:
    outcome = imported(write_table(tmp_path / "a.csv", rows), *words.split())
    assert outcome.code == 2, outcome.told
    assert [part for part in said if part not in outcome.told] == []
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "", "found no scores, expected a .csv or .parquet table, samples of"),
        ("missing.csv", None, "found a fault ([Errno 2] No such file"),
        ("a.csv", "arm,task,score\n", "found no rows"),
        ("a.csv", "model,task\nm,t\n", "found no column arm, score"),
        ("a.json", "{}", "results as PEFT's comparison writes them"),
        ("e/b/samples_t_2026-01-01T00-00-00.0.jsonl", '{"doc_id": 1}\n', "0.4.7 or later"),
        ("e/b/samples_t_2026-01-01T00-00-00.0.jsonl", "", "samples of lm-evaluation-harness"),
    ],
)
def test_files_without_scores_are_refused(
    name: str, content: str | None, said: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if content is not None:
        file.write_text(content)
    outcome = imported(tmp_path / "e" if "samples" in name else file)
    assert (outcome.code, said in outcome.told) == (2, True), outcome.told
    assert not (tmp_path / "out").exists()
