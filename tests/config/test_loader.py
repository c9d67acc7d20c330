"""Loading a study file: every fault with its line, YAML's traps, paths, overrides."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankscope.config.loader import dump_study, load_study_file
from rankscope.config.study import MAX_TRIALS, StudyConfig
from rankscope.errors import UserError
from rankscope.models.methods import all_methods

GOOD = """\
name: demo
model: ./base
tasks:
  - arc_easy
  - name: mine
    train: data/rows.jsonl
arms:
  - method: lora
    rank: [2, 8]
    lr: 1e-3
  - method: full
    lr: 5e-5
seeds: [0, 1]
train:
  epochs: 1
"""

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a study file, named as a user in its folder would."""
    monkeypatch.chdir(tmp_path)

    def write_study(content: str | bytes) -> Path:
        path = Path("study.yaml")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_study


def faults(path: Path, *overrides: str) -> list[UserError]:
    """The faults that loading a file finds; the exit code is 2."""
    with pytest.raises(UserError) as caught:
        load_study_file(path, overrides)
    assert caught.value.exit_code == 2
    assert all(line.isprintable() and len(line) < 400 for line in str(caught.value).splitlines())
    found = caught.value.faults or (caught.value,)
    assert all(isinstance(fault, UserError) for fault in found[:20])
    return list(found)


