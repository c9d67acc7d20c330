"""``rankscope compare`` on real studies of the pocket model: what is the same is said in words."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import files_below, rankscope as command
from pocket_study import UNANALYZED, changed, rewrite_rows, small_study
from synthetic_study import Truth, synthetic_study

from rankscope.records import StudyRecords
from rankscope.tools.compare import _StudyPair as StudyPair, compare, compare_studies, differences

LORA = {"method": "lora", "lr": 2e-3}
SHORT = changed("train", max_steps=2)["train"]
SMALL = {
    "seeds": [0],
    "train": SHORT,
    "analyze": UNANALYZED,
    "evaluate": {"retention": ["pocket_cloze"], "max_items": 8},
}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``a`` and ``b`` share rank 4; ``c`` has other items; ``d`` shares no arm with ``a``."""
    folder = tmp_path_factory.mktemp("compared")
    evaluate = {**SMALL["evaluate"], "max_items": 6}  # type: ignore[dict-item]
    asked: dict[str, dict[str, object]] = {
        "a": {"arms": [{**LORA, "rank": [2, 4]}]},
        "b": {"arms": [{**LORA, "rank": [4, 8]}], "train": {**SHORT, "max_steps": 3}},
        "c": {"arms": [{**LORA, "rank": 4}], "evaluate": evaluate},
        "d": {"arms": [{"method": "full", "lr": 5e-4}]},
    }
    for name, settings in asked.items():
        small_study(folder, name=name, **{**SMALL, **settings}).run(folder / name)
    return folder


def stored(folder: Path) -> dict[str, bytes]:
    """Every file below by what it holds, but for what SQLite makes to read beside a writer."""
    return {
        name: (folder / name).read_bytes()
        for name in files_below(folder)
        if (folder / name).is_file() and not name.endswith(("-wal", "-shm"))
    }


def test_what_is_the_same_and_what_differs(studies: Path) -> None:
    before = stored(studies)
    shown = command("compare", studies / "a", studies / "b")
    assert shown.code == 0, shown
    assert stored(studies) == before
    told = shown.told
    for part in (
        "max steps 2 and 3",
        "compared item by item",
        "0 of 1 of the same arm and seed have the same id",
        "only in a: pocket_med r=2 lr=0.002",
        "only in b: pocket_med r=8 lr=0.002",
        "trained on pocket_med",
    ):
        assert part in told, shown.out
    assert max(map(len, shown.out.splitlines())) <= 80


def test_json_has_all_of_it_and_further_studies_meet_the_first(studies: Path) -> None:
    shown = command("compare", *(studies / name for name in "abc"), "--json")
    assert shown.code == 0, shown
    found = json.loads(shown.out)
    assert found["schema_version"] == 1
    assert [s["label"] for s in found["studies"]] == ["a", "b", "c"]
    assert [(p["first"], p["second"]) for p in found["pairs"]] == [("a", "b"), ("a", "c")]
    assert all(c["paired"] for c in found["pairs"][0]["cells"])
    other = found["pairs"][1]
    assert not any(c["paired"] for c in other["cells"])
    # Six items are not eight, so the task is another one; the training is the very same.
    assert any(f["what"] == "task pocket_med" and not f["same"] for f in other["facets"])
    assert [c["same_models"] for c in other["cells"] if c["arm"]] == [True, True]
    assert {c["arm"] for c in other["cells"]} == {None, "r=4 lr=0.002"}


def test_no_arm_in_common_is_said(studies: Path) -> None:
    shown = command("compare", studies / "a", studies / "d")
    assert shown.code == 0
    assert "The studies have no arm in common, so no arm is compared." in shown.told
    assert "bases, untuned" in shown.told


def test_a_page_is_written_and_names_no_address(studies: Path, tmp_path: Path) -> None:
    page = tmp_path / "compared.html"
    assert command("compare", studies / "a", studies / "b", "--out", page).code == 0
    text = page.read_text("utf-8")
    assert "default-src 'none'" in text
    assert "b minus a, arms trained on pocket_med" in text
    assert "max steps 2 and 3" in text
    assert str(studies) not in text
    assert "<dt>a</dt><dd>a</dd>" in text
    refused = command("compare", studies / "a", studies / "b", "--out", tmp_path)
    assert refused.code == 2
    assert "expected a file in an existing folder" in refused.told


