"""Bad input through the command line: the exit code, and a message to act on.

A message says where (file and line or row), what was found, what was expected or what to do.
"""

import json
import pickle
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, files_below, rankscope, settings, write_rows
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rankscope.data.pocket_world import pocket_rows
from rankscope.errors import UserError
from rankscope.models.adapters.folder import load_adapter
from rankscope.models.model_folder import pocket_folder
from rankscope.store import Ledger

STUDY = """\
name: own
model: pocket
tasks:
  - name: mine
    train: rows.jsonl
arms:
  - method: lora
    rank: [2]
    lr: [1e-3]
seeds: [0]
train: {max_steps: 2, batch_size: 4, gradient_accumulation: 1, max_length: 32}
evaluate: {max_items: 8}
dtype: float32
"""
RANK_LINE = 8
VERBS = ("check", "plan", "run")


def good_rows(count: int) -> list[dict[str, Any]]:
    """Multiple-choice rows in the pocket model's own words, all different."""
    return [dict(row) for row in pocket_rows("pocket_med", "train")[:count]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a study file and 40 good rows."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "study.yaml").write_text(STUDY, "utf-8")
    write_rows(folder / "rows.jsonl", good_rows(40))
    return folder


def edit(place: Path, old: str, new: str) -> None:
    """Replace text of the study file, which must be there."""
    file = place / "study.yaml"
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new), "utf-8")


def refused(outcome: Outcome, *parts: str) -> None:
    """Exit code 2, one message on standard error with every part in it, and no traceback."""
    assert outcome.code == 2, outcome
    assert "error: " in outcome.err
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in outcome.err, outcome.err


def test_the_study_as_it_stands_is_fine(place: Path) -> None:
    """So that each refusal below is due to its own fault."""
    assert rankscope("check", "study.yaml").code == 0


# --- the study file -----------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_key(place: Path, verb: str) -> None:
    edit(place, "rank: [2]", "lora_rnak: [2]")
    before = files_below(place)
    refused(
        rankscope(verb, "study.yaml"),
        f"study.yaml:{RANK_LINE}: arms.0.lora_rnak: unknown key; did you mean 'rank'?",
    )
    assert files_below(place) == before


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one(place: Path, rank: int) -> None:
    edit(place, "rank: [2]", f"rank: [2, {rank}]")
    refused(
        rankscope("check", "study.yaml"),
        f"study.yaml:{RANK_LINE}: arms.0.rank.1: found {rank}",
        "expected greater than or equal to 1",
    )
    assert rankscope("params", "pocket", "--rank", rank).code == 2


def test_a_rank_above_the_smaller_dimension(place: Path) -> None:
    """The pocket model's attention matrices are 128 x 128; the cap stands in the run's notes."""
    asked = settings("arms.0.rank=[128,129]")
    warning = "rank 129 is above 128, the smaller dimension of the smallest target matrix"
    for verb in ("check", "plan"):
        outcome = rankscope(verb, "study.yaml", *asked)
        assert outcome.code == 0
        assert outcome.told.count(f"note: {warning}") == 1
        assert "rank 128 is above" not in outcome.told
    planned = rankscope("plan", "study.yaml", *asked, "--json")
    assert sum(warning in note for note in json.loads(planned.out)["notes"]) == 1


@pytest.mark.parametrize("key", ["top_k", "intruder_k"])
def test_more_vectors_than_a_matrix_has(place: Path, key: str) -> None:
    """All of them span what they always spanned: they would be alike whatever happened."""
    for verb in ("check", "plan"):
        refused(
            rankscope(verb, "study.yaml", *settings(f"analyze.spectra.{key}=129")),
            f"analyze.spectra.{key} 129: model.layers.0.self_attn.q_proj (128, 128) has 128",
        )
    assert rankscope("check", "study.yaml", *settings(f"analyze.spectra.{key}=128")).code == 0
    asked = settings("analyze.spectra={top_k: 129, enabled: false}")
    assert rankscope("check", "study.yaml", *asked).code == 0