def replaced(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def with_arm(arm: str) -> str:
    """The good study with another first arm, on line 8."""
    return (
        GOOD[: GOOD.index("  - method: lora")]
        + f"  - {arm}\n"
        + GOOD[GOOD.index("  - method: f") :]
    )


def test_a_good_file_loads_with_the_protocol_as_defaults(write: Write) -> None:
    config = load_study_file(write(b"\xef\xbb\xbf" + GOOD.encode()))  # with a byte order mark
    assert config.arms[0].rank == [2, 8]
    assert config.arms[0].lr == [0.001]
    assert config.arms[0].alpha == ["2r"]
    assert config.train.epochs == 1.0
    # The paper's protocol: batch 2, accumulation 4, linear with 10 % warm-up.
    assert (config.train.batch_size, config.train.gradient_accumulation) == (2, 4)
    assert (config.train.schedule, config.train.warmup_fraction) == ("linear", 0.1)


# --- the table of faults --------------------------------------------------------------------------

METHODS = ", ".join(method.name for method in all_methods() if not method.takes_settings)
ITEM = "    rank: [2, 8]\n"
PEFT_KEYS = "method 'peft' takes its settings from PEFT's configuration, under PEFT's names"

# (file, place, found, expected, do); the last three may be given in part.
FAULTS: list[tuple[str | bytes, str, str, str, str]] = [
    # keys
    (replaced(ITEM, f"{ITEM}    lora_rnak: 8\n"), "10: arms.0.lora_rnak",
     "an unknown key", "a known one", "did you mean 'rank'?"),
    (GOOD + "  zzz: 1\n", "16: train.zzz", "an unknown key",
     "one of objective, epochs, max_steps, tokens, batch_size, gradient_accumulation, "
     "batch_tokens, schedule, ... (22 in all)", "correct it"),
    (replaced("train:\n  ep", "trian:\n  ep"), "14: trian", "", "", "did you mean 'train'?"),
    (GOOD + '"a\\u202Eb": 1\n', "16: 'a\\u202eb'", "an unknown key", "one of name, model, ", ""),
    (GOOD + "seeds: 3\n", "16: seeds", "a second value of this key, which line 13 has too", "", ""),
    (replaced("    lr: 1e-3\n", ""), "8: arms.0", "no 'lr'", "a peak learning rate",
     "add"),
    # what must not be executed, or grow
    ("a: &a [x, x]\nb: &b [*a, *a]\n", "2", "text that is not YAML (aliases (*name) are not",
     "", ""),
    ("seeds: " + "[" * 20_000, "1", "nested too deeply, in more than 100 brackets", "", ""),
    ("seeds:\n" + "- " * 20_000, "", "nested too deeply", "valid YAML", "correct it"),
    (GOOD + "#" * 2**20, "", "a larger file", "at most 524,288 bytes", "shorten it"),
    (replaced("[2, 8]", str([*range(1, MAX_TRIALS)])), "1: study", "40,000 trials",
     "at most 10,000", ""),
    # files that are no study files
    (b"", "", "an empty file", "keys such as 'model:'",
     "create it with: rankscope init study.yaml"),
    (b"- a\n- b\n", "1", "a list", "a mapping with keys such as 'model:'", "correct it"),
    (b"hello\n", "1", "the text 'hello'", "a mapping", ""),
    (b"name: demo\nmodel: \xff\xfe\n", "2", "byte 0xff, which is not UTF-8", "UTF-8",
     "save the file"),
    (b"name: demo\ntrain:\n\tepochs: 1\n", "3", "text that is not YAML", "",
     "with spaces, not tabs"),
    (b"name: [a\n", "2", "text that is not YAML", "valid YAML", "correct it"),
    (b"name: a\n---\nname: b\n", "2", "text that is not YAML", "", ""),
    (b"name: a\nmodel: b\x00c\n", "2", "the character '\\x00'", "one that YAML allows",
     "remove it"),
    (b"? [a, b]\n: c\n", "1", "a list or a mapping as a key", "text", ""),
    # values
    (replaced("[0, 1]", "!!binary aGl0"), "13: seeds", "the tag '!!binary'", "", "remove the tag"),
    (replaced("mine", "a" * 65), "5: tasks.1.name", "'aaaa", "1 to 64 letters", ""),
    (replaced("[0, 1]", "1:30"), "13: seeds", "'1:30'", "a valid integer", ""),
    (replaced("[0, 1]", "3"), "13: seeds", "3", "a list: [3] is that seed alone, [0, 1, 2] are",
     ""),
    (replaced("[0, 1]", "9" * 30), "13: seeds", "9" * 30, "at most 64 bits", ""),
    (replaced("demo", "123"), "1: name", "123", "a valid string", "put it in quotes"),
    (replaced("[2, 8]", "x" * 100_000), "9: arms.0.rank", "'xxx", "a valid integer", ""),
    (GOOD + "evaluate: {retention: piqa}\n", "16: evaluate.retention", "", "such as ['piqa']", ""),
    (GOOD + "budget: 10\n", "16: budget", "10", "'5e6 tokens', '15 minutes' or '12 hours'", ""),
    (
        "name: a\nmodel: pocket\nstrategy: search\ngiven: [a]\n",
        "1: study",
        "'strategy: search' without 'arms'",
        "arms to choose among",
        "",
    ),
    (GOOD + "budget: 24 trials\n", "1: study", "'budget' with 'strategy: grid'", "", "search'"),
    (GOOD + "until: 0.9\n", "1: study", "'until' with 'strategy: grid'", "", "search'"),
    (replaced("./base", "~no-such-user-here/m"), "2: model.path", "a home folder that does not", "",
     ""),
    (replaced("name: mine", "name: arc_easy"), "1: study", "training task 'arc_easy' twice",
     "it once",
     "give each its own name"),
    (GOOD + "evaluate:\n  retention: [{name: mine, test: other.jsonl}]\n", "1: study",
     "two different descriptions of task 'mine'", "one, at its first mention", "remove one"),
    # weights and limits that say nothing
    (GOOD + "objective: {in_domain: 0, retention: 0, cost: 1}\n", "16: objective",
     "'in_domain' and 'retention' both 0", "a weight above 0 for one of them", ""),
    (GOOD + "objective: {max_forgetting: 0.02}\n", "1: study",
     "without a task that measures what 'arc_easy' forgets", "", "'evaluate.retention', or remove"),
    # A task does not measure what training on it forgets.
    (GOOD + "objective: {max_forgetting: 0.02}\nevaluate: {retention: [arc_easy]}\n", "1: study",
     "without a task that measures what 'arc_easy' forgets", "one that it does not train on", ""),
    (GOOD + "objective: accuracy\n", "16: objective", "'accuracy'", "a mapping with keys", ""),
    # arms
    (replaced("lr: 5e-5", "lr: 5e-5\n    rank: 8\n    alpha: r"), "11: arms.1", "alpha, rank",
     "none: method 'full' trains every weight", "remove alpha, rank"),
    (replaced(ITEM, ""), "8: arms.0", "no rank for method 'lora'", "one or more", "add 'rank'"),
    (with_arm("{method: {peft: {r: 8}}, lr: 1e-3}"), "8: arms.0.method",
     "method peft without 'peft_type'", "one, such as ADALORA or VERA", "name it"),
    (with_arm("{method: {peft: {peft_type: VERA}}, rank: 8, alpha: 16, lr: 1e-3}"),
     "8: arms.0", "alpha, rank", f"none: {PEFT_KEYS}", "remove alpha, rank"),
    (with_arm("{method: [lora, {peft: {peft_type: VERA}}], rank: 8, lr: 1e-3}"), "8: arms.0",
     "method 'peft' among others, which takes its settings", "it alone",
     "give it an arm of its own"),
    (with_arm("{method: {peft: {peft_type: VERA}, lora: 1}, lr: 1e-3}"), "8: arms.0.method",
     "method {'peft': {'peft_type': 'VERA'}, 'lora': 1}", "{peft: {peft_type: ADALORA, ...}}", ""),
    (with_arm("{method: dorra, rank: 8, lr: 1e-3}"), "8: arms.0.method", "method 'dorra'",
     f"one of {METHODS}, {{peft: {{peft_type", "did you mean 'dora'?"),
    (with_arm("{method: [dora, pissa], rank: 8, lr: 1e-3, lr_ratio: 4}"), "8: arms.0", "lr_ratio",
     "none with method 'dora'", "remove lr_ratio, or use lora+"),
    (with_arm("{method: dora, rank: 8, lr: 1e-3, lr_ratio: 4, system: x}"), "8: arms.0",
     "lr_ratio, system", "none with method 'dora'", "remove lr_ratio, system"),
    (with_arm("{method: [lora, pissa], lr: 1e-3, init_from: x}"), "8: arms.0",
     "'init_from' with method 'pissa'", "continues an adapter: lora, ", ""),
    (with_arm("{init_from: x, lr: 1e-3, lr_ratio: 4}"), "8: arms.0", "lr_ratio",
     "none with method of the adapter", ""),
    (with_arm("{lr: 1e-3, rank: 8}"), "8: arms.0", "no 'method'", "one of lora, ", ""),
]  # fmt: skip


@pytest.mark.pitfall(1)
@pytest.mark.parametrize(("text", "place", "found", "expected", "do"), FAULTS)
def test_a_fault_is_named_with_its_place_and_the_way_out(
    write: Write, text: str | bytes, place: str, found: str, expected: str, do: str
) -> None:
    (fault,) = faults(write(text))
    assert fault.where == (f"study.yaml:{place}" if place else "study.yaml")
    assert found in fault.found
    assert expected in fault.expected
    assert do in fault.do


# (override, place after it, found, expected, do)
OVERRIDE_FAULTS = [
    ("train.epoch=1", ": train.epoch", "an unknown key", "a known one", "did you mean 'epochs'?"),
    # A key of another section is found there, whatever it resembles here.
    ("rank=8", ": rank", "an unknown key", "a known one", "did you mean 'arms.0.rank'?"),
    ("seed=1", ": seed", "an unknown key", "a known one", "did you mean 'seeds'?"),
    ("train.margin=.1", ": train.margin", "an unknown key", "", "did you mean 'objective.margin'?"),
    ("batch_size=8", ": batch_size", "", "", "'arms.0.batch_size' or 'train.batch_size'?"),
    ("arms.7.rank=1", ": arms", "no entry '7'", "a number from 0 to 1", ""),
    ("arms.-1.rank=1", ": arms", "no entry '-1'", "a number from 0 to 1", ""),
    ("name.first=1", ": name", "'demo', which has no keys", "a section or a list", ""),
    ("arms.0.lr.0=1", ": arms.0.lr", "0.001, which has no keys", "", ""),
    ("arms.0.rank=0", ": arms.0.rank", "0", "greater than or equal to 1", "correct it"),
    ("memory_limit=0GiB", ": memory_limit", "'0GiB'", "greater than or equal to 1", ""),
    ("seeds=true", ": seeds", "true", "a valid integer", ""),
    ("train.epochs", "", "", "KEY=VALUE, such as train.epochs=1 or arms.0.rank=[2,8]", ""),
    ("train..epochs=1", "", "", "KEY=VALUE, such as train.epochs=1", ""),
    ("tasks=[", "", "a value that is not YAML (", "valid YAML", "correct it"),
    ("seeds={a: 1, a: 2}", ": seeds.a", "a second value of this key, which line 1 has too", "", ""),
]


@pytest.mark.parametrize(("override", "place", "found", "expected", "do"), OVERRIDE_FAULTS)
def test_overrides_that_do_not_fit(
    write: Write, override: str, place: str, found: str, expected: str, do: str
) -> None:
    (fault,) = faults(write(GOOD), override)
    assert fault.where == f"--set {override}{place}"
    assert found in fault.found
    assert expected in fault.expected
    assert do in fault.do


def test_a_fault_is_one_line_and_several_are_listed_in_the_order_of_the_file(write: Write) -> None:
    text = GOOD.replace("rank: [2, 8]", "rank: [0, 8]")
    line = "study.yaml:9: arms.0.rank.0 is 0, but must be greater than or equal to 1."
    with pytest.raises(UserError) as caught:
        load_study_file(write(text))
    assert str(caught.value) == line
    text = text.replace("lr: 5e-5", "lr: -1") + "  epoch: 2\n"
    with pytest.raises(UserError) as caught:
        load_study_file(write(text), ["train.batch_size=x", "sede=1"])
    first, *lines, last = str(caught.value).splitlines()
    assert (first, lines[0], last) == ("study.yaml: found 5 faults:", f"  {line}", "correct them")
    assert [fault.where for fault in caught.value.faults] == [
        "study.yaml:9: arms.0.rank.0", "study.yaml:12: arms.1.lr", "study.yaml:16: train.epoch",
        "--set sede=1: sede", "--set train.batch_size=x: train.batch_size",
    ]  # fmt: skip


def test_a_flood_of_faults_is_cut_and_counted(write: Write) -> None:
    found = faults(write(replaced("[2, 8]", str([0] * 5 + [-i for i in range(100)]))))
    assert len(found) == 21
    assert found[-1] == "... and 85 more"


def test_files_that_are_not_there(tmp_path: Path) -> None:
    assert faults(tmp_path / "none.yaml")[0].do.startswith("create it with: rankscope init")
    assert "directory" in faults(tmp_path)[0].found
    assert "null byte" in faults(Path("a\0b"))[0].found


@pytest.mark.pitfall(4)
@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch hit']",
        "!!python/object/new:subprocess.Popen [['touch', 'hit']]", "!!python/name:os.system",
        "!function hit.run", "!!binary aGl0", "!!set {a, b}",
    ],
)  # fmt: skip
def test_tags_are_refused_and_nothing_runs(write: Write, value: str) -> None:
    (fault,) = faults(write(replaced("[0, 1]", value)))
    assert fault.where == "study.yaml:13: seeds"
    assert fault.found.startswith("the tag '!")
    assert faults(write(GOOD), f"seeds={value}")[0].where.startswith("--set seeds=!")
    assert not Path("hit").exists()


