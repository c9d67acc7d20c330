"""Named tasks on real rows, and the user's own data from file to items."""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
from hub_copies import paper_hub

from rankscope.config.task import TaskConfig
from rankscope.data.numbers import extract_number
from rankscope.data.registry import named_tasks, overlapping_subjects
from rankscope.data.tasks import LoadedTask, load_task
from rankscope.errors import UserError

# Rows of the files, from SOURCES.md of the data folder: train + validation + test.
FILE_ROWS = {
    "gsm8k": 7473 + 1319,
    "mmlu": 285 + 14042,
    "medmcqa": 3183 + 1000,
    "mathqa": 3860 + 500 + 2919,
    "legal_mcq": 1034 + 729,  # 15 validation rows are too few and unused
    "casehold": 700 + 100 + 200,
    "arc_easy": 2251 + 2376,
    "arc_challenge": 1119 + 1172,
    "openbookqa": 4957 + 500,
    "boolq": 9427 + 3270,
    "piqa": 1838,
}


Load = Callable[..., LoadedTask]


@pytest.fixture(scope="module")
def load(data_dir: Path) -> Load:
    """``load(name, **options)`` reads a named task once per module."""

    @lru_cache
    def read(name: str, **options: object) -> LoadedTask:
        return load_task(TaskConfig(name=name, **options), data_dir, data_seed=0)

    return read


