"""The page of a study: offline, inert whatever the data say, honest where data are missing."""

import gzip
import hashlib
import json
import re
from base64 import b64decode
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from html_elements import Elements
from plotly.offline import get_plotlyjs_version
from report_studies import (
    HOSTILE,
    MEGABYTE,
    hostile_study,
    ordinary_study,
    study_and_advice,
    with_results,
)
from synthetic_study import Truth, synthetic_study, with_trials

from rankscope.advise.recommend import recommend
from rankscope.formatting import NATS, POINTS
from rankscope.records import BASE, Recommendation, StudyRecords
from rankscope.report.answer import answer_html
from rankscope.report.page import _packed_plotly as packed_plotly
from rankscope.report.study_page import (
    MARKS,
    Outcome,
    _compared_items as compared_items,
    _fair_choice as fair_choice,
    _outcome_of as outcome_of,
    _yaml_text as yaml_text,
    render_study,
)
from rankscope.report.study_view import StudyView

# Where a page could make the browser ask for something.
ASKING = "src href srcset data action formaction poster background xlink:href".split()


def page_of(study: StudyRecords, advice: Recommendation) -> str:
    return render_study(StudyView(study, advice))


@pytest.fixture(scope="module")
def page() -> str:
    return page_of(*ordinary_study())


@pytest.fixture(scope="module")
def attacked() -> str:
    return page_of(*hostile_study())