@pytest.mark.parametrize("old", ["demo", "mine", "arc_easy"])
def test_names_that_leave_the_study_or_confuse_a_terminal(write: Write, old: str) -> None:
    names = [
        "../../x", "/etc/x", '"a\\0b"', "a" * 65, '"a\\eb"', '"a\\u202Eb"', '"a\\nb"', ".hidden",
    ]  # fmt: skip
    for name in [*names, '""', "a b", "'a\\b'", '"a\\n"', ".."]:
        (fault,) = faults(write(replaced(old, name)))
        assert fault.expected.startswith("1 to 64 letters")
        assert [path.name for path in Path().iterdir()] == ["study.yaml"]
    load_study_file(write(replaced(old, "a" * 64)))


# --- YAML's traps and strict values -------------------------------------------------------------

ARM = "1e-3\n    "  # Another key after the learning rate, on line 11

# (what is replaced, the values that are none, the place of the fault)
WRONG_VALUES = [
    ("1e-3", "{}", "0 0.0 .nan .inf -.inf -1e-3 true '1e-3' fast {} []", "10: arms.0.lr"),
    ("[2, 8]", "{}", "0 -1 2.5 8.0 true '8' eight .inf 8r", "9: arms.0.rank"),
    (
        "[2, 8]",
        "\n      - 4\n      - {}",
        "0 -1 2.5 8.0 true '8' eight .inf 8r",
        "11: arms.0.rank.1",
    ),
    (
        "1e-3",
        ARM + "alpha: {}",
        "0 -16 0r -2r r2 '2 r' 2R sqrt(2r) 0sqrt(r) true .nan .inf '' []",
        "11: arms.0.alpha",
    ),
    ("1e-3", ARM + "targets: {}", "every [] [''] [q,3] ['../x'] 5 ''", "11: arms.0.targets"),
    ("[0, 1]", "{}", f"-1 true 0.5 '0' {2**32}", "13: seeds"),
    ("epochs: 1", "epochs: {}", "0 .inf true", "15: train.epochs"),
    ("epochs: 1", "max_steps: {}", "0 1.5", "15: train.max_steps"),
    ("epochs: 1", "batch_size: {}", "'2'", "15: train.batch_size"),
    ("epochs: 1", "warmup_fraction: {}", "1", "15: train.warmup_fraction"),
    ("epochs: 1", "schedule: {}", "square", "15: train.schedule"),
    ("epochs: 1", "max_grad_norm: {}", ".inf", "15: train.max_grad_norm"),
    (
        "epochs: 1",
        "epochs: 1\nobjective: {{margin: {}}}",
        "'two points' '2' '-2 points' '2 pounds' '200 points' -0.1",
        "16: objective.margin",
    ),
    ("data/rows.jsonl", "{}", '"a\\0b" "a\\u202Eb" "a\\eb" ""', "6: tasks.1.train"),
    ("./base", "{{hub: '{}'}}", "../../x /etc/x a/b/c ./x a/.. a/b\\c", "2: model.hub"),
    ("./base", "{}", "{} {pocket:_false} {hub:_a/b,_path:_c}", "2: model"),
    ("./base", "{}", "{path:_c,_revision:_x}", "2: model"),
    ("./base", "{}", "{pocket:_yes}", "2: model.pocket"),
]