def own_file(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def own(train: str | None, **settings: object) -> LoadedTask:
    return load_task(TaskConfig(name="mine", train=train, **settings), None, 0)


def repeated_out(task: LoadedTask) -> int:
    return sum(int(note.split()[1]) for note in task.notes if "were removed" in note)


@pytest.mark.parametrize("name", FILE_ROWS)
def test_every_row_of_a_named_task_is_used_once_or_accounted_for(name: str, load: Load) -> None:
    task = load(name)
    items = [*task.train, *task.validation, *task.test]
    assert len({item.item_id for item in items}) == len(items)
    assert len(items) + task.dropped + repeated_out(task) == FILE_ROWS[name]
    for item in items:
        assert item.completion.strip()
        assert item.prompt.endswith("Answer:")
        if item.choices:
            assert item.answer is not None
            assert item.reference == item.choices[item.answer]
    assert task.source.endswith(named_tasks()[name].folder or name)


def test_prompts_as_the_model_sees_them(load: Load) -> None:
    arc = load("arc_easy").test[1]
    assert arc.item_id == "arc_easy/test/2"
    assert arc.prompt == (
        "Question: Which piece of safety equipment is used to keep mold spores from entering the "
        "respiratory system?\nAnswer:"
    )
    assert arc.completion == "breathing mask"
    mmlu = load("mmlu").test[0]
    assert mmlu.prompt == (
        "Question: Find the degree for the given field extension Q(sqrt(2), sqrt(3), sqrt(18)) "
        "over Q.\nA. 0\nB. 4\nC. 2\nD. 6\nAnswer:"
    )
    assert (mmlu.completion, mmlu.reference, mmlu.subject) == ("B", "4", "abstract_algebra")
    gsm = load("gsm8k").test[0]
    assert gsm.completion.startswith("Janet sells 16 - 3 - 4 = 9 duck eggs a day.")
    assert gsm.completion.endswith("\n#### 18")
    assert gsm.reference == "18"
    assert all("<<" not in item.completion for item in load("gsm8k").train)
    assert all("??" not in item.prompt for item in load("boolq").test)


def test_chance_is_the_mean_over_the_report_rows(load: Load) -> None:
    arc = load("arc_challenge")
    # 1172 rows: 1165 of four options, 4 of three, 3 of five.
    assert arc.spec.chance == pytest.approx((1165 / 4 + 4 / 3 + 3 / 5) / 1172)
    assert load("gsm8k").spec.chance == 0
    assert load("boolq").spec.chance == 0.5
    assert load("boolq", scorer="contains").spec.chance is None


def test_training_on_law_takes_the_law_subjects_out_of_mmlu(load: Load, data_dir: Path) -> None:
    subjects = overlapping_subjects("mmlu", ["arc_easy", "legal_mcq"])
    assert set(subjects) == {"professional_law", "jurisprudence", "international_law"}
    assert overlapping_subjects("mmlu", ["arc_easy"]) == ()
    assert overlapping_subjects("legal_mcq", ["legal_mcq"]) == ()
    task = load_task(TaskConfig(name="mmlu"), data_dir, 0, trained_on=["legal_mcq"])
    # 14042 less 1534, 108 and 121 rows of the three subjects, less the ill-posed of the others.
    assert 14042 - 1534 - 108 - 121 - task.dropped <= len(task.test) <= 14042 - 1763
    assert not set(subjects) & {item.subject for item in task.test + task.validation}
    law = {item.content for item in load("legal_mcq").train}
    assert not law & {item.content for item in task.test}


def test_the_scorer_brings_its_prompt(load: Load) -> None:
    lettered, text = load("casehold").test[0], load("casehold", scorer="option_text").test[0]
    assert text.prompt == f"Question: {lettered.question}\nAnswer:"
    assert (lettered.completion, text.completion) == ("ABCDE"[lettered.answer], text.reference)
    letters = load("arc_easy", scorer="option_letter")
    assert "\nA. safety goggles\nB. breathing mask\n" in letters.test[1].prompt
    assert letters.test[1].completion == "B"
    assert letters.spec.lists_options
    assert not load("arc_easy").spec.lists_options
    with pytest.raises(UserError, match=r"found a prompt without \{options\}"):
        load("casehold", prompt="{question} ?")
    with pytest.raises(UserError, match="a row without choices for scorer 'option_text'"):
        load("gsm8k", scorer="option_text", max_train_rows=1)


def test_limits_give_subsets_and_another_hash(load: Load, data_dir: Path) -> None:
    whole = load("openbookqa")
    config = TaskConfig(name="openbookqa", max_train_rows=64)
    small = load_task(config, data_dir, 0, max_items=20)
    assert (len(small.train), len(small.validation), len(small.test)) == (64, 20, 20)
    assert set(small.train) < set(whole.train)
    assert set(small.test) < set(whole.test)
    assert small.sha256 != whole.sha256
    assert load_task(config, data_dir, 0, max_items=20).sha256 == small.sha256
    assert load_task(config, data_dir, 1, max_items=20).sha256 != small.sha256


def test_common_facts_need_nothing_and_ask_what_can_be_answered() -> None:
    task = load_task(TaskConfig(name="common_facts"), None, data_seed=0)
    items = (*task.validation, *task.test)
    assert (len(task.validation), len(task.test), task.spec.chance) == (86, 348, 0.25)
    assert len({item.question for item in items}) == len(items) == 434
    # The answers stand at every place equally often, within three standard deviations.
    places = [sum(item.answer == place for item in items) for place in range(4)]
    assert max(abs(count - 434 / 4) for count in places) < 3 * (434 * 0.25 * 0.75) ** 0.5
    assert all(len(set(item.choices)) == 4 for item in items)
    (capital,) = [item for item in items if item.question == "What is the capital of France?"]
    assert capital.reference == "Paris"
    assert capital.subject == "What is the capital of ...?"


def test_the_documented_table_is_true(load: Load) -> None:
    page = (Path(__file__).parents[2] / "docs" / "your-model-and-data.md").read_text("utf-8")
    for name in FILE_ROWS:
        (line,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        _, _, scorer, hub, license, rows, chance, _ = map(str.strip, line.split("|"))
        task = load(name)
        assert scorer == f"`{task.spec.scorer}`"
        assert task.spec.folder == {"boolq": "boolq_noctx"}.get(name, name)
        assert f"`{task.spec.hub.id}`" in hub
        assert license == task.spec.license
        assert rows == f"{len(task.train)}/{len(task.validation)}/{len(task.test)}"
        assert float(chance) == pytest.approx(task.spec.chance, abs=5e-5)


def test_unknown_and_missing_tasks_are_reported_with_a_way_out(tmp_path: Path, load: Load) -> None:
    with pytest.raises(UserError, match=r"'arc_esay': found no task of .* did you mean 'arc_easy'"):
        load("arc_esay")
    with pytest.raises(UserError, match=r"for your own data give 'train:' \(a file of rows\) or"):
        load("zzz")
    with pytest.raises(UserError, match="arc_easy: found no such folder"):
        load_task(TaskConfig(name="arc_easy"), tmp_path, 0)


# --- own data -----------------------------------------------------------------------------------


def test_own_choice_name_scored_by_text_and_named_by_file(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "choices": ["left", "right"], "answer": n % 2} for n in range(40)]
    path = own_file(tmp_path / "d.jsonl", rows)
    task = own(path)
    assert (task.spec.scorer, task.spec.chance) == ("option_text", 0.5)
    assert (len(task.train), len(task.validation), len(task.test)) == (24, 8, 8)
    assert {item.item_id.rsplit("/", 1)[0] for item in task.test} == {"mine/train"}
    assert [note.split(";")[0] for note in task.notes] == [
        "mine: no test rows were given",
        "mine: 8 validation rows were cut from train",
    ]
    assert task.source == path
    lettered = TaskConfig(name="mine", train=path, scorer="option_letter")
    item = load_task(lettered, None, 0).test[0]
    assert item.prompt.endswith("\nA. left\nB. right\nAnswer:")
    assert item.completion in ("A", "B")


@pytest.mark.parametrize(
    ("row", "scorer", "prompt"),
    [
        ({"prompt": "p{n}", "completion": "c{n}"}, "loss", "p7"),
        ({"text": "t{n}"}, "loss", ""),
        ({"instruction": "i{n}", "input": "x", "output": "o{n}"}, "loss", "i7\n\nx\n\n"),
        ({"question": "q{n}", "answer": "so #### {n}"}, "number", "Question: q7\nAnswer:"),
        ({"question": "q{n}", "answer": "a{n}"}, "loss", "Question: q7\nAnswer:"),
    ],
)
def test_own_rows_are_scored_by_what_they_allow(
    tmp_path: Path, row: dict[str, str], scorer: str, prompt: str
) -> None:
    rows = [{k: v.replace("{n}", str(n)) for k, v in row.items()} for n in range(30)]
    paths = {
        name: own_file(tmp_path / f"{name}.jsonl", rows[start:stop])
        for name, start, stop in [("train", 0, 7), ("validation", 20, 30), ("test", 7, 20)]
    }
    task = load_task(TaskConfig(name="mine", **paths), None, 0)
    assert task.spec.scorer == scorer
    assert prompt in {item.prompt for item in task.test}
    assert (len(task.train), len(task.validation), len(task.test)) == (7, 10, 13)


def test_own_rows_go_by_content_and_copies_by_number(tmp_path: Path) -> None:
    """Copies that differ in a field of the prompt alone keep their own prompts."""
    rows: list[dict[str, object]] = [
        {"question": f"q{n % 9}", "answer": f"a{n % 9}", "hint": n} for n in range(12)
    ]
    others = {
        split: own_file(
            tmp_path / f"{split}.jsonl", [{"question": split, "answer": split, "hint": 0}]
        )
        for split in ("train", "validation")
    }
    found = []
    for name, order in (("one", rows), ("other", rows[::-1])):
        files = {"test": own_file(tmp_path / f"{name}.jsonl", order), **others}
        task = load_task(TaskConfig(name="mine", prompt="{question} {hint}", **files), None, 0)
        found.append([(item.item_id, item.prompt) for item in task.test])
    assert found[0] == found[1]
    ids = [item_id for item_id, _ in found[0]]
    assert len(set(ids)) == 12
    assert sum(item_id.endswith(".2") for item_id in ids) == 3
    assert {prompt for _, prompt in found[0]} == {f"q{n % 9} {n}" for n in range(12)}


def test_a_prompt_template_takes_any_field_and_evaluates_nothing(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"question": f"q{n}", "passage": "{question.__class__}", "answer": f"a{n}", "n": n}
        for n in range(20)
    ]
    path = own_file(tmp_path / "d.jsonl", rows)
    item = own(path, prompt="{passage} | {question} {n}:\n{}").train[0]
    place = int(item.location.rsplit(" ", 1)[1]) - 1
    assert item.prompt == f"{{question.__class__}} | q{place} {place}:\n{{}}"
    with pytest.raises(UserError, match=r"\{passsage\} in the .* one of question, passage, answer"):
        own(path, prompt="{passsage}")


