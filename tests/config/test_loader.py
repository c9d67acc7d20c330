"""Loading a study file: every fault with its line, YAML's traps, paths, overrides."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankscope.config.loader import dump_study, load_study_file
from rankscope.config.study import MAX_TRIALS, StudyConfig
from rankscope.errors import UserError

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


def faults(path: Path, *overrides: str) -> list[str]:
    """The lines of the one UserError that loading raises; its exit code is 2."""
    with pytest.raises(UserError) as caught:
        load_study_file(path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


def replaced(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def test_a_good_file_loads_with_the_protocol_as_defaults(write: Write) -> None:
    config = load_study_file(write(GOOD))
    assert config.arms[0].rank == [2, 8]
    assert config.arms[0].lr == [0.001]
    assert config.arms[0].alpha == ["2r"]
    assert config.train.epochs == 1.0
    # The paper's protocol: batch 2, accumulation 4, linear with 10 % warm-up.
    assert (config.train.batch_size, config.train.gradient_accumulation) == (2, 4)
    assert (config.train.schedule, config.train.warmup_fraction) == ("linear", 0.1)


# --- unknown and repeated keys ------------------------------------------------------------------


def test_an_unknown_key_is_named_with_its_line_and_what_was_meant(write: Write) -> None:
    path = write(replaced("    rank: [2, 8]\n", "    rank: [2, 8]\n    lora_rnak: 8\n"))
    assert faults(path) == [
        "study.yaml:10: arms.0.lora_rnak: found an unknown key, expected a known one; did you mean "
        "'rank'?"
    ]


def test_an_unknown_key_like_no_other_lists_the_keys(write: Write) -> None:
    (fault,) = faults(write(GOOD + "  zzz: 1\n"))
    assert fault.startswith(
        "study.yaml:16: train.zzz: found an unknown key, expected one of epochs, "
    )
    assert fault.endswith("warmup_fraction, ... (20 in all); correct it")


def test_a_section_that_is_unknown(write: Write) -> None:
    (fault,) = faults(write(replaced("train:\n  epochs", "trian:\n  epochs")))
    assert (
        fault
        == "study.yaml:14: trian: found an unknown key, expected a known one; did you mean 'train'?"
    )


def test_an_unknown_key_without_a_value_is_still_unknown(write: Write) -> None:
    assert faults(write(GOOD + "sedes:\n")) == [
        "study.yaml:16: sedes: found an unknown key, expected a known one; did you mean 'seeds'?"
    ]


def test_a_key_that_is_repeated(write: Write) -> None:
    assert faults(write(GOOD + "seeds: 3\n")) == [
        "study.yaml:16: key 'seeds' is repeated, first on line 13"
    ]


def test_a_missing_key_is_named_at_its_section(write: Write) -> None:
    (fault,) = faults(write(replaced("    lr: 1e-3\n", "")))
    assert fault.startswith(
        "study.yaml:8: arms.0.lr: found nothing, expected a value (Peak learning"
    )


def test_all_faults_come_together_in_the_order_of_the_file(write: Write) -> None:
    text = GOOD.replace("rank: [2, 8]", "rank: [0, 8]").replace("lr: 5e-5", "lr: -1")
    found = faults(write(text + "  epoch: 2\n"), "train.batch_size=x", "sede=1")
    assert [fault.split(": ")[:2] for fault in found] == [
        ["study.yaml:9", "arms.0.rank.0"],
        ["study.yaml:12", "arms.1.lr"],
        ["study.yaml:16", "train.epoch"],
        ["--set sede=1", "sede"],
        ["--set train.batch_size=x", "train.batch_size"],
    ]


def test_a_flood_of_faults_is_cut_and_counted(write: Write) -> None:
    found = faults(write(replaced("[2, 8]", str([0] * 5 + [-i for i in range(100)]))))
    assert len(found) == 21
    assert found[-1] == "... and 85 more"


# --- what must not be executed or let through ---------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch hit']",
        "!!python/object/new:subprocess.Popen [['touch', 'hit']]",
        "!!python/name:os.system",
        "!function hit.run",
        "!!binary aGl0",
        "!!set {a, b}",
    ],
)
def test_tags_are_refused_and_nothing_runs(write: Write, value: str) -> None:
    (fault,) = faults(write(replaced("[0, 1]", value)))
    assert fault.startswith("study.yaml:13: found the tag '!")
    assert "expected plain values" in fault
    (fault,) = faults(write(GOOD), f"seeds={value}")
    assert fault.startswith("--set seeds=!")
    assert not Path("hit").exists()


def test_aliases_are_refused_so_nothing_can_grow(write: Write) -> None:
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\n"
    assert faults(write(bomb)) == [
        "study.yaml:2: not valid YAML: aliases (*name) are not supported: write the value out"
    ]
    (fault,) = faults(write("seeds: &s [*s]\n"))
    assert "study.yaml:1: not valid YAML: aliases" in fault


def test_deep_nesting_is_refused(write: Write) -> None:
    (fault,) = faults(write("seeds: " + "[" * 20_000))
    assert fault == "study.yaml:1: not valid YAML: nested too deeply, in more than 100 brackets"
    (fault,) = faults(write("seeds:\n" + "- " * 20_000))
    assert fault == "study.yaml: not valid YAML: nested too deeply"


def test_a_huge_file_is_refused(write: Write) -> None:
    (fault,) = faults(write(GOOD + "#" * 2**20))
    assert "larger than 524,288 bytes" in fault


def test_a_huge_grid_is_refused(write: Write) -> None:
    ranks = list(range(1, MAX_TRIALS))
    (fault,) = faults(write(replaced("[2, 8]", str(ranks))))
    assert "the grid has 40,000 trials: expected at most 10,000" in fault


NAMES = {
    "up": "../../x",
    "root": "/etc/x",
    "nul": '"a\\0b"',
    "long": "a" * 300,
    "control": '"a\\eb"',
    "right-to-left": '"a\\u202Eb"',
    "newline": '"a\\nb"',
    "dot": ".hidden",
    "empty": '""',
    "space": "a b",
    "backslash": "'a\\b'",
    "trailing newline": '"a\\n"',
    "dots": "..",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
@pytest.mark.parametrize("old", ["demo", "mine", "arc_easy"])
def test_names_that_leave_the_study_or_confuse_a_terminal(
    write: Write, name: str, old: str
) -> None:
    (fault,) = faults(write(replaced(old, name)))
    assert "expected 1 to 64 letters" in fault
    assert fault.isprintable()
    assert len(fault) < 250
    assert [path.name for path in Path().iterdir()] == ["study.yaml"]


def test_the_longest_name_that_fits(write: Write) -> None:
    assert load_study_file(write(replaced("demo", "a" * 64))).name == "a" * 64
    assert faults(write(replaced("demo", "a" * 65)))


@pytest.mark.parametrize("path", ['"a\\0b"', '"a\\u202Eb"', '"a\\eb"', '""'])
def test_paths_hold_only_printable_text(write: Write, path: str) -> None:
    (fault,) = faults(write(replaced("data/rows.jsonl", path)))
    assert fault.startswith("study.yaml:6: tasks.1.train: ")
    assert fault.isprintable()


@pytest.mark.parametrize("hub", ["../../x", "/etc/x", "a/b/c", "./x", "a/..", "a/b\\c"])
def test_a_hub_id_is_no_path(write: Write, hub: str) -> None:
    (fault,) = faults(write(replaced("model: ./base", f"model: {{hub: '{hub}'}}")))
    assert "a hub id such as 'owner/name', not a path" in fault


def test_unprintable_keys_are_escaped(write: Write) -> None:
    (fault,) = faults(write(GOOD + '"a\\u202Eb": 1\n'))
    assert fault.isprintable()
    assert "'a\\u202eb': found an unknown key" in fault


# --- files that are no study files --------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "study.yaml: the file is empty"),
        (b"# only a comment\n", "study.yaml: the file is empty"),
        (b"- a\n- b\n", "study.yaml:1: found a list, expected a mapping"),
        (b"hello\n", "study.yaml:1: found the text 'hello', expected a mapping"),
        (b"name: demo\nmodel: \xff\xfe\n", "study.yaml:2: byte 0xff is not UTF-8 text"),
        ("name: é\n".encode("utf-16"), "study.yaml:1: byte 0xff is not UTF-8 text"),
        (b"name: demo\ntrain:\n\tepochs: 1\n", "study.yaml:3: not valid YAML:"),
        (b"name: [a\n", "study.yaml:2: not valid YAML:"),
        (b"name: a\n---\nname: b\n", "study.yaml:2: not valid YAML:"),
        (b"name: a\nmodel: b\x00c\n", "study.yaml:2: character '\\x00' is not allowed"),
        (b"? [a, b]\n: c\n", "study.yaml:1: a key must be text"),
    ],
)
def test_what_is_no_study_file(write: Write, content: bytes, expected: str) -> None:
    assert faults(write(content))[0].startswith(expected)


def test_tabs_are_named(write: Write) -> None:
    assert "indent with spaces, not tabs" in faults(write("train:\n\tepochs: 1\n"))[0]


def test_a_byte_order_mark_is_accepted(write: Write) -> None:
    assert load_study_file(write(b"\xef\xbb\xbf" + GOOD.encode())).name == "demo"


def test_windows_line_ends_are_accepted(write: Write) -> None:
    path = write(GOOD.replace("\n", "\r\n") + "zz: 1\r\n")
    assert faults(path)[0].startswith("study.yaml:16: zz: found an unknown key")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path / "none.yaml")
    assert "no such file; write one with 'rankscope init" in fault
    (fault,) = faults(tmp_path)
    assert "found a folder" in fault
    (fault,) = faults(Path("a\0b"))
    assert fault.isprintable()


# --- YAML's traps and strict values -------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-3", 1e-3), ("1E-3", 1e-3), (".001", 1e-3), ("0.001", 1e-3), ("1.e-3", 1e-3), ("1", 1.0)],
)
def test_learning_rates_are_numbers_however_written(
    write: Write, written: str, value: float
) -> None:
    assert load_study_file(write(replaced("1e-3", written))).arms[0].lr == [value]
    assert load_study_file(write(replaced("1e-3", f"[{written}]"))).arms[0].lr == [value]


@pytest.mark.parametrize(
    "lr", ["0", "0.0", ".nan", ".inf", "-.inf", "-1e-3", "true", '"1e-3"', "fast", "{}", "[]"]
)
def test_learning_rates_that_are_none(write: Write, lr: str) -> None:
    for fault in faults(write(replaced("1e-3", lr))):
        assert fault.startswith("study.yaml:10: arms.0.lr: ")


@pytest.mark.parametrize("rank", ["0", "-1", "2.5", "8.0", "true", '"8"', "eight", ".inf", "8r"])
def test_ranks_that_are_none(write: Write, rank: str) -> None:
    (fault,) = faults(write(replaced("[2, 8]", rank)))
    assert fault.startswith("study.yaml:9: arms.0.rank: found ")
    (fault,) = faults(write(replaced("[2, 8]", f"\n      - 4\n      - {rank}")))
    assert fault.startswith("study.yaml:11: arms.0.rank.1: found ")


@pytest.mark.parametrize(
    ("written", "value"),
    [("2r", "2r"), ("r", "r"), ("0.5r", "0.5r"), ("16", 16.0), ("1.5", 1.5), ("[2r, 16]", None)],
)
def test_alpha_is_a_number_or_a_multiple(write: Write, written: str, value: Any) -> None:
    config = load_study_file(write(replaced("1e-3", f"1e-3\n    alpha: {written}")))
    assert config.arms[0].alpha == (["2r", 16.0] if value is None else [value])


@pytest.mark.parametrize(
    "alpha", ["0", "-16", "0r", "-2r", "r2", "2 r", "2R", "true", ".nan", ".inf", '""', "[]"]
)
def test_alphas_that_are_none(write: Write, alpha: str) -> None:
    (fault,) = faults(write(replaced("1e-3", f"1e-3\n    alpha: {alpha}")))
    assert fault.startswith("study.yaml:11: arms.0.alpha: ")


@pytest.mark.parametrize("targets", ["every", "[]", "['']", "[q_proj, 3]", "['../x']", "5", "''"])
def test_targets_that_are_none(write: Write, targets: str) -> None:
    (fault,) = faults(write(replaced("1e-3", f"1e-3\n    targets: {targets}")))
    assert fault.startswith("study.yaml:11: arms.0.targets: ")


@pytest.mark.parametrize(
    "line",
    [
        "epochs: 0",
        "epochs: .inf",
        "epochs: true",
        "max_steps: 0",
        "max_steps: 1.5",
        "batch_size: '2'",
        "warmup_fraction: 1",
        "schedule: square",
        "max_grad_norm: .inf",
    ],
)
def test_protocol_values_that_are_none(write: Write, line: str) -> None:
    (fault,) = faults(write(replaced("epochs: 1", line)))
    assert fault.startswith(f"study.yaml:15: train.{line.split(':')[0]}: found ")


@pytest.mark.parametrize("seeds", ["-1", "true", "0.5", "'0'", str(2**32)])
def test_seeds_that_are_none(write: Write, seeds: str) -> None:
    (fault,) = faults(write(replaced("[0, 1]", seeds)))
    assert fault.startswith("study.yaml:13: seeds: found ")


def test_words_that_yaml_1_1_takes_for_booleans_stay_words(write: Write) -> None:
    for word in ("no", "yes", "on", "off", "y", "n"):
        assert load_study_file(write(replaced("demo", word))).name == word


def test_dates_octals_and_clock_times_stay_what_they_look_like(write: Write) -> None:
    assert load_study_file(write(replaced("demo", "2026-01-01"))).name == "2026-01-01"
    assert load_study_file(write(replaced("[0, 1]", "[010]"))).seeds == [10]
    (fault,) = faults(write(replaced("[0, 1]", "1:30")))
    assert "found '1:30'" in fault


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("evaluate: {retention: piqa}", "expected a list such as ['piqa']"),
        ("evaluate: {retention: {name: piqa}}", "expected a list"),
        ("budget: 10", "expected a text such as '24 trials', '5e6 tokens' or '12 hours'"),
    ],
)
def test_a_value_without_its_list_or_unit_shows_how_to_write_it(
    write: Write, line: str, fault: str
) -> None:
    assert faults(write(f"{GOOD}{line}\n"))[0].removesuffix("; correct it").endswith(fault)


def test_a_number_of_seeds_is_no_list_of_seeds(write: Write) -> None:
    """``seeds: 3`` would train the one seed 3."""
    (fault,) = faults(write(replaced("[0, 1]", "3")))
    assert "found 3, expected a list: [3] is that seed alone, [0, 1, 2] are three" in fault
    assert load_study_file(write(replaced("[0, 1]", "0"))).seeds == [0]


def test_text_that_reads_as_a_number_asks_for_quotes(write: Write) -> None:
    (fault,) = faults(write(replaced("demo", "123")))
    assert fault == "study.yaml:1: name: found 123, expected a valid string; put it in quotes"
    assert load_study_file(write(replaced("demo", "'123'"))).name == "123"


def test_a_key_without_a_value_means_its_default(write: Write) -> None:
    text = (
        replaced("  epochs: 1\n", "  # epochs: 1\n") + "evaluate:\ndata_dir:\nmax_group_size: ~\n"
    )
    assert load_study_file(write(text)).train.epochs == 3.0


def test_full_fine_tuning_has_no_adapter_settings(write: Write) -> None:
    (fault,) = faults(write(replaced("lr: 5e-5", "lr: 5e-5\n    rank: 8\n    alpha: r")))
    assert fault == (
        "study.yaml:11: arms.1: found alpha, rank, expected none: method 'full' trains every "
        "weight; remove alpha, rank"
    )


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        (
            "{method: {peft: {r: 8}}, lr: 1e-3}",
            "arms.0.method: method peft: 'peft_type' is missing: name one, such as ADALORA or VERA",
        ),
        (
            "{method: {peft: {peft_type: VERA, target_modules: [q_proj]}}, lr: 1e-3}",
            "arms.0.method: method peft: remove 'target_modules': the arm's 'targets' names them",
        ),
        (
            "{method: {peft: {peft_type: VERA, d_initial: .nan}}, lr: 1e-3}",
            "arms.0.method: method peft: expected JSON values: ",
        ),
        (
            "{method: {peft: {peft_type: VERA}}, rank: 8, alpha: 16, lr: 1e-3}",
            "arms.0: found alpha, rank, expected none: method 'peft' takes its settings from "
            "PEFT's configuration, under PEFT's names; remove alpha, rank",
        ),
        (
            "{method: [lora, {peft: {peft_type: VERA}}], rank: 8, lr: 1e-3}",
            "arms.0: found method 'peft' among others, which takes its settings from PEFT's "
            "configuration, under PEFT's names, expected it alone; give it an arm of its own",
        ),
        (
            "{method: {peft: {peft_type: VERA}, lora: 1}, lr: 1e-3}",
            "arms.0.method: method {'peft': {'peft_type': 'VERA'}, 'lora': 1}: expected {peft: ",
        ),
        (
            "{method: dorra, rank: 8, lr: 1e-3}",
            "arms.0.method: found method 'dorra', expected one of lora, rslora, lora+, dora, "
            "pissa, eva, nested, full, or another PEFT method as {peft: {peft_type: ADALORA, "
            "...}}; did you mean 'dora'?",
        ),
        (
            "{method: [dora, pissa], rank: 8, lr: 1e-3, lr_ratio: 4}",
            "arms.0: found lr_ratio, expected none with method 'dora'; remove it, or use lora+",
        ),
        (
            "{method: [lora, pissa], lr: 1e-3, init_from: x}",
            "arms.0: 'init_from' continues a LoRA or DoRA adapter: expected a method among "
            "lora, rslora, lora+, dora, found 'pissa'",
        ),
        ("{method: lora, lr: 1e-3, init_from: }", "arms.0: method 'lora' needs 'rank'"),
        (
            "{init_from: x, lr: 1e-3, lr_ratio: 4}",
            "arms.0: found lr_ratio, expected none with method of the adapter; remove it, ",
        ),
        ("{lr: 1e-3, rank: 8}", "arms.0: 'method' is missing: name one of lora, rslora, lora+"),
    ],
)
def test_arms_that_contradict_themselves(write: Write, arm: str, expected: str) -> None:
    start = GOOD.index("  - method: lora")
    text = GOOD[:start] + f"  - {arm}\n" + GOOD[GOOD.index("  - method: full") :]
    (fault,) = faults(write(text))
    assert fault.startswith(f"study.yaml:8: {expected}")


@pytest.mark.parametrize(
    ("written", "bytes_"),
    [
        ("4096", 4096),
        ("12GiB", 12 * 2**30),
        ("12 GB", 12 * 10**9),
        ("1.5 MiB", 3 * 2**19),
        ("~", None),
    ],
)
def test_a_memory_limit_is_bytes(write: Write, written: str, bytes_: int | None) -> None:
    assert load_study_file(write(f"{GOOD}memory_limit: {written}\n")).memory_limit == bytes_


def test_lora_needs_a_rank(write: Write) -> None:
    (fault,) = faults(write(replaced("    rank: [2, 8]\n", "")))
    assert fault == "study.yaml:8: arms.0: method 'lora' needs 'rank'"


def test_a_training_task_that_is_repeated(write: Write) -> None:
    (fault,) = faults(write(replaced("name: mine", "name: arc_easy")))
    assert "training task 'arc_easy' is listed twice" in fault


def test_a_name_stands_for_one_task(write: Write) -> None:
    bare = GOOD + "evaluate:\n  retention: [mine, {name: arc_easy}, piqa]\n  cross_domain: [piqa]\n"
    tasks = load_study_file(write(bare)).evaluation_tasks()
    assert list(tasks) == ["arc_easy", "mine", "piqa"]
    assert tasks["mine"].train is not None
    other = GOOD + "evaluate:\n  retention: [{name: mine, test: other.jsonl}]\n"
    (fault,) = faults(write(other))
    assert "task 'mine' has two different descriptions" in fault


def test_long_values_are_cut_in_messages(write: Write) -> None:
    (fault,) = faults(write(replaced("[2, 8]", "x" * 100_000)))
    assert len(fault) < 200


# --- short forms and paths ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "field", "value"),
    [
        ("pocket", "pocket", True),
        ("Qwen/Qwen2.5-7B-Instruct", "hub", "Qwen/Qwen2.5-7B-Instruct"),
        ("smollm2-135m", "cached", "smollm2-135m"),
        ("{hub: gpt2, revision: main}", "hub", "gpt2"),
    ],
)
def test_models_have_short_forms(write: Write, written: str, field: str, value: Any) -> None:
    model = load_study_file(write(replaced("./base", written))).model
    assert getattr(model, field) == value


@pytest.mark.parametrize(
    "model",
    ["{}", "{pocket: false}", "{hub: a/b, path: c}", "{path: c, revision: x}", "{pocket: yes}"],
)
def test_models_that_are_none(write: Write, model: str) -> None:
    (fault,) = faults(write(replaced("./base", model)))
    assert fault.startswith("study.yaml:2: model")


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


def test_a_home_that_is_not_there(write: Write) -> None:
    assert faults(write(replaced("./base", "~no-such-user-here/m"))) == [
        "study.yaml:2: model.path: '~no-such-user-here/m': this home folder does not exist"
    ]


# --- overrides ----------------------------------------------------------------------------------


def test_overrides_are_read_as_yaml_and_applied_in_order(write: Write) -> None:
    config = load_study_file(
        write(GOOD),
        [
            "train.epochs=2",
            "train.epochs=0.5",
            "arms.0.rank=[4, 16]",
            "arms.0.rank.1=32",
            "arms.1.lr=1e-5",
            "seeds=0",
            "evaluate.max_items=50",
            "evaluate.retention=[piqa, {name: boolq}]",
            "analyze.spectra.enabled=false",
            "name=other",
        ],
    )
    assert config.train.epochs == 0.5
    assert config.arms[0].rank == [4, 32]
    assert config.arms[1].lr == [1e-5]
    assert config.seeds == [0]
    assert config.evaluate.max_items == 50
    assert [task.name for task in config.evaluate.retention] == ["piqa", "boolq"]
    assert not config.analyze.spectra.enabled
    assert config.name == "other"


def test_an_override_reaches_into_short_forms(write: Write) -> None:
    config = load_study_file(
        write(GOOD),
        ["tasks.0.max_train_rows=64", "model.prompt_format=plain", "evaluate.max_items=3"],
    )
    assert (config.tasks[0].name, config.tasks[0].max_train_rows) == ("arc_easy", 64)
    assert config.model.prompt_format == "plain"
    # The folder was named in the file, so it still starts there.
    assert config.model.path == str(Path.cwd() / "base")


def test_an_override_without_a_value_restores_the_default(write: Write) -> None:
    assert load_study_file(write(GOOD), ["train.epochs="]).train.epochs == 3.0


def test_an_override_mends_the_file(write: Write) -> None:
    broken = write(replaced("[2, 8]", "[0]"))
    assert faults(broken)
    assert load_study_file(broken, ["arms.0.rank=8"]).arms[0].rank == [8]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "train.epoch=1",
            "train.epoch: found an unknown key, expected a known one; did you mean 'epochs'?",
        ),
        (
            "trian.epochs=1",
            "trian: found an unknown key, expected a known one; did you mean 'train'?",
        ),
        (
            "arms.0.lora_rnak=1",
            "arms.0.lora_rnak: found an unknown key, expected a known one; did you mean 'rank'?",
        ),
        ("rank=8", "rank: found an unknown key, expected a known one; did you mean 'arms.0.rank'?"),
        ("train.lr=1", "train.lr: found an unknown key, expected a known one; did you mean 'arms."),
        ("arms.7.rank=1", "arms has no entry '7': expected a number from 0 to 1"),
        ("arms.-1.rank=1", "arms has no entry '-1': expected a number from 0 to 1"),
        ("arms.rank=1", "arms has no entry 'rank': expected a number from 0 to 1"),
        ("seeds.5=1", "seeds has no entry '5': expected a number from 0 to 1"),
        ("name.first=1", "name is 'demo', which has no keys"),
        ("arms.0.lr.0=1", "arms.0.lr is 0.001, which has no keys"),
        ("arms.0.rank=0", "arms.0.rank: found 0, expected greater than or equal to 1"),
        ("seeds=true", "seeds: found true, expected a valid integer"),
        ("train.epochs", "expected KEY=VALUE, such as train.epochs=1 or arms.0.rank=[2,8]"),
        ("=1", "expected KEY=VALUE, such as train.epochs=1 or arms.0.rank=[2,8]"),
        ("train..epochs=1", "expected KEY=VALUE, such as train.epochs=1 or arms.0.rank=[2,8]"),
        ("tasks=[", "the value is not valid YAML: "),
        ("seeds={a: 1, a: 2}", "key 'a' is repeated, first on line 1"),
    ],
)
def test_overrides_that_do_not_fit(write: Write, override: str, expected: str) -> None:
    (fault,) = faults(write(GOOD), override)
    assert fault.startswith(f"--set {override}: {expected}")


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
