"""What models wrote: equal to transformers' own greedy answers, stored for every trial, shown."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import opened
from command_line import write_rows
from peft import PeftModel
from playwright.sync_api import Browser
from pocket_study import loaded, small_study
from transformers import AutoModelForCausalLM, AutoTokenizer

import rankscope
from rankscope.config.loader import study_values
from rankscope.config.study import StudyConfig
from rankscope.data.registry import named_tasks
from rankscope.extensions.answers import WRITTEN_ANSWERS
from rankscope.extensions.answers.record import AnswersRecord
from rankscope.models.model_folder import pocket_folder
from rankscope.records import StudyRecords, TrialRecords
from rankscope.run.outputs import write_outputs
from rankscope.run.study import Study
from rankscope.store import weights_path

HOSTILE = "<img src=x onerror=alert(1)></script>\u202e"
TOKENS = 12


def asked_of_pocket() -> list[tuple[str, str]]:
    """(question, answer) in the pocket model's words."""
    files, _ = named_tasks()["pocket_med"].read()
    rows = [row.fields for row in files["train"][:120]]
    return [(row["question"], row["choices"][row["answer"]]) for row in rows]


@dataclass(frozen=True)
class Written:
    study: Study
    out: Path
    records: StudyRecords

    def record(self, trial: TrialRecords) -> AnswersRecord:
        found = trial.analysis(AnswersRecord)
        assert found is not None
        return found