def test_mmlus_training_rows_are_read_where_it_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper_hub(tmp_path, monkeypatch)
    scored = load_task(TaskConfig(name="mmlu"), None, 0)
    trained = load_task(TaskConfig(name="mmlu"), None, 0, trained_on=["mmlu"])
    assert (len(scored.train), len(trained.train)) == (0, 90)
    assert scored.test == trained.test
    assert scored.sha256 != trained.sha256


def test_sources_and_prompts_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    path = own_file(tmp_path / "d.jsonl", [{"messages": turns}] * 20)
    no_rows = {split: [] for split in ("train", "test")}
    monkeypatch.setattr("rankscope.data.task_source.read_hub", lambda _: (no_rows, "hub a/b"))
    for settings, message in (
        ({"train": path, "prompt": "{x}"}, "found 'prompt' for rows of messages"),
        ({"train": path, "hub": "a/b"}, "found files and 'hub', expected one source"),
        ({"hub": "a/b"}, "task 'mine': hub a/b: found no rows"),
    ):
        with pytest.raises(UserError, match=message):
            load_task(TaskConfig(name="mine", **settings), None, 0)


@pytest.mark.parametrize("place", [0, 39])
def test_one_odd_row_does_not_choose_the_scorer(tmp_path: Path, place: int) -> None:
    rows = [{"question": f"q{n}", "answer": f"so {n}"} for n in range(200)]
    rows[place]["answer"] = "so #### 3"
    path = own_file(tmp_path / "d.jsonl", rows)
    assert own(path).spec.scorer == "loss"


