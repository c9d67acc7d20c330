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
from rankscope.records import StudyRecords
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
        columns = (items.scores, items.gold_logprobs, items.subjects)
        for place, (score, gold, subject) in enumerate(zip(*columns, strict=True)):
            rows.append({**own, "item": f"{place:03}", "score": score, "subject": subject})
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


def test_a_finished_study_that_is_imported_has_the_same_answer(
    original: StudyRecords, again: Path
) -> None:
    expected, found = (recommend(study).advice[0] for study in (original, Ledger.read(again)))

    assert found.p_within_margin == expected.p_within_margin
    for one, other in zip(found.arms, expected.arms, strict=True):
        assert (one.label, one.score, one.gain) == (other.label, other.score, other.gain)
        assert one.expected.net.value == pytest.approx(other.expected.net.value)
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
    assert "Likely among the best: mine " in page
    assert "No rank is likely" not in page


def held(study: StudyRecords) -> dict[tuple[str, int, str], tuple[float, int, float | None]]:
    """By arm, seed and task, the score, the number of items and the error of every model."""
    specs = {trial.spec.trial_id: trial.spec for trial in study.trials}
    names = {i: (spec.arm_label, spec.seed) for i, spec in specs.items()} | {"base": ("base", 0)}
    return {
        (*names[model], task): (record.score, record.n, record.standard_error)
        for (model, task, _), record in study.evals.items()
    }


def scores_in(study: StudyRecords) -> dict[tuple[str, int, str], float]:
    return {key: value[0] for key, value in held(study).items()}


def test_every_model_keeps_its_own_items_and_those_of_no_base_are_counted(tmp_path: Path) -> None:
    base, right = [n % 2 for n in range(400)], [1] * 400
    rows = table_of({"base": base, "a": right, "b": right, "c": right, "few": [1] * 30})
    rows += [row | {"item": 999} for row in rows if row["item"] == 7 and row["arm"] in "abc"]
    rows += [{"arm": "base", "task": "kept", "item": 0, "score": -2.0}]
    study = study_of(write_table(tmp_path / "a.csv", rows), "--retention", "kept")
    sizes = {arm: n for (arm, _, task), (_, n, _) in held(study).items() if task == "t"}
    assert sizes == {"base": 400, "a": 400, "b": 400, "c": 400, "few": 30}
    assert {key[1:]: len(items.scores) for key, items in study.items.items()} != {}
    assert sorted(len(i.scores) for k, i in study.items.items() if k[1] == "t") == [30, *[400] * 4]
    assert [(t.name, t.score_unit, t.rows["test"]) for t in study.tasks] == [
        ("t", "accuracy", 400),
        ("kept", "log_probability", 1),
    ]
    said = " ".join(study.notes)
    assert "t: 1 of 401 test items are left out, because the base lacks them." in said
    assert "t: of 400 test items, few seed=0 has 30." in said
    assert "kept: there are no test scores of a seed=0, b seed=0, c seed=0 and few seed=0." in said
    (advice,) = recommend(study).advice
    assert [arm.score.n for arm in advice.arms if arm.score] == [400, 400, 400, 30]
    for words in (["verify", tmp_path / "out"], ["report", tmp_path / "out"]):
        assert rankscope(*words).code == 0


# --- a row for each model -------------------------------------------------------------------------

SHARES: list[Row] = [
    {"rank": 0, "lr": "", "seed": 0, "score": 0.417, "mmlu": 0.62},
    {"rank": 8, "lr": 1e-4, "seed": 0, "score": 0.579, "mmlu": 0.61},
    {"rank": 8, "lr": 1e-4, "seed": 1, "score": 0.583, "mmlu": 0.613},
    {"rank": 64, "lr": 1e-4, "seed": 0, "score": 0.59, "mmlu": 0.587},
]
PERCENT = [row | {n: 100 * float(row[n]) for n in ("score", "mmlu")} for row in SHARES]


def test_a_table_with_a_row_for_each_model_is_read_as_it_is(tmp_path: Path) -> None:
    study = study_of(write_table(tmp_path / "a.csv", SHARES))
    assert [(task.name, *task.roles) for task in study.tasks] == [
        ("score", "in_domain"),
        ("mmlu", "retention"),
    ]
    assert scores_in(study) == {
        ("base", 0, "score"): 0.417,
        ("base", 0, "mmlu"): 0.62,
        ("r=8 lr=0.0001", 0, "score"): 0.579,
        ("r=8 lr=0.0001", 0, "mmlu"): 0.61,
        ("r=8 lr=0.0001", 1, "score"): 0.583,
        ("r=8 lr=0.0001", 1, "mmlu"): 0.613,
        ("r=64 lr=0.0001", 0, "score"): 0.59,
        ("r=64 lr=0.0001", 0, "mmlu"): 0.587,
    }
    said = " ".join(study.notes)
    assert "A fall on mmlu is forgetting; --retention can name others." in said
    assert "Arms are called" not in said
    assert {trial.spec.given for trial in study.trials} == {None}