def test_repeated_grid_points(place: Path) -> None:
    edit(place, "rank: [2]", "rank: [2, 4, 2, 2]")
    outcome = rankscope("check", "study.yaml")
    assert outcome.code == 0
    assert "2 grid points are repeated in the study file and merged" in outcome.told
    assert "2 trials in 1 group:" in outcome.told


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (["arms.0.method=lroa"], ["arms.0.method", "'lroa'", "pissa", "did you mean 'lora'?"]),
        (["arms.0.method=[lora, full]"], ["arms.0", "method 'full' trains every weight"]),
        (["arms.0.lr=0"], ["arms.0.lr", "found 0", "greater than 0"]),
        (["arms.0.lr=[1e-3, .nan]"], ["arms.0.lr.1", "found nan", "finite number"]),
        (["arms.0.lr_ratio=8"], ["arms.0", "method 'lora' has no lr_ratio", "use lora+"]),
        (["arms.0.schedule=[linear, cubic]"], ["arms.0.schedule.1", "'cubic'", "'cosine'"]),
        (["arms.0.batch_size=0"], ["arms.0.batch_size", "found 0"]),
        (["train.tokens=1000"], ["train", "'tokens' and 'max_steps'", "give one"]),
        (["memory_limit=12 apples"], ["memory_limit '12 apples'", "'12GiB'"]),
        (
            ["arms.0.method=pissa", "arms.0.rank=[8, 129]"],
            ["method pissa: rank 129 is above 128", "smaller rank"],
        ),
        (
            ["arms.0.method=eva", "arms.0.rank=64", "tasks.0.max_train_rows=4"],
            ["method eva, rank 64: mine has", "at least 128", "smaller rank"],
        ),
    ],
    ids=lambda given: given[0],
)
def test_arms_that_cannot_be_trained(place: Path, changes: list[str], parts: list[str]) -> None:
    before = files_below(place)
    refused(rankscope("run", "study.yaml", *settings(*changes)), *parts)
    assert files_below(place) == before


PAYLOADS = (
    "!!python/object/apply:os.system ['touch executed']",
    "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [executed]]",
    "!!python/object/new:subprocess.Popen [['touch', 'executed']]",
    "!!python/name:os.system",
)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_python_in_yaml_is_not_executed(place: Path, payload: str) -> None:
    edit(place, "name: own", f"name: {payload}")
    for verb in VERBS:
        refused(rankscope(verb, "study.yaml"), "study.yaml:1:", "python/")
    edit(place, f"name: {payload}", "name: own")
    refused(rankscope("check", "study.yaml", *settings(f"name={payload}")), "--set name=")
    assert files_below(place) == {"study.yaml", "rows.jsonl"}


BAD_NAMES = ('"../../x"', '"/etc/x"', '"a\\0b"', f'"{"x" * 300}"', '".."', '"a/b"')


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("key", ["name: own", "name: mine"])
def test_names_that_are_no_names(place: Path, key: str, name: str) -> None:
    edit(place, key, f"name: {name}")
    before = files_below(place.parent)
    line = 1 if key == "name: own" else 4
    refused(
        rankscope("run", "study.yaml"), f"study.yaml:{line}:", "1 to 64 letters, digits, '_', '-'"
    )
    assert files_below(place.parent) == before


@pytest.mark.parametrize(
    "words",
    [
        ("run", "study.yaml", "--out", "x" * 300),
        ("quickstart", "--out", "x" * 300),
        ("quickstart", "--out", "rows.jsonl"),
        ("run", "study.yaml", "--out", "rows.jsonl"),
        ("run", "study.yaml", "--set", f"tasks.0.train={'x' * 300}.jsonl"),
        ("check", "study.yaml", "--set", f"model=./{'x' * 300}"),
        ("check", "x" * 300),
        ("init", "x" * 300),
        ("init", "rows.jsonl/study.yaml"),
        ("params", "x" * 300),
        ("status", "x" * 300),
        ("verify", "rows.jsonl"),
        ("export", "x" * 300, "0", "--out", "y"),
    ],
    ids=lambda words: " ".join(words)[:30],
)
def test_places_that_cannot_be_used(place: Path, words: tuple[str, ...]) -> None:
    before = files_below(place)
    refused(rankscope(*words), "rows.jsonl" if "rows.jsonl" in " ".join(words) else "x" * 8)
    assert files_below(place) - before <= {"studies", "studies/own", *OPENED}