def test_published_golds_that_are_not_one_number_are_left_out_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    rows = [{"question": f"q{n}", "answer": f"so #### {n}"} for n in range(200)]
    rows[5] = {"question": "q5", "answer": "so #### 3/4"}
    own_file(folder / "train.jsonl", rows)
    own_file(folder / "test.jsonl", [{"question": "t", "answer": "#### - 3"}])
    task = load_task(TaskConfig(name="gsm8k"), tmp_path, 0)
    assert task.dropped == 1
    assert [extract_number(item.reference) for item in task.test] == ["-3"]
    assert "gsm8k/train/6" not in {item.item_id for item in task.train + task.validation}
    (note,) = [note for note in task.notes if "dropped" in note]
    assert note.startswith(
        f"gsm8k: 1 of 201 rows were dropped: {folder}/train.jsonl, row 6: found no"
    )
    rows[7:30] = [{"question": "q", "answer": "so #### 1e6"}] * 23
    own_file(folder / "train.jsonl", rows)
    with pytest.raises(UserError, match=r"gsm8k/train.jsonl, row 26: found no single number"):
        load_task(TaskConfig(name="gsm8k"), tmp_path, 0)
    assert load_task(TaskConfig(name="gsm8k", on_bad_rows="drop"), tmp_path, 0).dropped == 24