@pytest.mark.parametrize(
    ("old", "new", "value", "place"),
    [
        (old, new, value.replace("_", " "), place)
        for old, new, values, place in WRONG_VALUES
        for value in re.findall(r"'[^']*'|\S+", values)
    ],
)
def test_values_that_are_none(write: Write, old: str, new: str, value: str, place: str) -> None:
    """``lr`` and ``alpha`` may have several faults, as a number and as a text."""
    for fault in faults(write(replaced(old, new.format(value)))):
        assert fault.where == f"study.yaml:{place}"
        assert fault.found
        assert fault.expected


# (the value, what is replaced, by what, how it may be written)
READ_AS: list[tuple[Callable[[StudyConfig], object], str, str, dict[str, object]]] = [
    (lambda c: c.arms[0].lr, "1e-3", "{}", {"1E-3": [0.001], ".001": [0.001], "[1.e-3]": [0.001]}),
    (
        lambda c: c.arms[0].alpha,
        "1e-3",
        "1e-3\n    alpha: {}",
        {"2r": ["2r"], "r": ["r"], "1.5": [1.5], "[2r, 16]": ["2r", 16.0]},
    ),
    (
        lambda c: c.objective.margin,
        "epochs: 1",
        "epochs: 1\nobjective: {{margin: {}}}",
        {"2 points": 0.02, "1 point": 0.01, "2.5 %": 0.025, "0.05 nats": 0.05, "0.1": 0.1},
    ),
    (
        lambda c: c.memory_limit,
        "epochs: 1",
        "epochs: 1\nmemory_limit: {}",
        {"4096": 4096, "12GiB": 12 * 2**30, "12 GB": 12 * 10**9, "1.5 MiB": 3 * 2**19, "~": None},
    ),
]