OPENED = {f"studies/own/{name}" for name in ("ledger.sqlite", "ledger.lock", "log.jsonl", "tmp")}
"""What a run that could not begin leaves in its own folder."""


# --- rows ---------------------------------------------------------------------------------------


def check_rows(place: Path, rows: list[Any], *values: str) -> Outcome:
    """``rankscope check`` on these rows."""
    write_rows(place / "rows.jsonl", rows)
    return rankscope("check", "study.yaml", *settings(*values))


def test_an_empty_file(place: Path) -> None:
    refused(check_rows(place, []), "rows.jsonl: the file has no rows; expected at least one")


def test_a_byte_order_mark_is_accepted(place: Path) -> None:
    first, *others = good_rows(40)
    plain = check_rows(place, [first, *others])
    marked = check_rows(place, [b"\xef\xbb\xbf" + json.dumps(first).encode(), *others])
    assert marked.code == 0
    assert marked.out == plain.out
    (place / "study.yaml").write_bytes(b"\xef\xbb\xbf" + (place / "study.yaml").read_bytes())
    assert rankscope("check", "study.yaml").out == plain.out


def test_bytes_that_are_not_utf_8(place: Path) -> None:
    rows: list[Any] = good_rows(40)
    rows[6] = b'{"question": "caf\xe9"}'
    refused(check_rows(place, rows), "rows.jsonl, row 7: byte 18", "not valid UTF-8", "convert")


@pytest.mark.parametrize("line", ['{"question": "a", ', "question: a", '["a"]', '"a"', "7"])
def test_a_line_that_is_no_object(place: Path, line: str) -> None:
    rows: list[Any] = good_rows(40)
    rows[11] = line
    refused(check_rows(place, rows), "rows.jsonl, row 12: ", "expected", "object")


def test_two_shapes_in_one_file(place: Path) -> None:
    rows: list[Any] = good_rows(40)
    rows[20] = {"prompt": "target ?", "completion": "croup"}
    rows[30] = {"text": "croup"}
    outcome = check_rows(place, rows)
    refused(outcome, "rows.jsonl, row 21: found the shape 'prompt and completion'", "row 1\n")
    assert "rows.jsonl, row 31: found the shape 'text'" in outcome.err


def test_rows_without_completion(place: Path) -> None:
    """One in 200 is left out and counted; three in 200 are an error."""
    rows = [{"prompt": f"{i} +", "completion": str(i)} for i in range(200)]
    rows[150]["completion"] = " "
    outcome = check_rows(place, rows)
    assert outcome.code == 0
    assert "mine: 1 of 200 rows were dropped: " in outcome.told
    for index in (152, 154):
        rows[index]["completion"] = ""
    refused(check_rows(place, rows), "rows.jsonl, row 151: no completion", "3 of 200 rows")


def test_prompts_longer_than_the_row(place: Path) -> None:
    """With files of their own for validation and report, all 200 rows are trained on."""
    rows = [{"prompt": f"{i} + 1 =", "completion": str(i)} for i in range(200)]
    held_out = [{"prompt": f"{i} + 2 =", "completion": str(i)} for i in range(9)]
    chosen_by = [{"prompt": f"{i} + 3 =", "completion": str(i)} for i in range(9)]
    write_rows(place / "report.jsonl", held_out)
    write_rows(place / "validation.jsonl", chosen_by)
    edit(
        place, "rows.jsonl", "rows.jsonl\n    validation: validation.jsonl\n    test: report.jsonl"
    )
    rows[100]["prompt"] = "1 + " * 40
    rows[50]["completion"] = "1 " * 40
    outcome = check_rows(place, rows)
    assert outcome.code == 0
    counted = "mine: 1 training rows dropped, 1 completions cut at max_length = 32 tokens"
    assert counted in outcome.told
    assert "199 training rows" in outcome.told
    assert "up to there" not in outcome.told
    for row in held_out:
        row["completion"] = "1 " * 40
    write_rows(place / "report.jsonl", held_out)
    scored = "test items are longer than max_length = 32 tokens and scored up to there"
    assert scored in check_rows(place, rows).told
    for index in (102, 104):
        rows[index]["prompt"] = "1 + " * 40
    refused(
        check_rows(place, rows),
        "rows.jsonl, row 101: the row has no token to learn, and so have 3 of 200 rows",
        "Raise train.max_length",
    )