def bad_rows_file(path: Path) -> str:
    """40 rows; of rows 3 to 9 each is bad in another way."""
    rows: list[dict[str, object]] = [
        {"question": f"q{n}", "choices": [f"a{n}", "b", "c"], "answer": n % 3} for n in range(40)
    ]
    lines = [json.dumps(row) for row in rows]
    for n, change in {
        2: {"answer": 7},
        3: {"answer": float("nan")},
        4: {"choices": ["b", "b", "c"], "answer": 1},
        5: {"choices": ["a", "b", "b"], "answer": 0},
        6: {"choices": ["a"]},
    }.items():
        lines[n] = json.dumps(rows[n] | change)
    lines[7] = '{"question": '
    lines[8] = '{"text": "another shape"}'
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@pytest.mark.pitfall(8, 11)
def test_all_bad_rows_are_listed_at_once(tmp_path: Path) -> None:
    path = bad_rows_file(tmp_path / "d.jsonl")
    with pytest.raises(UserError) as error:
        own(path)
    first, *rows, last = str(error.value).splitlines()
    assert first == "task 'mine': found 7 of 40 rows that cannot be used:"
    reasons = [
        "answer 7, which is none of the 3 choices", "no completion in field 'answer'",
        "the duplicate choice 'b', which is the answer", "the duplicate choice 'b', a wrong one",
        "1 usable choices out of 1", "text that is not JSON",
        "the shape 'text', expected 'multiple choice'",
    ]  # fmt: skip
    for number, (row, reason) in enumerate(zip(rows, reasons, strict=True), start=3):
        assert row.startswith(f"  {path}, row {number}: found {reason}")
    assert "'on_bad_rows: drop'" in last


def test_dropped_rows_are_counted_and_change_the_data(tmp_path: Path) -> None:
    path = bad_rows_file(tmp_path / "d.jsonl")
    task = own(path, on_bad_rows="drop")
    # The row whose wrong choice is repeated still has one right answer.
    assert task.dropped == 6
    assert len(task.train) + len(task.validation) + len(task.test) == 34
    dropped = next(note for note in task.notes if "were dropped" in note)
    assert dropped.startswith(f"mine: 6 of 40 rows were dropped: {path}, row 3: found answer 7")
    assert dropped.endswith("; and 3 more")
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    lines[9] = '{"question": '
    Path(path).write_text("\n".join(lines), encoding="utf-8")
    again = own(path, on_bad_rows="drop")
    assert (again.dropped, again.sha256 == task.sha256) == (7, False)
    Path(path).write_text("{\n{", encoding="utf-8")
    with pytest.raises(UserError, match="2 of 2 rows that cannot be used") as refusal:
        own(path, on_bad_rows="drop")
    assert refusal.value.do == "correct them: no row is left"


@pytest.mark.parametrize(
    ("num_rows", "missing", "refused"),
    [(200, 2, False), (200, 3, True), (100, 2, True), (20, 1, False), (20, 2, True), (1, 1, True)],
)
def test_one_percent_of_own_rows_or_one_may_lack_a_completion(
    tmp_path: Path, num_rows: int, missing: int, refused: bool
) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": f"p{n}", "completion": f"c{n}"} for n in range(num_rows)
    ]
    rows[-missing:] = [{"prompt": "p", "completion": float("nan")}] * missing
    path = own_file(tmp_path / "d.jsonl", rows)
    if refused:
        with pytest.raises(UserError, match=rf"{missing} of {num_rows} rows? that cannot be"):
            own(path)
    else:
        task = own(path)
        assert task.dropped == missing
        assert "nan" not in {item.completion for item in task.train}


@pytest.mark.parametrize(("words", "noted"), [(0, True), (1, True), (4, False)])
def test_numeric_answers_are_recognized(tmp_path: Path, words: int, noted: bool) -> None:
    """SVAMP's form: ``41.0``. Up to 5 % of the answers may be words."""
    rows: list[dict[str, object]] = [
        {"question": f"q{n}", "answer": f"{n}.0" if n >= words else f"{n} of them"}
        for n in range(40)
    ]
    path = own_file(tmp_path / "d.jsonl", rows)
    task = own(path)
    assert task.spec.scorer == "loss"
    sentence = f"mine: {40 - words} of 40 answers are numbers, but they are scored by log probab"
    assert any(note.startswith(sentence) for note in task.notes) == noted
    numeric = own(path, scorer="number")
    assert not any("are numbers" in note for note in numeric.notes)


def test_twenty_bad_rows_are_shown(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "completion": "c"} for n in range(29)]
    path = own_file(tmp_path / "d.jsonl", rows)
    with pytest.raises(UserError) as error:
        own(path, scorer="option_text")
    first, *shown, more, _ = str(error.value).splitlines()
    assert first == "task 'mine': found 29 of 29 rows that cannot be used:"
    reason = "found a row without choices for scorer 'option_text', expected choices and an answer"
    assert shown == [f"  {path}, row {n}: {reason}" for n in range(1, 21)]
    assert more == "  ... and 9 more"


