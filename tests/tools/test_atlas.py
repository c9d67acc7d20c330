"""``rankscope atlas``: every study is on the page with its own figures, and a reader can filter."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from browser import Opened, opened
from command_line import files_below
from command_line import rankscope as command
from playwright.sync_api import Browser
from report_studies import HOSTILE
from synthetic_study import Truth, synthetic_study

import rankscope
from rankscope.advise.recommend import recommend
from rankscope.records import BASE, ItemResult, Prompt, StudyRecords
from rankscope.tools.atlas import AtlasRow, read_atlas, render_atlas
from rankscope.tools.kept_records import (
    keep_records,
    kept_study,
    without_examples,
    without_folders,
)

PHONE = {"width": 400, "height": 800}
WIDE = {"width": 1280, "height": 900}
FINDINGS = Path(__file__).parents[2] / "docs" / "findings"


def simulated(name: str, model: str, truth: Truth, seed: int = 0) -> StudyRecords:
    study = synthetic_study(truth, seed)
    results = {
        key: [
            ItemResult(item_id, subject, score, "the gold text", "", gold_logprob=p, gold_tokens=1)
            for item_id, subject, score, p in zip(
                of.item_ids, of.subjects, of.scores, of.gold_logprobs, strict=True
            )
        ]
        for key, of in study.items.items()
    }
    own = study.model.model_copy(update={"label": model, "sha256": f"{model}-sha256"})
    return replace(study, name=name, model=own, results=results)


SMALL = Truth(num_items=40, cross=())


def studies() -> list[StudyRecords]:
    """Two bases; two training tasks, one, log probabilities; nothing trained, nothing scored."""
    two = Truth(ranks=(2, 8, 32, 128), tasks=("med", "law"), num_items=40, cross=())
    nats = replace(SMALL, metric="log_probability", chance=None, full_lrs=())
    first = simulated("first", "alpha", SMALL)
    untrained = replace(
        first,
        name="untrained",
        trials=(),
        tasks=tuple(task.model_copy(update={"trained_on": False}) for task in first.tasks),
        evals={key: record for key, record in first.evals.items() if key[0] == BASE},
        results={key: items for key, items in first.results.items() if key[0] == BASE},
    )
    unscored = replace(first, name="unscored", evals={}, results={})
    return [
        first,
        simulated("second", "alpha", replace(SMALL, ranks=(4, 16, 64)), seed=1),
        simulated("two tasks", "beta", two, seed=2),
        simulated("nats", "beta", nats, seed=3),
        untrained,
        unscored,
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    parent = tmp_path_factory.mktemp("kept")
    found = [(parent / str(number), study) for number, study in enumerate(studies())]
    for folder, study in found:
        keep_records(study, folder)
    return [folder for folder, _ in found]


@pytest.fixture(scope="module")
def rows(folders: list[Path]) -> list[AtlasRow]:
    return read_atlas(folders, folders[0].parent / "page.html")


def test_every_study_is_there_and_every_answer_with_its_own_figures(
    rows: list[AtlasRow], folders: list[Path]
) -> None:
    assert {row["folder"] for row in rows} == set(map(str, folders))
    for folder in folders:
        study = kept_study(folder)
        of_study = {row["task"]: row for row in rows if row["folder"] == str(folder)}
        advice = recommend(study).advice
        if not advice:
            (row,) = of_study.values()
            assert (row["task"], row["arm"], row["curve"]) == (None, None, None)
        for answer in advice:
            row = of_study.pop(answer.task)
            assert row["verdict"] == answer.verdict
            assert row["p_within_margin"] == answer.p_within_margin
            assert row["arm"] == answer.subject_label
            arms = {arm.label: arm for arm in answer.arms}
            if (arm := arms.get(str(row["arm"]))) is None or arm.expected is None:
                assert row["curve"] is None
                continue
            of = arm.expected
            assert row["expected_net_gain"] == of.net.value
            assert row["expected_gain"] == of.changes[answer.task].value
            assert row["expected_retention_change"] == -of.forgetting.value
            assert row["score"] == (arm.score and arm.score.value)
            curve: Any = row["curve"]
            scale = 1.0 if curve["unit"] == "nats per token" else 100.0
            for line in curve["lines"]:
                assert [point[0] for point in line["points"]] == sorted(
                    {arms[point[5]].rank for point in line["points"]}
                )
                for rank, net, low, high, p, label in line["points"]:
                    of = arms[label].expected
                    assert (rank, p) == (arms[label].rank, of.p_within_margin)
                    ends = (of.net.value, of.net.low, of.net.high)
                    assert (net, low, high) == tuple(scale * end for end in ends)
            best = max(
                (of.expected.net.value, of.rank)
                for of in arms.values()
                if of.is_lora and of.expected
            )
            assert row["best_rank"] == best[1]
    assert sum(row["arm"] is None for row in rows) == 2


def test_what_was_trained_is_counted_once(rows: list[AtlasRow], folders: list[Path]) -> None:
    study = kept_study(folders[2])
    (row,) = [r for r in rows if r["study"] == "two tasks" and r["task"] == "law"]
    trained = [t.train for t in study.trials if t.spec.task == "law" and t.train]
    assert row["tokens_trained"] == sum(record.num_tokens for record in trained)
    assert (row["done"], row["trials"]) == (len(trained), len(trained))


def test_a_study_and_its_records_give_the_same_rows(exportable: Any, tmp_path: Path) -> None:
    kept, page = tmp_path / "kept", tmp_path / "atlas.html"
    told = command("report", exportable.out, "--records", kept)
    assert told.code == 0, told.err
    assert files_below(kept) == {"study.json", "items.parquet", "records.parquet"}
    shown = command("atlas", exportable.out, kept, "--out", page, "--json")
    assert shown.code == 0, shown.err
    of_study, of_records = json.loads(shown.out)
    study = rankscope.load(exportable.out)
    (answer,) = study.recommendation.advice
    arms = study.arms.set_index("arm")
    for row in (of_study, of_records):
        assert row["verdict"] in repr(study.answer)
        assert row["p_within_margin"] == pytest.approx(answer.p_within_margin, abs=1e-3)
        for name in ("expected_net_gain", "expected_net_gain_low", "score", "retention_change"):
            # The records hold scores in float32; half a unit in its last place is 6e-8 of a score.
            assert row[name] == pytest.approx(arms.loc[row["arm"], name], rel=1e-5, abs=1e-6)
    assert (page.parent / of_study["page"]).resolve() == exportable.out / "report.html"
    assert of_records["page"] is None
    assert f'href="{of_study["page"]}"' in page.read_text("utf-8")


def test_the_name_of_a_folder_makes_no_other_link(exportable: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(exportable.out, tmp_path / "javascript:alert(1)")
    (row,) = read_atlas([folder], tmp_path / "atlas.html")
    assert row["page"] == "javascript%3Aalert%281%29/report.html"


def test_records_hold_no_text_of_a_row_and_no_folder(exportable: Any, tmp_path: Path) -> None:
    keep_records(exportable.records, tmp_path / "kept")
    texts = {
        text
        for items in exportable.records.results.values()
        for item in items
        for text in (item.prompt, item.generated)
        if text and len(text) > 20
    }
    stored = (tmp_path / "kept" / "study.json").read_text("utf-8")
    for table in ("records", "items"):  # Bytes of a file would be compressed
        cells = pd.read_parquet(tmp_path / "kept" / f"{table}.parquet").astype(str).to_numpy()
        stored += "\n".join(cells.ravel())
    assert texts
    assert not any(text in stored for text in texts)
    assert str(exportable.out.parent) not in stored


def test_examples_of_a_prompt_and_folders_are_left_out(exportable: Any) -> None:
    prompt = Prompt(
        system="Be brief.", num_fewshot=1, examples=(("t", "a question", "its answer"),)
    )
    spec = exportable.records.trials[0].spec.model_copy(update={"prompt": prompt})
    kept = without_examples(spec)
    assert (kept.prompt.examples, kept.prompt.system) == ((), "Be brief.")
    assert (kept.trial_id, kept.arm_label) == (spec.trial_id, spec.arm_label)
    for text, rest in (
        ("/home/me/secret project/rows.jsonl", "rows.jsonl"),
        ("~/secret/x.jsonl", "x.jsonl"),
        ("../secret/x", "x"),
        ("file:///home/me/x", "x"),
        ("C:\\Users\\me\\x", "x"),
        ("found /home/me/x: broken", "found x: broken"),
        ("{question}</b>/x/", "{question}</b>/x/"),
        ("tasks/arc and more", "tasks/arc and more"),
    ):
        assert without_folders([text]) == [rest], text


def test_every_folder_that_cannot_be_used_is_named_and_nothing_is_written(
    folders: list[Path], exportable: Any, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("cut", "foreign", "itemless"):
        shutil.copytree(folders[0], tmp_path / name)
    table = tmp_path / "cut" / "items.parquet"
    table.write_bytes(table.read_bytes()[:-20])
    (tmp_path / "foreign" / "study.json").write_text('{"name": "theirs"}')
    shutil.copy(folders[5] / "items.parquet", tmp_path / "itemless")
    altered = shutil.copytree(exportable.out, tmp_path / "altered")
    item_table = next(altered.glob("artifacts/base/items/*.test.parquet"))
    item_table.chmod(0o644)
    item_table.write_bytes(item_table.read_bytes() + b" ")
    bad = [tmp_path / n for n in ("nowhere", "empty", "cut", "foreign", "itemless", "altered")]
    page = tmp_path / "atlas.html"
    shown = command("atlas", folders[0], *bad, folders[0], "--out", page)
    assert shown.code == 2, shown
    assert "7 folders of 8 that cannot be used" in shown.told
    assert all(str(folder) in shown.told for folder in bad)
    assert "the same folder again" in shown.told
    assert not page.exists()
    inside = command("atlas", exportable.out, "--out", exportable.out / "atlas.html")
    assert (inside.code, "inside the study" in inside.told) == (2, True)
    assert command("atlas", folders[0], "--out", tmp_path / "no" / "atlas.html").code == 2


def test_the_committed_atlas_has_every_committed_record() -> None:
    page = (FINDINGS / "atlas.html").read_text("utf-8")
    names = {path.parent.name for path in FINDINGS.glob("records/*/study.json")}
    assert set(re.findall(r"<td>([\w-]+)<small>", page)) == names


# --- the page in a browser ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(rows: list[AtlasRow], folders: list[Path]) -> Path:
    path = folders[0].parent / "page.html"
    path.write_text(render_atlas(rows, kept_study(folders[0]).provenance), "utf-8")
    return path


@pytest.fixture(scope="module")
def shown(browser: Browser, page: Path) -> Iterator[Opened]:
    with opened(browser, page, viewport=WIDE) as found:
        yield found


def lines(rows: Sequence[AtlasRow]) -> list[Any]:
    return [line for row in rows if row["curve"] for line in row["curve"]["lines"]]


def counts(found: Opened) -> tuple[list[str], int, int]:
    """The studies of the visible rows, and how many panels and lines are drawn."""
    visible = "(all) => all.filter((row) => !row.hidden).map((row) => row.cells[0].firstChild.data)"
    names = found.page.eval_on_selector_all(".atlas tbody tr", visible)
    return names, *(len(found.page.query_selector_all(s)) for s in (".panel", ".panel .line"))


def test_the_page_asks_for_nothing_and_draws_every_curve(
    shown: Opened, rows: list[AtlasRow]
) -> None:
    shown.assert_clean(0)
    names, panels, drawn = counts(shown)
    assert names == [row["study"] for row in rows]
    keys = {(r["model"], r["task"], r["curve"]["unit"]) for r in rows if r["curve"]}
    assert (panels, drawn) == (len(keys), len(lines(rows)))
    assert shown.page.query_selector("#plotly").text_content() == ""  # type: ignore[union-attr]
    rings = len(shown.page.query_selector_all(".ring"))
    assert rings == sum(row.get("decision") in ("use", "use_full") for row in rows)
    marks = shown.page.query_selector_all(".line circle:not(.ring), .line rect")
    full = sum(bool(row["curve"] and row["curve"]["full"]) for row in rows)
    assert len(marks) == sum(len(line["points"]) for line in lines(rows)) + full


@pytest.mark.parametrize(
    ("name", "value"), [("model", "beta"), ("task", "law"), ("method", "full"), ("p", "80")]
)
def test_a_filter_leaves_the_rows_that_fit_and_their_curves(
    shown: Opened, rows: list[AtlasRow], name: str, value: str
) -> None:
    fits = {
        "model": lambda row: row["model"] == value,
        "task": lambda row: row["task"] == value,
        "method": lambda row: value in row["methods"],
        "p": lambda row: 100 * (row.get("p_within_margin") or 0) >= float(value),
    }
    left = [row for row in rows if fits[name](row)]
    assert 0 < len(left) < len(rows)
    control = f".filters [name={name}]"
    if name == "p":
        shown.page.fill(control, value)
    else:
        shown.page.select_option(control, value)
    names, _, drawn = counts(shown)
    assert names == [row["study"] for row in left]
    assert drawn == len(lines(left))
    assert shown.page.text_content(".filters [name=found]") == f"{len(left)} of {len(rows)} rows"
    if name == "p":
        shown.page.fill(control, "0")
    else:
        shown.page.select_option(control, "")
    assert counts(shown)[0] == [row["study"] for row in rows]


def test_the_table_sorts_by_probability(shown: Opened, rows: list[AtlasRow]) -> None:
    known = sorted(p for row in rows if (p := row.get("p_within_margin")) is not None)
    shown.page.click(".atlas th:nth-child(5) button")
    cells = shown.page.query_selector_all(".atlas td:nth-child(5)[data-v]")
    assert [float(cell.get_attribute("data-v") or "nan") for cell in cells] == known


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_nothing_is_wider_than_the_screen_whatever_a_study_is_called(
    browser: Browser, rows: list[AtlasRow], page: Path, tmp_path: Path, viewport: Any
) -> None:
    named = [{**row, "study": HOSTILE, "model": HOSTILE} for row in rows]
    path = tmp_path / "hostile.html"
    path.write_text(render_atlas(named, kept_study(page.parent / "0").provenance), "utf-8")
    fits = "(s) => [...document.querySelectorAll(s)].every((e) => e.scrollWidth <= e.clientWidth)"
    for place, boxes in ((page, "html, .atlas, .panel"), (path, "html")):
        with opened(browser, place, viewport=viewport, color_scheme="dark") as found:
            found.assert_clean(0)
            assert found.page.evaluate(fits, boxes)