@pytest.mark.parametrize(("value", "old", "new", "forms"), READ_AS)
def test_numbers_have_many_forms(
    write: Write,
    value: Callable[[StudyConfig], object],
    old: str,
    new: str,
    forms: dict[str, object],
) -> None:
    for text, expected in forms.items():
        assert value(load_study_file(write(replaced(old, new.format(text))))) == expected


def test_words_dates_and_octals_stay_what_they_look_like(write: Write) -> None:
    """YAML 1.1 reads words as booleans, dates as dates and 010 as 8."""
    for word in ("no", "yes", "on", "off", "y", "n", "2026-01-01", "'123'"):
        assert load_study_file(write(replaced("demo", word))).name == word.strip("'")
    assert load_study_file(write(replaced("[0, 1]", "[010]"))).seeds == [10]
    assert load_study_file(write(replaced("[0, 1]", "0"))).seeds == [0]


def test_a_key_without_a_value_means_its_default(write: Write) -> None:
    text = (
        replaced("  epochs: 1\n", "  # epochs: 1\n") + "evaluate:\ndata_dir:\nmax_group_size: ~\n"
    )
    assert load_study_file(write(text)).train.epochs == 3.0


# --- short forms and paths ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "field", "value"),
    [
        ("pocket", "pocket", True),
        ("Qwen/Qwen2.5-7B-Instruct", "hub", "Qwen/Qwen2.5-7B-Instruct"),
        ("my-model", "hub", None),  # a folder: no name alone is asked of the hub
        ("{hub: gpt2, revision: main}", "hub", "gpt2"),
    ],
)
def test_models_have_short_forms(write: Write, written: str, field: str, value: Any) -> None:
    model = load_study_file(write(replaced("./base", written))).model
    assert getattr(model, field) == value