@pytest.mark.parametrize(
    ("columns", "words", "roles"),
    [
        ({}, "--retention none", {"score": "in_domain", "mmlu": "cross_domain"}),
        ({}, "--task mmlu", {"score": "retention", "mmlu": "in_domain"}),
        ({"score": "GSM8K (8-shot)"}, "--task GSM8K-8-shot", {"GSM8K-8-shot": "in_domain"}),
        ({"score": "gsm8k"}, "--map score=gsm8k", {"gsm8k": "in_domain", "mmlu": "retention"}),
        ({"mmlu": "epochs", "seed": "Seed"}, "", {"score": "in_domain"}),
    ],
)
def test_columns_and_options_say_what_a_task_shows(
    columns: Row, words: str, roles: Row, tmp_path: Path
) -> None:
    rows = [{columns.get(name, name): value for name, value in row.items()} for row in SHARES]
    study = study_of(write_table(tmp_path / "a.csv", rows), *words.split())
    assert roles.items() <= {task.name: task.roles[0] for task in study.tasks}.items()
    assert ("Rankscope does not read these columns: epochs." in study.notes) == (
        "epochs" in columns.values()
    )
    assert {trial.spec.seed for trial in study.trials} == {0, 1}


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ({"name": "base"}, ()),
        ({"name": "Qwen", "rank": "base"}, ()),
        ({"name": "Qwen", "method": "Base"}, ()),
        ({"name": "raw", "rank": ""}, ("--base", "raw")),
    ],
)
def test_a_row_says_that_it_is_the_base(base: Row, words: tuple[str, ...], tmp_path: Path) -> None:
    tuned = {"name": "all", "method": "", "rank": "full", "score": 0.8}
    rows = [tuned, {"score": 0.5} | base, {"score": 0.5, "seed": 1} | base]
    study = study_of(write_table(tmp_path / "a.csv", rows), *words)
    assert scores_in(study) == {("base", 0, "score"): 0.5, ("full", 0, "score"): 0.8}


def as_stored(study: StudyRecords) -> list[object]:
    """Everything that a study holds, without the time and the notes."""
    return [
        study.tasks,
        [(trial.spec, trial.train) for trial in study.trials],
        dict(study.evals),
        {key: (items.item_ids, items.scores.tolist()) for key, items in study.items.items()},
    ]


def test_percentages_are_their_shares(tmp_path: Path) -> None:
    studies = []
    for name, rows in (("shares", SHARES), ("percent", PERCENT)):
        error = {"score_stderr": 1.36 if name == "percent" else 0.0136}
        (tmp_path / name).mkdir()
        source = write_table(tmp_path / name / "a.csv", [row | error for row in rows])
        studies.append(study_of(source))
    assert as_stored(studies[0]) == as_stored(studies[1])
    assert held(studies[1])["base", 0, "score"] == (0.417, 1, 0.0136)
    said = "score: scores up to 59 are percentages and are divided by 100."
    assert [said in study.notes for study in studies] == [False, True]


def test_the_order_of_rows_and_columns_does_not_matter(tmp_path: Path) -> None:
    items = table_of({"base": [0, 1, 0, 1], "a": [1, 1, 0, 1], "b": [1, 1, 1, 1]}, rank="")
    items = [row | {"rank": 8 if row["arm"] == "b" else ""} for row in items]
    for table in (SHARES, items):
        studies = []
        for name, rows in (
            ("one", table),
            ("two", [dict([*r.items()][::-1]) for r in table[::-1]]),
        ):
            (folder := tmp_path / f"{name}{len(table)}").mkdir()
            studies.append(study_of(write_table(folder / "a.csv", rows)))
        assert as_stored(studies[0]) == as_stored(studies[1])
        assert studies[0].notes == studies[1].notes