@pytest.mark.parametrize("answer", [4, -1, 1.5, True, "E", "no such choice"])
def test_an_answer_that_is_no_choice(place: Path, answer: object) -> None:
    rows = good_rows(40)
    rows[2]["answer"] = answer
    refused(
        check_rows(place, rows),
        f"rows.jsonl, row 3: answer {answer!r} is not one of the 4 choices; expected an index from "
        "0 to 3, a letter from A to D",
    )


def test_a_choice_that_stands_twice(place: Path) -> None:
    rows = good_rows(40)
    rows[4]["choices"][0] = f" {rows[4]['choices'][3]} "
    repeated = rows[4]["choices"][3]
    refused(
        check_rows(place, rows),
        f"rows.jsonl, row 5: duplicate choice {repeated!r}, a wrong one",
    )


# --- models -------------------------------------------------------------------------------------


@pytest.fixture
def model(place: Path) -> Path:
    """A copy of the pocket model that the study uses."""
    shutil.copytree(pocket_folder(), place / "model")
    edit(place, "model: pocket", "model: ./model")
    return place / "model"


def test_a_tokenizer_whose_pad_is_its_end(place: Path, model: Path) -> None:
    """The end token is labelled all the same: every training row ends with it, marked."""
    settings_file = model / "tokenizer_config.json"
    tokenizer = json.loads(settings_file.read_text("utf-8"))
    assert "chat_template" not in tokenizer
    tokenizer["pad_token"] = tokenizer["eos_token"]
    settings_file.write_text(json.dumps(tokenizer), "utf-8")
    outcome = rankscope("check", "study.yaml", "--rows", "32")
    assert outcome.code == 0
    assert outcome.told.count(" <eos>\N{MATHEMATICAL RIGHT WHITE SQUARE BRACKET}") == 32
    assert "32 training rows (plain prompts)" in outcome.told
    # An answer is one word here: it and the end token.
    assert "; 64 carry loss" in outcome.told
    assert "note: the pad token is the end token: labels go by position" in outcome.told
    assert (
        "note: no chat template in this tokenizer: prompts are formatted as plain text"
        in outcome.told
    )
    refused(
        rankscope("check", "study.yaml", *settings("model.prompt_format=chat")), "no chat template"
    )


@pytest.mark.parametrize("verb", VERBS)
def test_a_target_that_matches_nothing(place: Path, verb: str) -> None:
    """One misspelt among several is enough, and it is found before anything is trained."""
    outcome = rankscope(verb, "study.yaml", *settings("arms.0.targets=[q_proj, v_porj]"))
    candidates = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    refused(outcome, "target module 'v_porj' matches no linear layer", candidates)
    assert files_below(place) <= {"study.yaml", "rows.jsonl", "studies", "studies/own", *OPENED}
    refused(rankscope("params", "pocket", "--targets", "q_proj,v_porj"), "'v_porj'", candidates)