def test_a_copy_under_the_same_name_is_told_by_its_folder(studies: Path, tmp_path: Path) -> None:
    shutil.copytree(studies / "a", tmp_path / "copy")
    found = compare([studies / "a", tmp_path / "copy"])
    assert [s.label for s in found.studies] == ["a", "copy"]
    (pair,) = found.pairs
    assert all(facet["same"] for facet in pair.facets), pair.facets
    assert all(cell.same_models and cell.difference.value == 0 for cell in pair.cells)
    told = " ".join(command("compare", studies / "a", tmp_path / "copy").told.split())
    assert "are of the very same models" in told


def paired(first: StudyRecords, second: StudyRecords) -> StudyPair:
    studies = [("a", Path("a"), first), ("b", Path("b"), second)]
    return compare_studies(studies).pairs[0]


def test_what_cannot_be_compared_is_refused(studies: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copytree(studies / "a", tmp_path / "begun")
    rewrite_rows(tmp_path / "begun", "UPDATE trials SET status = 'planned'")
    link = tmp_path / "link"
    link.symlink_to(studies / "a")
    for folders, part in (
        (("a",), "found 1 study folder, expected two or more"),
        (("a", "a"), "are the same folder"),
        (("a", link), "are the same folder"),
        (("a", tmp_path / "empty"), "found no study here"),
        (("a", tmp_path / "absent"), "found no study here"),
        (("a", tmp_path / "begun"), "none of its 2 trials has finished"),
    ):
        refused = command("compare", *(studies / folder for folder in folders))
        assert refused.code == 2, refused
        assert part in refused.told
        assert refused.out == ""


def test_a_study_that_is_not_finished_says_how_much_is_left(studies: Path, tmp_path: Path) -> None:
    shutil.copytree(studies / "a", tmp_path / "half")
    rewrite_rows(tmp_path / "half", "UPDATE trials SET status = 'planned' WHERE position = 0")
    notes = compare([studies / "b", tmp_path / "half"]).pairs[0].notes
    assert notes == ("a: 1 of 2 trials have not run yet and are not counted.",)


def test_a_page_replaces_neither_a_study_nor_a_pipe(studies: Path, tmp_path: Path) -> None:
    before, pipe = stored(studies), tmp_path / "pipe"
    os.mkfifo(pipe)
    for place, message in (
        (studies / "b" / "ledger.sqlite", "inside the study"),
        (studies / "a" / "new.html", "inside the study"),
        (pipe, "expected a file in an existing folder"),
    ):
        shown = command("compare", studies / "a", studies / "b", "--out", place)
        assert (shown.code, message in shown.told) == (2, True), shown
    assert pipe.is_fifo()
    assert stored(studies) == before


def test_differing_fields_are_named_in_words() -> None:
    one = {"rows": {"train": 512, "test": 60}, "quantize": None, "parts": ("a", "b"), "kept": 1}
    two = {"rows": {"train": 256, "test": 60}, "quantize": "4bit", "parts": (), "kept": 1}
    assert differences(one, two) == (
        "rows train 512 and 256; quantize none and 4bit; parts a, b and none"
    )
    assert differences({"packed": True}, {"packed": False}) == "packed true and false"


def test_scores_that_cannot_be_subtracted_are_said_to_be_so() -> None:
    study = synthetic_study(Truth(ranks=(8,), num_items=30))
    tasks = tuple(t.model_copy(update={"metric": "exact_match"}) for t in study.tasks)
    pair = paired(study, replace(study, tasks=tasks))
    assert pair.cells == ()
    told = [str(f["text"]) for f in pair.facets if str(f["what"]).startswith("task ")]
    assert len(told) == len(tasks)
    assert all(text.endswith("not comparable, so no score is compared") for text in told)