def test_paths_start_at_the_study_file_and_overrides_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "studies", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = Path("../studies/study.yaml")
    retention = "evaluate:\n  retention:\n    - {name: r, test: ../r.jsonl, validation: ~/s}\n"
    path.write_text(GOOD + "data_dir: data\n" + retention)

    config = load_study_file(path)
    assert config.model.path == str(folder / "base")
    assert config.data_dir == str(folder / "data")
    assert config.tasks[1].train == str(folder / "data" / "rows.jsonl")
    assert config.evaluate.retention[0].test == str(tmp_path / "r.jsonl")
    assert config.evaluate.retention[0].validation == str(tmp_path / "home" / "s")

    config = load_study_file(
        path, ["model=./m", "data_dir=../shared", "tasks.1.train=t.jsonl", "tasks.1.test=/r"]
    )
    assert config.model.path == str(elsewhere / "m")
    assert config.data_dir == str(tmp_path / "shared")
    assert config.tasks[1].train == str(elsewhere / "t.jsonl")
    assert config.tasks[1].test == "/r"
    assert config.evaluate.retention[0].test == str(tmp_path / "r.jsonl")


# --- overrides ----------------------------------------------------------------------------------


def test_overrides_are_read_as_yaml_and_applied_in_order(write: Write) -> None:
    config = load_study_file(
        write(GOOD),
        [
            "train.epochs=2", "train.epochs=0.5", "arms.0.rank=[4, 16]", "arms.0.rank.1=32",
            "arms.1.lr=1e-5", "seeds=0", "evaluate.max_items=50",
            "evaluate.retention=[piqa, {name: boolq}]", "name=other", "train.batch_size=",
            "tasks.0.max_train_rows=64", "model.prompt_format=plain",
        ],
    )  # fmt: skip
    assert config.train.batch_size == 2  # the default
    assert config.train.epochs == 0.5
    assert config.arms[0].rank == [4, 32]
    assert config.arms[1].lr == [1e-5]
    assert config.seeds == [0]
    assert config.evaluate.max_items == 50
    assert [task.name for task in config.evaluate.retention] == ["piqa", "boolq"]
    assert config.name == "other"
    # Short forms are reached into, and a folder named in the file still starts there.
    assert (config.tasks[0].name, config.tasks[0].max_train_rows) == ("arc_easy", 64)
    assert (config.model.prompt_format, config.model.path) == ("plain", str(Path.cwd() / "base"))