def ran(folder: Path, rows: list[Any], **changes: Any) -> Written:
    file = folder / "rows.jsonl"
    write_rows(file, rows)
    settings: dict[str, Any] = {
        "tasks": [{"name": "mine", "train": str(file)}],
        "seeds": [0],
        "evaluate": {"retention": ["pocket_general"], "max_items": 16, "max_new_tokens": TOKENS},
    }
    study = small_study(folder, **(settings | changes))
    study.run(folder / "out")
    return Written(study, folder / "out", loaded(folder / "out"))


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A study of prompts with free answers: two ranks in a group, and full fine-tuning."""
    rows = [{"prompt": question, "completion": answer} for question, answer in asked_of_pocket()]
    return ran(tmp_path_factory.mktemp("chats"), rows)


def greedy(model: Any, prompt: str) -> str:
    tokenizer = AutoTokenizer.from_pretrained(pocket_folder())
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.inference_mode():
        found = model.generate(ids, do_sample=False, max_new_tokens=TOKENS)[0, ids.shape[1] :]
    text = tokenizer.decode(found, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text).partition("\nQuestion:")[0]


def test_every_model_writes_what_transformers_would(chats: Written) -> None:
    base = AutoModelForCausalLM.from_pretrained(pocket_folder(), dtype=torch.float32)
    before = None
    assert [trial.spec.is_full for trial in chats.records.trials] == [False, False, True]
    for trial in chats.records.trials:
        answers = chats.record(trial).answers
        assert [a.task for a in answers] == ["mine"] * 10 + ["pocket_general"] * 4
        weights = chats.out / weights_path(trial.spec)
        if trial.spec.is_full:
            tuned = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
        else:
            tuned = PeftModel.from_pretrained(base, weights)
        assert [a.after for a in answers] == [greedy(tuned, a.prompt) for a in answers]
        base = tuned if trial.spec.is_full else tuned.unload()
        before = before or [greedy(base, a.prompt) for a in answers]
        assert [a.before for a in answers] == before
    assert dict(asked_of_pocket()).items() >= {(a.prompt, a.gold) for a in answers[:10]}


def test_a_text_without_a_prompt_is_continued_from_its_beginning(tmp_path: Path) -> None:
    texts = [f"{question} {answer}\n" * 4 for question, answer in asked_of_pocket()]
    arm = {"method": "lora", "rank": 2, "lr": 2e-3}
    found = ran(tmp_path, [{"text": text} for text in texts], arms=[arm])
    (trial,) = found.records.trials
    base = AutoModelForCausalLM.from_pretrained(pocket_folder(), dtype=torch.float32)
    for answer in found.record(trial).answers[:10]:
        whole = answer.prompt + answer.gold
        assert whole in texts
        assert 0.3 * len(whole) < len(answer.prompt) <= len(whole) // 2 + 1
        assert answer.gold.startswith(" ")
        assert answer.before == greedy(base, answer.prompt)


def test_answers_are_made_up_for_and_are_no_part_of_a_trial(chats: Written, tmp_path: Path) -> None:
    """The same trials without answers first: a run with answers trains nothing again."""
    rows = [{"prompt": question, "completion": answer} for question, answer in asked_of_pocket()]
    arm = {"method": "lora", "rank": 2, "lr": 2e-3}
    off = {"answers": {"enabled": False}}
    without = ran(tmp_path, rows, arms=[arm], analyze=off)
    assert [t.analysis(AnswersRecord) for t in without.records.trials] == [None]
    again = ran(tmp_path, rows, arms=[arm])
    (trial,) = again.records.trials
    assert trial.train == without.records.trials[0].train
    (first, *_) = chats.records.trials
    assert again.record(trial).answers == chats.record(first).answers


def test_answers_that_are_scored_or_chosen_are_not_written_again(tmp_path: Path) -> None:
    arms = [{"method": "lora", "rank": 2, "lr": 2e-3}]
    study = small_study(tmp_path, arms=arms, seeds=[0])
    assert study.plan().stages["answers"] == 0
    (trial,) = study.run(tmp_path / "out").trials
    assert trial.analysis(AnswersRecord) is None
    write_outputs(tmp_path / "out")
    assert "What the models wrote" not in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_a_plan_counts_an_answer_as_long_as_it_may_be(chats: Written) -> None:
    long, short = chats.study.config, chats.study.config.model_copy(deep=True)
    short.evaluate.__dict__["max_new_tokens"] = 1
    times = [Study(config).plan(device="h100").stages["answers"] for config in (long, short)]
    assert times[0] > times[1] > 0


def test_shards_and_given_models_write_none(chats: Written) -> None:
    values = study_values(chats.study.config)
    assert WRITTEN_ANSWERS.is_enabled(chats.study.config)
    sharded = values | {"train": values["train"] | {"devices": 2}}
    assert not WRITTEN_ANSWERS.is_enabled(StudyConfig.model_validate(sharded))
    given = values | {"given": ["./adapter"]}
    assert not WRITTEN_ANSWERS.is_enabled(StudyConfig.model_validate(given))


def test_the_page_shows_them_beside_each_other_and_escaped(
    chats: Written, browser: Browser
) -> None:
    def hostile(trial: TrialRecords) -> TrialRecords:
        record = chats.record(trial)
        first, *rest = record.answers
        marked = first.model_copy(update={"after": f"{HOSTILE} " * 9, "after_ended": False})
        written = record.model_copy(update={"answers": (marked, *rest)})
        others = tuple(r for r in trial.analyses if r is not record)
        return replace(trial, analyses=(written, *others))

    write_outputs(
        chats.out, replace(chats.records, trials=tuple(map(hostile, chats.records.trials)))
    )
    page_file = chats.out / "report.html"
    for width in (1280, 400):
        with opened(browser, page_file, viewport={"width": width, "height": 800}) as shown:
            page = shown.page
            assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
            texts = page.query_selector_all("#answers .texts li")
            assert len(texts) == 14
            assert "14 test items (10 of mine and 4 of pocket_general)" in page.inner_text(
                "#answers"
            )
            folded = page.query_selector("#answers .texts summary")
            assert "<img src=x onerror=alert(1)>" in folded.inner_text()
            assert folded.inner_text().endswith("[cut]")
            heights = [folded.bounding_box()["height"]]
            folded.click()
            heights.append(folded.bounding_box()["height"])
            assert heights[0] < heights[1]
            boxes = [box.bounding_box() for box in texts[1].query_selector_all("div")]
            before, after = boxes[2:]
            assert (before["y"] == after["y"]) == (width == 1280)
            assert shown.complaints == shown.requests == []


def test_they_are_a_table_too(chats: Written) -> None:
    table = rankscope.load(chats.out).analyses["answers"]
    assert len(table) == 14 * 3
    assert {"arm", "task", "prompt", "gold", "before", "after"} <= set(table.columns)