# --- texts with labels, and columns -------------------------------------------------------------


TEXTS = [f"mail {n}" for n in range(40)]


def labeled(folder: Path, labels: list[object], *names: str) -> str:
    """A file of the texts with these labels, in columns ``text`` and ``label`` or others."""
    text, label = names or ("text", "label")
    rows = [{text: t, label: of} for t, of in zip(TEXTS, labels, strict=True)]
    return own_file(folder / "d.jsonl", rows)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["spam", "ham"], ("ham", "spam")),
        ([10, 9, 8, 1], ("1", "8", "9", "10")),
        (["1", " 0"], ("0", "1")),
        ([-1, 0, 1, 1], ("-1", "0", "1")),
        ([True, False], ("false", "true")),
        ([1.0, 2.0], ("1", "2")),  # as integers beside an empty cell
    ],
)
def test_a_text_with_a_label_is_a_classification(
    tmp_path: Path, labels: list[object], classes: tuple[str, ...]
) -> None:
    given = labels * (40 // len(labels))
    task = own(labeled(tmp_path, given))
    assert (task.row_shape, task.spec.scorer) == ("text and label", "option_text")
    assert task.spec.chance == pytest.approx(1 / len(classes))
    for item in (*task.train, *task.validation, *task.test):
        number = int(item.question.split()[1])
        label = given[number]
        assert item.prompt == f"Text: mail {number}\nLabel:"
        assert item.choices == classes
        told = f"{label:g}" if isinstance(label, float) else str(label).strip().lower()
        assert item.completion == told == item.choices[item.answer]
    listed = ", ".join(map(repr, classes))
    assert f"mine: a classification, whose options are the labels {listed}" in task.notes


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        ([f"intent {n % 30}" for n in range(40)], "the labels are too many, or too rare"),
        ([n / 8 for n in range(40)], "40 of 40 answers are numbers"),
        ([0.5, 1.5] * 20, "40 of 40 answers are numbers"),
        (["same"] * 40, "the labels are too many, or too rare"),
    ],
)
def test_free_labels_are_written_answers(tmp_path: Path, labels: list[object], note: str) -> None:
    task = own(labeled(tmp_path, labels))
    assert (task.row_shape, task.spec.scorer) == ("text and label", "loss")
    told = {f"{label:g}" if isinstance(label, float) else str(label) for label in labels}
    assert {item.completion for item in task.train} <= told
    assert any(note in text for text in task.notes)


def test_a_classification_by_columns_of_other_names(tmp_path: Path) -> None:
    path = labeled(tmp_path, ["a", "b"] * 20, "mail", "folder")
    task = own(path, fields={"text": "mail", "label": "folder"}, scorer="option_letter")
    assert task.test[0].prompt.endswith("\nA. a\nB. b\nAnswer:")


def test_a_label_that_no_training_row_has(tmp_path: Path) -> None:
    rows = [{"text": text, "label": "ab"[n % 2]} for n, text in enumerate(TEXTS)]
    other = [{"text": "new", "label": "c"}, {"text": "old", "label": "a"}]
    files = {
        name: own_file(tmp_path / f"{name}.jsonl", part)
        for name, part in (("train", rows[:20]), ("validation", rows[20:]), ("test", other))
    }
    with pytest.raises(
        UserError, match=r"found the label 'c', expected one of the training rows': '"
    ):
        load_task(TaskConfig(name="mine", **files), None, 0)
    del files["train"]
    task = load_task(TaskConfig(name="mine", **files, on_bad_rows="drop"), None, 0)
    assert task.test[0].choices == ("a", "b", "c")
    own_file(tmp_path / "test.jsonl", [{"text": "new"}])
    with pytest.raises(UserError, match=r"found no label, expected a label, as the validation row"):
        load_task(TaskConfig(name="mine", **files), None, 0)