# --- the resolved study -------------------------------------------------------------------------

FULL_OF_TRAPS = """\
name: '1e3'
model: {hub: '010', revision: '1e10'}
tasks:
  - {name: 'no', train: "a b: c #d.jsonl", prompt: "Q: {question}\\n# A:\\t", scorer: number}
  - {name: 'null', max_train_rows: 10}
  - {name: both, mixture: ['no', 'null']}
arms:
  - {method: rslora, rank: [8, 8], alpha: [r, 3], lr: [1e-7, 0.1], targets: [b, a.b], dropout: 0.1}
  - {method: full, lr: 123456.789, batch_size: 3}
  - {method: [lora+, lora], rank: 2, lr: 1, lr_ratio: 3, schedule: [cosine], weight_decay: 0}
  - {method: {peft: {peft_type: 'no', r: 3, x: ['1e3', {y: '#'}]}}, lr: 1, targets: mlp}
  - {method: [lora, lora+], lr: 1, init_from: '../no: #1'}
  - {method: dora, lr: 1, init_from: ~/x, rank: 3, alpha: 2r, targets: mlp}
  - {lr: [1, 2], init_from: y}
seeds: [0, 0, 4294967295]
evaluate: {cross_domain: ['true', '2026-01-01'], retention: [{name: '0.5', test: x}]}
objective: {max_forgetting: 0.1, cost: 0.5}
dtype: bfloat16
"""


@pytest.mark.parametrize("text", [GOOD, FULL_OF_TRAPS], ids=["plain", "traps"])
def test_a_dumped_study_loads_back_equal_from_anywhere(
    write: Write, tmp_path: Path, text: str
) -> None:
    config = load_study_file(write(text))
    elsewhere = tmp_path / "out"
    elsewhere.mkdir()
    dumped = elsewhere / "study.yaml"
    dumped.write_text(dump_study(config))
    again = load_study_file(dumped)
    assert again == config
    assert dump_study(again) == dump_study(config)


def test_a_dumped_arm_leaves_to_its_adapter_what_the_file_did(write: Write) -> None:
    """A default written out would be taken as what the arm says."""
    config = load_study_file(write(FULL_OF_TRAPS))
    again = load_study_file(write(dump_study(config)))
    assert [arm.num_points() for arm in config.arms[-3:]] == [2, 1, 2]
    for arm, same in zip(config.arms[-3:], again.arms[-3:], strict=True):
        assert arm.init_from == same.init_from
        for name in ("method", "rank", "alpha", "targets"):
            assert (name in arm.model_fields_set) == (name in same.model_fields_set)


def test_a_dumped_study_states_every_default(write: Write) -> None:
    text = dump_study(load_study_file(write(GOOD)))
    for section in ("train", "evaluate", "analyze", "objective"):
        fields = StudyConfig.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
        required = [n for n, f in fields.items() if f.default is not None]
        assert all(f"\n  {name}:" in text for name in required)