def test_a_missing_score_is_named_and_costs_no_other_model_anything(tmp_path: Path) -> None:
    whole = scores_in(study_of(write_table(tmp_path / "a.csv", SHARES)))
    (tmp_path / "out").rename(tmp_path / "whole")
    rows = [dict(row) for row in SHARES]
    rows[1]["mmlu"], rows[2]["score"], rows[3]["mmlu"] = "nan", "-", ""
    study = study_of(write_table(tmp_path / "a.csv", rows))
    for rank, seed, task in ((8, 0, "mmlu"), (8, 1, "score"), (64, 0, "mmlu")):
        del whole[f"r={rank} lr=0.0001", seed, task]
    assert scores_in(study) == whole
    first, second = (f"rank {rank} lr 0.0001 seed=0" for rank in (8, 64))
    text = "{}: there are no test scores of {}."
    named = " ".join(study.notes)
    assert text.format("mmlu", f"{second} and {first}") in named
    assert text.format("score", "rank 8 lr 0.0001 seed=1") in named


def test_means_have_the_error_of_their_items_or_the_one_that_is_given(tmp_path: Path) -> None:
    rows = [row | {"items": 400, "mmlu_stderr": 0.012} for row in SHARES]
    rows[1] |= {"stderr": 0.03}
    study = study_of(write_table(tmp_path / "a.csv", rows))
    arm = "r=8 lr=0.0001"
    found = held(study)
    assert found[arm, 0, "score"] == (0.579, 400, 0.03)
    assert found[arm, 1, "score"] == (0.583, 400, pytest.approx(0.02465314))  # by hand
    assert found[arm, 0, "mmlu"] == (0.61, 1, 0.012)
    assert study.task("score").rows["test"] == 400
    assert not any("means come without" in note for note in study.notes)
    assert {len(items.scores) for items in study.items.values()} == {1}


def test_of_equal_means_without_items_the_lower_rank_is_smaller(tmp_path: Path) -> None:
    rows: list[Row] = [{"model": "raw", "task": "t", "acc": 0.4}]
    rows += [
        {"model": f"lora {rank}", "seed": seed, "task": "t", "acc": 0.7, "rank": rank, "x": 1}
        for rank in (8, 64)
        for seed in (0, 1)
    ]
    words = ("--map", "arm=model", "--map", "score=acc", "--base", "raw")
    study = study_of(write_table(tmp_path / "a.csv", rows), *words)
    assert {value[1:] for value in held(study).values()} == {(1, None)}
    advice = recommend(study).advice[0]
    assert [arm.label for arm in advice.arms] == ["r=8", "r=64"]
    assert {arm.alpha for arm in advice.arms} == {16, 128}
    assert advice.subject_label == "r=8"
    one = [row for row in rows if row.get("seed") != 1]
    (tmp_path / "one").mkdir()
    single = study_of(write_table(tmp_path / "one" / "b.csv", one), *words)
    alone = recommend(single).advice[0]
    assert alone.summary == "No configuration has all scores."  # No error is known
    assert [arm.gain.value for arm in advice.arms if arm.gain] == pytest.approx([0.3, 0.3])
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "t: means come without items or errors, so intervals are wide." in page
    assert "r=8 is lora 8" in page
    assert "rate not known" in page


# --- directions -----------------------------------------------------------------------------------

LOSSES = [{"rank": rank, "loss": loss} for rank, loss in ((0, 2.5), (8, 1.5), (64, 2.0))]


@pytest.mark.parametrize(
    ("column", "words", "unit"),
    [
        ("loss", "--map score=loss", "log_probability"),
        ("wiki_perplexity", "", None),
        ("score", "--lower score", None),
        ("score", "--lower score --metric log_probability", "log_probability"),
    ],
)
def test_less_of_a_loss_is_better(
    column: str, words: str, unit: str | None, tmp_path: Path
) -> None:
    rows = [{"rank": row["rank"], column: row["loss"]} for row in LOSSES]
    study = study_of(write_table(tmp_path / "a.csv", rows), *words.split())
    assert list(scores_in(study).values()) == [-2.5, -1.5, -2.0]
    assert study.tasks[0].score_unit == unit
    assert f"{column}: less {column} is better, so its scores are negated." in study.notes
    gains = {arm.label: arm.gain.value for arm in recommend(study).advice[0].arms if arm.gain}
    assert gains == {"r=8": 1.0, "r=64": 0.5}


def test_an_error_rate_is_subtracted_from_1_and_an_unknown_metric_needs_a_direction(
    tmp_path: Path,
) -> None:
    rows = [row | {"metric": "misses"} for row in table_of({"base": [1, 0], "a": [0, 0]})]
    source = write_table(tmp_path / "a.csv", rows)
    told = imported(source).told
    assert "the metric 'misses', expected a known direction; give --lower misses if less" in told
    assert "--lower mises: found no such metric" in imported(source, "--lower", "mises").told
    for words, base in (("--lower misses --metric accuracy", 0.5), ("--lower none", 0.5)):
        study = study_of(source, *words.split())
        best = 1.0 if "misses" in words else 0.0
        assert scores_in(study) == {("base", 0, "t"): base, ("a", 0, "t"): best}
        assert study.tasks[0].score_unit == "accuracy"
        (tmp_path / "out").rename(tmp_path / words.replace(" ", ""))