@pytest.mark.parametrize(
    ("row", "settings", "unused"),
    [
        ({"text": "t{n}", "mood": "m"}, {}, "'mood'; 'fields: {text: text, label: COLUMN}' makes"),
        ({"prompt": "p{n}", "completion": "c", "label": True, "id": 3}, {}, "'label', 'id'"),
        ({"question": "q{n}", "answer": "a", "hint": "h", "id": 3},
         {"prompt": "{question} {hint}"}, "'id'"),
        ({"instruction": "i{n}", "context": "x", "response": "o"}, {}, ""),
        ({"question": {"stem": "q{n}", "choices": [{"label": "A", "text": "x"},
          {"label": "B", "text": "y"}]}, "answerKey": "A", "id": "x"}, {}, "'id'"),
        ({"question": "q{n}", "a": "x", "b": "y", "key": 1, "c": "z"},
         {"fields": {"question": "question", "choices": ["a", "b"], "answer": "key"}}, "'c'"),
        ({"messages": [{"role": "user", "content": "{n}"}, {"role": "assistant", "content": "x"}],
          "tools": []}, {}, "'tools'"),
        ({"text": "t{n}", **{f"c{n}": 0 for n in range(9)}}, {}, "'c6', 'c7', ...; 'fields"),
        ({"text": "t{n}", "label": "a"}, {"scorer": "perplexity"}, "'label'"),
    ],
)  # fmt: skip
def test_columns_that_nothing_uses_are_named(
    tmp_path: Path, row: dict[str, object], settings: dict[str, object], unused: str
) -> None:
    rows = [json.loads(json.dumps(row).replace("{n}", str(n))) for n in range(20)]
    task = own(own_file(tmp_path / "d.jsonl", rows), **settings)
    notes = [note for note in task.notes if "nothing uses" in note]
    assert [unused in note for note in notes] == [True] * bool(unused)


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"prompt": "p{n}", "completion": "c"}, {}),
        ({"instruction": "i{n}", "output": "o"}, {}),
        ({"messages": [{"role": "user", "content": "{n}"},
          {"role": "assistant", "content": "x"}]}, {}),
        ({"question": "q{n}", "choices": ["a", "b"], "answer": 0}, {}),
        ({"text": "t{n}", "label": "a"}, {}),
        ({"mail": "t{n}", "reply": "a"}, {"prompt": "mail", "completion": "reply"}),
    ],
)  # fmt: skip
def test_a_column_groups_the_items_of_any_shape(
    tmp_path: Path, row: dict[str, object], names: dict[str, str]
) -> None:
    """The subject alone keeps the other names; an empty cell is no group."""
    rows = [json.loads(json.dumps(row).replace("{n}", str(n))) for n in range(60)]
    kinds = ["billing", "refunds", ""]
    path = own_file(
        tmp_path / "d.jsonl", [r | {"intent": kinds[n % 3]} for n, r in enumerate(rows)]
    )
    task = own(path, fields={**names, "subject": "intent"})
    items = [*task.train, *task.validation, *task.test]
    assert len(items) == 60
    assert {item.subject for item in items} == {"billing", "refunds", None}
    without = sum(item.subject is None for item in task.test)
    (note,) = [note for note in task.notes if "intent" in note]
    assert note == f"mine: {without} of 12 test items have no 'intent' and are in no group"


def test_columns_that_make_no_groups(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "completion": "c", "id": n, "a": "x", "b": None} for n in range(60)]
    path = own_file(tmp_path / "d.jsonl", rows)
    for column, found in (("a", "1 value in the column 'a'"), ("b", "0 values in the column 'b'")):
        with pytest.raises(UserError, match=f"task 'mine': fields: found {found}, expected two or"):
            own(path, fields={"subject": column})
    with pytest.raises(
        UserError, match=r"^\S+, row 1: found no field 'c', named in 'fields:', exp"
    ):
        own(path, fields={"subject": "c"})
    notes = own(path, fields={"subject": "id"}).notes
    assert any("'id' has 12 values on 12 test items, so there are no changes" in n for n in notes)