def test_the_page_names_no_address_and_carries_plotly_once(page: str) -> None:
    assert len(page.encode()) < 2_000_000
    elements = Elements(page)
    asked = [
        value
        for _, attributes in elements.tags
        for key, value in attributes.items()
        if key in ASKING and not (value or "").startswith(("#", "data:,"))
    ]
    assert asked == []
    assert page.count(packed_plotly()) == 1
    own = page.replace(packed_plotly(), "")
    assert not re.search(r"https?://|url\(|@import", own)
    policy = next(a["content"] for t, a in elements.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert "unsafe-eval" not in policy


def test_the_answer_stands_before_every_other_section(page: str) -> None:
    _, advice = ordinary_study()
    text = Elements(page).text
    places = [text.index(f"{a.verdict} {a.summary}") for a in advice.advice]
    assert places == sorted(places)
    assert places[-1] < text.index("Learning and retention, med")
    for task in advice.advice:
        for reason in task.reasons:
            assert " ".join(reason.text.split()) in text


def test_every_check_is_on_the_page_and_an_open_one_is_marked_and_explained(page: str) -> None:
    _, advice = ordinary_study()
    elements = Elements(page)
    marked = [a["aria-label"] for tag, a in elements.tags if tag == "i" and "aria-label" in a]
    checks = [check for task in advice.advice for check in task.checks]
    assert marked == [check.status for check in checks if check.status != "fine"]
    for check in checks:
        assert check.value in elements.text
        assert check.status == "fine" or check.text in elements.text


def test_failed_trials_and_provenance_are_on_the_page(page: str) -> None:
    study, _ = ordinary_study()
    text = Elements(page).text
    assert text.count("simulated: diverged at step 7") == 2
    assert f"2 of {len(study.trials)} runs ended without a result" in text
    assert study.provenance.created in text
    assert study.model.sha256 in text
    assert "gradient_accumulation: 4" in text


def test_hostile_text_adds_no_element_and_no_attribute(page: str, attacked: str) -> None:
    harmless, hostile = Elements(page), Elements(attacked)
    tags = Counter(tag for tag, _ in hostile.tags)
    # Two notes and their list.
    assert tags - Counter(tag for tag, _ in harmless.tags) <= Counter(ul=1, li=2, h3=1)
    keys = {key for _, attributes in hostile.tags for key in attributes}
    assert keys <= {key for _, attributes in harmless.tags for key in attributes}
    assert "<img src=x" in hostile.text
    assert "\u202e" not in hostile.text
    assert "[U+202E]" in hostile.text
    assert "{{ 7 * 7 }}" in hostile.text


def test_hostile_text_cannot_leave_its_script_element(attacked: str) -> None:
    own = attacked.replace(packed_plotly(), "")
    blocks = re.findall(r'<script type="application/json" id="([\w-]+)">(.*?)</script>', own, re.S)
    assert [key for key, _ in blocks] == ["figures", "dark-colors", "item-data"]
    for _, text in blocks:
        json.loads(text)
        assert not set(text) & set("<>&\u2028\u2029\u202e")
    assert "\u202e" not in own
    assert "\x00" not in own


def test_markup_in_names_is_inert_inside_the_plots(attacked: str) -> None:
    block = json.loads(re.search(r'id="figures">(.*?)</script>', attacked, re.S)[1])
    # Plotly understands a few tags; the report itself writes these.
    left = set(re.findall(r"<[^>]*>?", json.dumps(block, ensure_ascii=False)))
    assert left <= {"<b>", "</b>", "<br>", "<extra>", "</extra>"}


def test_yaml_shows_the_study_file_and_cuts_values() -> None:
    shown = yaml_text({"name": "s", "arms": [{"rank": [2, 8], "lr": [1e-3]}], "note": MEGABYTE})
    assert shown.startswith("name: s\narms:\n- rank:\n  - 2\n  - 8\n")
    assert len(shown) < 1000
    assert "\u202e" not in yaml_text({"text": HOSTILE})


def base_alone(study: StudyRecords) -> StudyRecords:
    kept = {key: e for key, e in study.evals.items() if key[0] == BASE}
    items = {key: i for key, i in study.items.items() if key[0] == BASE}
    study = replace(study, evals=kept, items=items)
    return with_trials(study, lambda t: replace(t, status="planned", train=None, analyses=()))


@pytest.mark.parametrize(
    ("fields", "change", "sentence"),
    [
        ({}, base_alone, "Not decided yet. No run has finished."),
        ({}, lambda study: replace(base_alone(study), trials=()), "Nothing was trained."),
        ({}, None, "How far seeds are apart is assumed for it, not measured."),
        ({"contamination": 2}, None, "Some test rows are also in the training rows"),
        ({"retention": ()}, None, "The study has no retention task. Add one to the study file."),
        ({"metric": "log_probability"}, None, "nats per token"),
        ({"ranks": ()}, None, "No configuration with a known rank has a test score"),
    ],
)
def test_what_is_missing_is_said_plainly(
    fields: dict[str, Any], change: Callable[[StudyRecords], StudyRecords] | None, sentence: str
) -> None:
    study = synthetic_study(Truth(num_items=20, seeds=(0,), **fields))
    study = change(study) if change else study
    text = Elements(page_of(study, recommend(study))).text
    assert sentence in text
    for word in ("nan", "None of type", "Undefined", "NoneType"):
        assert not re.search(rf"\b{word}\b", text)


def test_the_packed_plotly_is_the_file_its_note_names() -> None:
    """The bundle draws what the installed package describes, so their major versions are equal."""
    folder = files("rankscope.report") / "plotly"
    unpacked = gzip.decompress(b64decode(packed_plotly()))
    note = (folder / "README.md").read_text("utf-8")
    assert hashlib.sha256(unpacked).hexdigest() in note
    (version,) = re.findall(rb"plotly.js \(cartesian - minified\) v([\d.]+)", unpacked[:200])
    assert f"plotly.js-cartesian-dist-min` {version.decode()} " in note
    assert version.decode().split(".")[0] == get_plotlyjs_version().split(".")[0]


def test_the_card_alone_is_a_piece_of_html_with_its_own_styles(view: StudyView) -> None:
    card = answer_html(view)
    assert ":root" not in card  # a notebook keeps its own colors
    assert "<script" not in card
    assert "orgetting," not in card  # what was lost is below zero, never a forgetting


KINDS: tuple[Outcome, ...] = ("gained", "lost", "kept", "missed")


def test_ten_are_chosen_in_proportion_and_at_even_steps() -> None:
    """100 items, of which 60, 20, 10 and 10: 6, 2, 1 and 1, each in the middle of its share."""
    outcomes = [*["gained"] * 60, *["lost"] * 20, *["kept"] * 10, *["missed"] * 10]
    assert fair_choice(outcomes) == [5, 15, 25, 35, 45, 55, 65, 75, 85, 95]  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_every_outcome_is_shown_and_none_twice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet([0.3] * 4)
    outcomes = [KINDS[k] for k in rng.choice(4, size=int(rng.integers(1, 80)), p=weights)]
    chosen = fair_choice(outcomes)
    assert len(set(chosen)) == len(chosen) == min(10, len(outcomes))
    if len(outcomes) >= 4:
        assert {outcomes[i] for i in chosen} == set(outcomes)
    for kind in KINDS:
        share = 10 * outcomes.count(kind) / len(outcomes)
        # Rounding moves a share by less than one, and making room for rare outcomes by up to three.
        assert sum(outcomes[i] == kind for i in chosen) <= max(1, share + 1) or len(outcomes) < 10


def test_outcomes_by_right_and_wrong_and_by_shown_log_probability() -> None:
    assert [outcome_of(*pair, POINTS) for pair in ((0, 1), (1, 0), (1, 1), (0, 0))] == list(KINDS)
    pairs = ((-2.0, -1.0), (-1.0, -2.0), (-1.0, -1.0004))
    assert [outcome_of(*pair, NATS) for pair in pairs] == ["gained", "lost", "kept"]


def test_every_item_of_the_trained_and_the_retention_task_has_all_answers() -> None:
    truth = Truth(num_items=60, accuracy=lambda rank, lr: 0.8 if rank else 0.5)
    study, advice = study_and_advice(truth)
    view = StudyView(with_results(study), advice)
    arm = view.focus("med")
    trained, retained = compared_items(view, "med", 10**6)
    assert [trained.tested_on, retained.tested_on] == ["med", "general"]
    trial = next(t for t in view.trials(arm) if t.status == "done")
    before = view.study.results[BASE, "med", "test"]
    after = view.study.results[trial.spec.trial_id, "med", "test"]
    full = next(t for t in view.trials(view.best_full("med")) if t.status == "done")
    beside = view.study.results[full.spec.trial_id, "med", "test"]
    assert trained.names == (
        "base",
        f"recommended: {arm.label}, seed {trial.spec.seed}",
        f"best full: {full.spec.arm_label}, seed {full.spec.seed}",
    )
    assert [(p.prompt, *p.answers) for p in trained.pairs] == [
        (
            items[0].prompt.strip(),  # type: ignore[union-attr]
            *(f"{MARKS[item.score >= 0.5]}{item.prediction.strip()}" for item in items),
        )
        for items in zip(before, after, beside, strict=True)
    ]
    gained = sum(b.score < a.score for b, a in zip(before, after, strict=True))
    assert f"{gained} gained (wrong before, right after)" in trained.note
    assert f"{arm.label}, seed {trial.spec.seed}" in trained.note
    assert len(trained.shown) == 10
    assert "left out" not in trained.note


def test_what_does_not_fit_is_left_out_at_even_steps_and_said(view: StudyView) -> None:
    whole, _ = compared_items(view, "med", 10**6)
    part, _ = compared_items(view, "med", 5000)
    assert 10 < len(part.pairs) < len(whole.pairs)
    places = [whole.pairs.index(pair) for pair in part.pairs]
    assert set(np.diff(places)) <= {1, 2}
    size = sum(len("".join((p.prompt, p.gold, *p.answers))) for p in part.pairs)
    assert size <= 2500
    assert f"covers {len(part.pairs)} of the items" in part.note
    assert compared_items(view, "med", 0)[0].pairs == ()


def test_without_stored_texts_there_is_nothing_to_compare() -> None:
    study, advice = study_and_advice(Truth(num_items=20))
    assert compared_items(StudyView(study, advice), "med", 10**6) == []
    study, advice = study_and_advice(Truth(num_items=20, metric="log_probability"))
    (trained, *_) = compared_items(StudyView(with_results(study), advice), "med", 10**6)
    assert all(pair.answers[0].startswith("wrong") for pair in trained.pairs)