def test_results_of_the_harness_say_which_direction_is_better(tmp_path: Path) -> None:
    folder, time = tmp_path / "evals", "2026-01-02T03-04-05.678"
    for arm, values in (("base", [0.5, 0.7]), ("r8", [0.1, 0.3])):
        for task, metric in (("t", "edits"), ("u", "brier_score")):
            write_samples(folder / arm / f"samples_{task}_{time}.jsonl", values, metric)
    assert "the metric 'edits'" in imported(folder, "--task", "t", "--map", "score=edits").told
    for arm in ("base", "r8"):
        stated = {"higher_is_better": {"t": {"edits": False}, "u": {"acc_norm": True}}}
        (folder / arm / f"results_{time}.json").write_text(json.dumps(stated))
    words = ("--task", "t", "--map")
    study = study_of(folder, *words, "score=edits", "--retention", "none")
    assert scores_in(study)["r8", 0, "t"] == pytest.approx(-0.2)
    (tmp_path / "out").rename(tmp_path / "first")
    study = study_of(folder, *words, "score=brier_score")
    assert scores_in(study)["r8", 0, "u"] == pytest.approx(-0.2)


def write_samples(file: Path, values: list[float], metric: str = "acc", name: str = "none") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"doc_id": n, "filter": name, "metrics": [metric, "acc_norm"], "acc_norm": 1 - v, metric: v}
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
    assert "task gsm8k: found no test item that the base and another model have" in told
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
    (GOOD, "--base c", ["column arm: found arms a, another base, expected 'base'"]),
    ([GOOD[0] | {"item": 9}, *GOOD[2:]], "",
     ["task t: found no test item that the base and another model have"]),
    ([*GOOD, *(row | {"task": "u"} for row in GOOD[2:])], "--task t",
     ["task u: found no test", "add rows of the base"]),
    ([*GOOD, LAST | {"score": "inf"}], "", ["'inf' in 1 rows, first row 5, expected a finite"]),
    ([*GOOD, LAST | {"seed": 0.5}], "",
     ["seed: found '0.5' in 1 rows, first row 5, expected a who"]),
    ([*GOOD, LAST | {"rank": 2.7}], "",
     ["rank: found '2.7' in 1 rows, first row 5, expected a who"]),
    ([*GOOD, LAST | {"arm": ""}], "", ["column arm: found '' in 1 rows, first row 5"]),
    ([GOOD[0] | {"score": 0.5}, *changed(score=60.5)[1:]], "",
     ["scores from 0.5 to 60.5", "percentages (none between"]),
    (changed(score=160.5), "", ["found scores from 160.5 to 160.5", "shares (0 to 1)"]),
    (changed(score=2), "--metric log_probability", ["from 2 to 2", "--lower score if less is bet"]),
    (changed(score=-1), "--lower score", ["found scores from -1 to -1"]),
    (changed(score=-1), "--metric accuracy", ["scores from -1 to -1"]),
    ([*GOOD, LAST | {"metric": "f1"}, LAST | {"arm": "base", "metric": "acc"}], "",
     ["column metric: found several values for task t, expected one"]),
    ([*GOOD, LAST | {"lr": 1}, LAST | {"item": 3, "lr": 2}], "", ["column lr: found several"]),
    (changed(split="train"), "", ["column split: found 'train' in 4 rows, first row 1, expected"]),
    (changed(seed=1e17), "", ["column seed: found '1e+17' in 4 rows"]),
    (changed(lr="fast"), "", ["column lr: found 'fast' in 4 rows"]),
    (changed(task="../"), "", ["column task: found '' in 4 rows"]),
    ([*GOOD, *changed(task="u")], "", ["--task: found t, u, expected the one", "--task t or u"]),
    (GOOD, "--task u", ["task u: found no scores, expected one of t"]),
    (GOOD, "--retention t", ["--task: found none, expected the one task"]),
    (GOOD, "--map score=acc", ["--map score=acc: found no column 'acc'", "found no column score"]),
    (GOOD, "--map scor=score", ["--map scor=score: found 'scor', expected one of arm, seed"]),
    ([*GOOD, GOOD[3], LAST | {"score": "high", "rank": "x"}], "--retention kept --map lrr=seed",
     ["found 5 faults", "'lrr'", "found 'high'", "found 'x'", "1 more rows", "task kept: found"]),
]  # fmt: skip


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
