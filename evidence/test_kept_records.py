"""Kept records hold the numbers of a study, none of its rows and no folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kept_records import keep_records, kept_study, without_examples, without_folders
from rankscope.advise.arms import summarize_arms
from rankscope.advise.evidence import measure
from rankscope.advise.retention import net_parts
from rankscope.advise.value import Untried, with_untried
from rankscope.records import Prompt

RECORDS = Path(__file__).parent / "records"
BESIDE: tuple[Untried, ...] = (  # r=1 and r=256
    ("lora", (0.0, 10.0, -2.774)),
    ("lora", (8.0, 10.0, -0.968)),
)


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


def test_errors_beside_untried_arms_are_a_covariance_in_a_real_study() -> None:
    """Arms beside those of maths-grid, on its two tasks."""
    study = kept_study(RECORDS / "maths-grid")
    arms = [arm.trials for arm in summarize_arms(study)["gsm8k"]]
    for part in net_parts(study, "gsm8k"):
        measured = measure(study, part, arms)
        assert measured is not None
        more = with_untried(measured, BESIDE, len(arms)).changes.item_covariance
        assert len(more) == len(measured.places) + len(BESIDE)
        sizes = np.linalg.eigvalsh(more)
        assert sizes[0] > -1e-12 * sizes[-1]