class Payload:
    """Unpickling it makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("verb", VERBS)
def test_weights_that_are_a_pickle(place: Path, model: Path, verb: str) -> None:
    for weights in model.glob("*.safetensors"):
        weights.unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    outcome = rankscope(verb, "study.yaml")
    refused(outcome, str(model), "pytorch_model.bin is a pickle", "convert", "safetensors")
    assert not (place / "executed").exists()


def test_an_adapter_that_is_a_pickle(place: Path) -> None:
    folder = place / "adapter"
    folder.mkdir()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Payload()))
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    with pytest.raises(UserError, match=r"adapter_model\.bin is a pickle.*save_pretrained"):
        load_adapter(folder, "x")
    assert not (place / "executed").exists()
    pickle.loads((folder / "adapter_model.bin").read_bytes())
    assert (place / "executed").exists()  # it does what a pickle can do


# --- hostile text -------------------------------------------------------------------------------

IMAGE = "<img src=x onerror=alert(1)>"
SCRIPT = "</script><script>alert(2)</script>"
REVERSED = "\u202e\u05d0\u05d1"
HOSTILE = (IMAGE, SCRIPT, REVERSED, "\x1b[2J\x07", "{{ 7 * 7 }}", "'; DROP TABLE trials; --")


FILE_NAME = f"{IMAGE}\u05d0.jsonl"


def letters_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """One token per character of ``texts``, so that nothing hostile hides behind ``<unk>``."""
    specials = ["<pad>", "<bos>", "<eos>", "<unk>"]
    words = [*specials, *sorted(set("".join(texts)))]
    letters = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    letters.decoder = decoders.Fuse()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), specials, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=letters, **names)


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome, Outcome]:
    """A study on rows full of hostile text, in a file of such a name: (folder, check, run)."""
    folder = tmp_path_factory.mktemp("hostile")
    rows: list[dict[str, Any]] = []
    for index in range(60):
        text = HOSTILE[index % len(HOSTILE)]
        choices = [f"{letter} {text}" for letter in "abcd"]
        subject = text if index != 7 else "x" * 10**6  # a cell of a megabyte
        rows.append(
            {"question": f"{index} {text}", "choices": choices, "answer": 1, "subject": subject}
        )
    write_rows(folder / FILE_NAME, rows)
    shutil.copytree(pocket_folder(), folder / "model")
    words = [text for row in rows for text in (row["question"], *row["choices"])]
    letters_tokenizer([*words, "Question:\nAnswer:"]).save_pretrained(folder / "model")
    changes = {"rows.jsonl": json.dumps(FILE_NAME), "pocket": "./model", "32}": "128}"}
    text = STUDY
    for old, new in changes.items():
        text = text.replace(old, new)
    (folder / "study.yaml").write_text(text, "utf-8")
    asked = (folder / "study.yaml", *settings("arms.0.rank=[2,129]"))
    checked = rankscope("check", *asked, "--rows", "12")
    return folder, checked, rankscope("run", *asked, "--out", folder / "out")


class Tags(HTMLParser):
    """Start tags with their attributes, and the text of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)


def test_hostile_rows_reach_the_end(hostile_run: tuple[Path, Outcome, Outcome]) -> None:
    folder, checked, ran = hostile_run
    assert (checked.code, ran.code) == (0, 0), ran.err
    with Ledger.open(folder / "out", write=False) as ledger:
        study = ledger.load()
        assert set(ledger.statuses().values()) == {"done"}
        assert not ledger.verify()
    # The cap of pitfall 2 reaches the stored notes too.
    assert sum("rank 129 is above 128" in note for note in study.notes) == 1


def test_hostile_rows_do_not_steer_the_terminal(
    hostile_run: tuple[Path, Outcome, Outcome],
) -> None:
    for outcome in hostile_run[1:]:
        assert not {"\u202e", "\x1b", "\x07", "\u05d0"} & set(outcome.out + outcome.err)
        assert len(outcome.out + outcome.err) < 20_000
    shown = hostile_run[1].told
    assert f"{IMAGE}\\u05d0.jsonl" in shown  # the file's own name, as text
    for text in ("\\u202e\\u05d0\\u05d1", "\\u001b[2J\\u0007", SCRIPT, "{{ 7 * 7 }}"):
        assert text in shown
    assert "<unk>" not in shown


def test_hostile_rows_are_inert_in_the_report(hostile_run: tuple[Path, Outcome, Outcome]) -> None:
    page = (hostile_run[0] / "out" / "report.html").read_text("utf-8")
    found = Tags(page)
    assert "&lt;img src=x onerror=alert(1)&gt;" in page  # the file's name is told, escaped
    assert all(tag != "img" for tag, _ in found.tags)
    assert not [name for _, names in found.tags for name in names if name.startswith("on")]
    assert SCRIPT not in page
    assert not [text for text in found.scripts if "alert(2)" in text[:40]]
    assert "\u202e" not in page
    assert "x" * 10_000 not in page
