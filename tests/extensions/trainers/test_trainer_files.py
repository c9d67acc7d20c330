"""Files of other trainers become studies, and get the settings that a study found.

The files in ``trainer_files/`` are typical ones of each trainer, by their documentation.
"""

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_tokenizers import CHATML, byte_tokenizer
from command_line import files_below, rankscope as command, settings, write_rows

from rankscope.config.loader import load_study_file
from rankscope.config.task import TaskConfig
from rankscope.config.yaml_changes import literal, read_values, with_values
from rankscope.data.encode import Encoder
from rankscope.data.tasks import read_task_items
from rankscope.errors import UserError
from rankscope.extensions.trainers.documents import read_document
from rankscope.extensions.trainers.files import read_trainer_file
from rankscope.models.model_folder import pocket_folder

FILES = Path(__file__).with_name("trainer_files")
WORDS = "fox wolf bear otter heron eagle horse goat".split()  # known to the pocket tokenizer
ALL = ["all-linear"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: the files, and 300 rows of each of three shapes."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    pairs = [(f"say {n} ", f"{WORDS[n % 8]} {WORDS[n % 5]}") for n in range(300)]
    write_rows(tmp_path / "pairs.jsonl", [{"prompt": p, "completion": c} for p, c in pairs])
    write_rows(
        tmp_path / "alpaca.jsonl", [{"instruction": p, "input": "", "output": c} for p, c in pairs]
    )
    turns = [[("user", p), ("assistant", c)] for p, c in pairs]
    chats = [{"messages": [{"role": r, "content": c} for r, c in chat]} for chat in turns]
    write_rows(tmp_path / "chats.jsonl", chats)
    return tmp_path


# Read off each file by hand: ranks, alpha, rates, targets; then the protocol.
STUDIES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "axolotl.yml": (
        [[4, 16, 64], ["2r"], [1e-4, 2e-4, 4e-4], ALL, [0.05]],
        # 300 rows in steps of 8 are 38 steps an epoch; 9 of 114 are .0789 of them.
        {"epochs": 3, "batch_size": 2, "gradient_accumulation": 4, "schedule": "cosine",
         "warmup_fraction": 0.0789, "weight_decay": 0.01, "max_length": 512,
         "labels": "completion", "gradient_checkpointing": True},
    ),
    "llama_factory.yaml": (
        [[2, 8, 32], ["2r"], [5e-5, 1e-4, 2e-4], ALL, [0.0]],
        {"epochs": 3, "batch_size": 1, "gradient_accumulation": 8, "schedule": "cosine",
         "warmup_fraction": 0.1, "max_length": 256, "labels": "completion"},
    ),
    "trl.yaml": (
        [[8, 32, 128], ["0.5r"], [1e-4, 2e-4, 4e-4], [["q_proj", "v_proj"]], [0.05]],
        {"epochs": 1, "batch_size": 2, "gradient_accumulation": 8, "schedule": "constant",
         "warmup_fraction": 0.03, "max_length": 128, "labels": "completion"},
    ),
    "trl_script.py": (
        [[4, 16, 64], ["1r"], [5e-5, 1e-4, 2e-4], ["attention"], [0.0]],
        {"max_steps": 60, "batch_size": 4, "gradient_accumulation": 2, "schedule": "linear",
         "warmup_fraction": 0.1, "max_length": 64},
    ),
    "unsloth.ipynb": (
        [[4, 16, 64], ["1r"], [1e-4, 2e-4, 4e-4], ALL, [0.0]],
        {"max_steps": 60, "batch_size": 2, "gradient_accumulation": 4, "schedule": "linear",
         "warmup_fraction": 0.0833, "weight_decay": 0.001, "max_length": 2048,
         "labels": "completion"},
    ),
    "adapter": (
        # rsLoRA: alpha stays, as its scaling depends on the rank already.
        [[4, 16, 64], [32.0], [5e-5, 1e-4, 2e-4], [["q_proj", "v_proj"]], [0.0]],
        {"epochs": 3, "batch_size": 4},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_has_their_settings_in_its_middle(place: Path, name: str) -> None:
    own = ("--data", "pairs.jsonl") if name == "adapter" else ()
    outcome = command("init", "s.yaml", "--from", name, "--model", "pocket", *own, "--json")
    assert outcome.code == 0, outcome.told
    assert json.loads(outcome.out)["missing"] == []
    study = load_study_file(place / "s.yaml")
    (arm,) = study.arms
    facts, protocol = STUDIES[name]
    assert [arm.rank, arm.alpha, arm.lr, arm.targets, arm.dropout] == facts
    assert arm.method == ["rslora" if name == "adapter" else "lora"]
    assert {key: getattr(study.train, key) for key in protocol} == protocol
    assert (study.strategy, study.quantize) == ("search", "none")
    text = (place / "s.yaml").read_text("utf-8")
    assert text.startswith(f"# Made from {name}, a file of ")
    assert "Not understood" not in text
    checked = command("check", "s.yaml", *settings("seeds=0", "evaluate.retention=[]"))
    assert checked.code == 0, checked.told


@pytest.mark.parametrize("name", [name for name in STUDIES if name != "adapter"])
def test_the_base_is_the_files_own(place: Path, name: str) -> None:
    assert command("init", "s.yaml", "--from", name).code == 0
    model = load_study_file(place / "s.yaml").model
    assert model.hub in (place / name).read_text("utf-8")  # type: ignore[operator]


def test_every_key_is_in_the_table(place: Path) -> None:
    with (place / "axolotl.yml").open("a", encoding="utf-8") as file:
        file.write("lora_rnak: 4\nneftune_noise_alpha: 5\n")
    outcome = command("init", "s.yaml", "--from", "axolotl.yml", "--model", "pocket")
    assert "not understood: lora_rnak: 4" in outcome.told
    head = (place / "s.yaml").read_text("utf-8").partition("\nname:")[0]
    for line in (
        "#   lora_r = 16 -> arms.0.rank: a quarter, itself, four times",
        "#   base_model = \"HuggingFaceTB/SmolLM2-135M\" -> replaced by an option",
        "#   sample_packing = true -> rows are kept apart, and a batch counts rows",
        "#   neftune_noise_alpha = 5 -> the study has no such setting",
        "# Not understood:\n#   lora_rnak: 4\n",
        "#   train.warmup_fraction is 9 of about 114 steps",
    ):  # fmt: skip
        assert line in head


def test_rows_of_the_hub_and_four_bits(place: Path) -> None:
    (place / "q.yml").write_text(
        "base_model: a/b\nadapter: qlora\nload_in_4bit: true\nlora_r: 128\nlora_alpha: 16\n"
        "lora_target_linear: true\nlearning_rate: 2e-4\n"
        "datasets: [{path: owner/rows, type: alpaca}]\n"
    )
    assert command("init", "s.yaml", "--from", "q.yml").code == 0
    study = load_study_file(place / "s.yaml")
    assert (study.quantize, study.model.hub, study.model.prompt_format) == ("4bit", "a/b", "plain")
    assert study.tasks[0].hub == "owner/rows"
    assert (study.arms[0].rank, study.arms[0].targets) == ([32, 128, 256], ["all-linear"])
    assert study.arms[0].alpha == ["0.125r"]
    head = (place / "s.yaml").read_text("utf-8")
    assert "#   rows were not read: prompts are worded as the study does" in head


def test_two_data_sets_are_a_mixture(place: Path) -> None:
    asked = ("init", "s.yaml", "--from", "trl.yaml", "--model", "pocket")
    (place / "more").mkdir()
    shutil.copyfile(place / "chats.jsonl", place / "more" / "chats.jsonl")
    file = place / "trl.yaml"
    text = file.read_text("utf-8")
    two = "datasets: [{path: more/chats.jsonl}, {path: chats.jsonl}]"
    file.write_text(text.replace("dataset_name: chats.jsonl", two), "utf-8")
    assert command(*asked).code == 0
    study = load_study_file(place / "s.yaml")
    assert [task.mixture for task in study.tasks] == [["chats_1", "chats_2"]]  # Names differ
    assert [task.name for task in study.evaluate.cross_domain] == ["chats_1", "chats_2"]
    # TRL learns the completions of pairs and all tokens of chats; a study has one rule.
    file.write_text(text.replace("dataset_name: chats.jsonl", two.replace("more/chats", "pairs")))
    refused = command(*asked, "--force")
    assert refused.code == 2
    assert "data sets of other templates or labels" in refused.told


def test_a_warm_up_of_no_steps_is_none_and_names_are_as_assigned(place: Path) -> None:
    asked = ("init", "s.yaml", "--from", "lora.yml", "--model", "pocket", "--force")
    lines = "base_model: a/b\nadapter: lora\nlora_r: 8\nlora_alpha: 16\nlearning_rate: 1e-4\n"
    lines += "datasets: [{path: pairs.jsonl, type: {field_instruction: prompt, "
    lines += "field_output: completion, format: 'Q {instruction}'}}]\n"
    for more, share in (("", 0.03), ("warmup_steps: 0\n", 0.0), ("warmup_ratio: 0.2\n", 0.2)):
        (place / "lora.yml").write_text(lines + more)
        assert command(*asked).code == 0, more
        assert load_study_file(place / "s.yaml").train.warmup_fraction == share
    code = "r = 8\nargs = SFTConfig(max_length=64)\ndef main(r):\n    LoraConfig(r=r)\nmain(64)\n"
    (place / "s.py").write_text(
        code + "if False:\n    0\nelse:\n    SFTConfig(learning_rate=1e-3)\n"
    )
    document = read_document(place / "s.py", {"SFTConfig": [], "LoraConfig": []})
    assert document.computed == {"LoraConfig.r": "r"}
    assert document.values["SFTConfig.learning_rate"] == 1e-3


def test_a_list_of_dashes_becomes_the_word_of_the_trainer(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("lora_target_modules:\n- q_proj\n- v_proj\nlora_r: 4\n")
    document = read_document(tmp_path / "t.yaml", {})
    new = document.patched({"lora_target_modules": "all-linear", "lora_r": 8})
    assert yaml.safe_load(new) == {"lora_target_modules": "all-linear", "lora_r": 8}
    new = document.patched({"lora_target_modules": ["k_proj", "o_proj"]})
    assert new == "lora_target_modules:\n- k_proj\n- o_proj\nlora_r: 4\n"


def test_all_faults_are_in_one_message(place: Path) -> None:
    (place / "bad.yml").write_text(
        "base_model: a/b\nadapter: ia3\nrl: dpo\ntrust_remote_code: true\nlora_r: many\n"
        "peft_use_dora: true\npeft_use_rslora: true\ndatasets:\n  - {path: x.jsonl, type: alpaca}\n"
        "  - {path: c/d, type: input_output}\nlearning_rate: 1e-4\nlora_rnak: 3\n"
    )
    outcome = command("init", "s.yaml", "--from", "bad.yml")
    assert outcome.code == 2
    for part in (
        "found 10 faults in a file of axolotl",
        "trust_remote_code: found True, expected false",
        "lora_r: found 'many', expected a positive whole number",
        "rl: found another stage, expected supervised fine-tuning",
        "adapter: found ia3, expected lora or qlora",
        "found no rank, expected one",
        "found no alpha, expected one",
        "found rslora and dora together",
        "found no rows at x.jsonl, expected a file or a hub id; give --data",
        "found type input_output, expected alpaca",
        "lora_rnak: 3 is not understood",
    ):
        assert part in outcome.told
    assert not (place / "s.yaml").exists()


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("x.yaml", "learning: 1\n", "settings of axolotl, LLaMA-Factory, PEFT, TRL, Unsloth"),
        ("x.txt", "r: 1\n", "a file of a trainer (.yaml, .yml, .json, .py, .ipynb)"),
        ("x.py", "from trl import DPOConfig\nDPOConfig(beta=1)\n", "found another stage"),
        ("x.py", "LoraConfig(r=rank)\n", "LoraConfig.r: found rank, expected a value"),
        ("x.py", "LoraConfig(**kwargs)\n", "LoraConfig.**: found kwargs, expected a value"),
        ("x.py", "load_dataset('a/b').map(words)\nLoraConfig(r=4)\n", "found a call of map"),
        ("x.py", "SFTConfig(max_length=None)\nLoraConfig()\n", "found None, expected a number"),
        ("x.yaml", "lora_r: 4\nmodel_name_or_path: a/b\n", "found full fine-tuning, expected"),
        ("x.py", "LoraConfig(r=1)\nLoraConfig(r=2)\n", "LoraConfig.r: found several calls"),
        ("x.py", "SFTConfig(max_length=1)\n", "found full fine-tuning, expected a LoRA adapter"),
        ("x.py", "open('ran', 'w')\nLoraConfig(r=4)\n", "found no base model, expected one"),
        ("x.py", "LoraConfig(r=\n", "expected a file of a trainer that can be parsed"),
        ("x.json", '{"peft_type": "IA3", "r": 4}', "peft_type: found IA3, expected LORA"),
        ("x.json", '{"lora_r": 4,\n\t"use_peft": false}', "found full fine-tuning"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_study_is_refused(place: Path, name: str, text: str, part: str) -> None:
    (place / name).write_text(text, "utf-8")
    outcome = command("init", "s.yaml", "--from", name)
    assert (outcome.code, (place / "s.yaml").exists()) == (2, False)
    assert not (place / "ran").exists()  # a script is read, never run
    assert part in outcome.told


# --- tokens ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of TRL's own imports
@pytest.mark.parametrize("name", ["pairs", "chats", "texts"])
def test_rows_have_the_tokens_of_trl(place: Path, tmp_path: Path, name: str) -> None:
    """Input ids, labels and the cut of too long rows, for three shapes."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    length = 24 if name == "pairs" else 100
    write_rows(place / "texts.jsonl", [{"text": "say ba do " * n} for n in range(1, 30)])
    (place / "t.yaml").write_text(
        f"model_name_or_path: a/b\ndataset_name: {name}.jsonl\nuse_peft: true\nlora_r: 4\n"
        f"max_length: {length}\n"
    )
    assert command("init", "s.yaml", "--from", "t.yaml").code == 0
    study = load_study_file(place / "s.yaml")
    tokenizer = byte_tokenizer(CHATML, eos="<|im_end|>")
    trainer: Any = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(pocket_folder()),
        args=SFTConfig(output_dir=str(tmp_path / "o"), max_length=length, report_to="none",
                       use_cpu=True, bf16=False),
        processing_class=tokenizer,
        train_dataset=load_dataset("json", data_files=f"{name}.jsonl", split="train",
                                   cache_dir=str(tmp_path / "c")),
    )  # fmt: skip
    batch = trainer.data_collator
    theirs = []
    for row in trainer.train_dataset:
        made = batch([row])
        labels = [int(label) != -100 for label in made["labels"][0]]
        theirs.append((made["input_ids"][0].tolist(), [False, *labels[1:]]))
    encoder = Encoder(tokenizer, study.model.prompt_format, study.train.max_length)
    (config,) = study.tasks
    whole = TaskConfig.model_validate({"name": config.name, "train": str(place / f"{name}.jsonl")})
    items = read_task_items(whole.model_copy(update={"prompt": config.prompt}), None, ())[1]
    ours = {}
    for item in items["train"]:
        row = encoder.training_row(item, study.train.labels)
        assert row is not None
        ours[row.input_ids] = list(row.is_label)
    # A template's line feed after the last turn is learned by TRL alone, as the table says.
    tail = 1 if name == "chats" else 0
    for ids, labels in theirs:
        end = len(ids) - tail if len(ids) < length else len(ids)
        assert ours[tuple(ids[:end])] == labels[:end]
    assert len(theirs) == len(items["train"])


# --- back -----------------------------------------------------------------------------------------

WRITTEN = r"(lora_(r|rank|alpha|dropout|target\w*)|r|target_modules|learning_rate)"
LINE = re.compile(rf'\s*(" *)?{WRITTEN}(: |=|:$)| *- \w+_proj')
"""Beginning of a line with one of the five settings that are written."""
RUNS = [name for name in STUDIES if name != "adapter"]


def other_lines(text: str) -> list[str]:
    return [line for line in text.splitlines(keepends=True) if not LINE.match(line)]


@pytest.mark.parametrize("is_bare", [False, True], ids=["with the keys", "without them"])
@pytest.mark.parametrize("name", RUNS)
def test_a_file_gets_the_arms_five_settings_and_keeps_every_other_line(
    place: Path, small: Path, name: str, is_bare: bool
) -> None:
    """r=2, alpha 4, rate 2e-3 on attention without dropout; the study trained 8 steps."""
    file, new = place / name, place / f"new-{name}"
    before = file.read_text("utf-8")
    if is_bare:
        file.write_text("".join(other_lines(before)), "utf-8")
    old = file.read_text("utf-8")
    outcome = command("export", small, "r=2 lr=0.002", "--patch", name, "--out", new.name)
    assert outcome.code == 0, outcome.told
    assert other_lines(new.read_text("utf-8")) == other_lines(old) == other_lines(before)
    run = read_trainer_file(new)
    found = [run.facts[fact] for fact in ("rank", "alpha", "lr", "targets", "dropout")]
    assert found == [2, 4, 2e-3, "attention", 0]
    assert not {"rank", "alpha", "lr", "targets", "dropout"} - run.sources.keys()  # all written
    added = set(new.read_text("utf-8").splitlines()) - set(old.splitlines())
    assert {f"+{line}" for line in added} <= {*outcome.out.splitlines()}
    again = command("export", small, "r=2 lr=0.002", "--patch", name, "--out", new.name)
    assert (again.code, "found a file of that name" in again.told) == (2, True)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("a.py", "LoraConfig(task_type='é', r=4)", "LoraConfig(task_type='é', r=4, lora_alpha=8)"),
        ("a.py", "LoraConfig(\n  r=(\n  4)  # é\n)",
         "LoraConfig(\n  r=(\n  4),  # é\n  lora_alpha=8\n)"),
        ("a.py", "LoraConfig(\n  r=4,  # é\n)", "LoraConfig(\n  r=4,  # é\n  lora_alpha=8,\n)"),
        ("a.py", "LoraConfig(\n  lora_dropout=0,\n  r=4)",
         "LoraConfig(\n  lora_dropout=0,\n  lora_alpha=8,\n  r=4)"),
        ("a.json", '{\n\t"r": 4\n}', '{\n\t"r": 4,\n\t"lora_alpha": 8\n}'),
        ("a.json", '{"lora_r": 4, "b": 1}', '{"lora_r": 4, "lora_alpha": 8, "b": 1}'),
        ("a.yaml", "{r: 4, # é\n b: 1}", '{r: 4, # é\n b: 1, "lora_alpha": 8}'),
        ("a.yaml", "lora_r: 4 # é\r\nb: 1", "lora_r: 4 # é\r\nlora_alpha: 8\r\nb: 1"),
        ("a.yaml", "r: 4\nb: |\n  c\n\n# é\n", "r: 4\nb: |\n  c\nlora_alpha: 8\n\n# é\n"),
        ("a.yaml", "r: 4\nb:", "r: 4\nb:\nlora_alpha: 8"),
        ("a.yaml", "lora_target:\n- q_proj # é\n- o_proj\nb: 1",
         "lora_target:\n- q_proj # é\n- o_proj\nlora_alpha: 8\nb: 1"),
    ],
)  # fmt: skip
def test_a_missing_key_is_added_in_the_layout_of_its_neighbor(
    tmp_path: Path, name: str, old: str, new: str
) -> None:
    (tmp_path / name).write_text(old, "utf-8", newline="")
    document = read_document(tmp_path / name, {"LoraConfig": []})
    call = "LoraConfig." if name == "a.py" else ""
    assert document.patched({f"{call}lora_alpha": 8}) == new
    with pytest.raises(UserError, match="no call that takes"):
        document.patched({"SFTConfig.learning_rate": 1})


@pytest.mark.parametrize("indent", [None, 1, "\t"])
@pytest.mark.parametrize("is_list", [True, False])
@pytest.mark.parametrize("text", ["é", "\\u00e9"])
def test_a_notebook_keeps_its_layout(
    tmp_path: Path, indent: int | str | None, is_list: bool, text: str
) -> None:
    """All but the changed strings is the same to the byte, numbers and escapes included."""

    code = "# SIGN\na = LoraConfig(\n    r=4,\n    bias='none',  # SIGN\n)\n"

    def written(changed: str) -> str:
        cells = [changed, "x = 'SIGN'\n", code.replace("Lora", "Other")]
        sources: list[Any] = [cell.splitlines(keepends=True) if is_list else cell for cell in cells]
        book = {"nbformat": 4, "cells": [
            {"source": "LoraConfig(r=4)", "cell_type": "markdown"},
            *({"source": source, "outputs": [{"data": {"source": ["LoraConfig(r=4)"], "n": 0.5}}],
               "cell_type": "code"} for source in sources)]}  # fmt: skip
        mixed = json.dumps(book, indent=indent, separators=(",", ": "))
        return mixed.replace("0.5", "5e-1").replace("SIGN", text) + "\r\n"

    new = code.replace("r=4", "r=8").replace("  # SIGN\n)", "  # SIGN\n    lora_alpha=16,\n)")
    (tmp_path / "n.ipynb").write_text(written(code), "utf-8", newline="")
    document = read_document(tmp_path / "n.ipynb", {"LoraConfig": []})
    assert document.patched({"LoraConfig.r": 8, "LoraConfig.lora_alpha": 16}) == written(new)
    assert document.patched({}) == written(code)


def test_all_linear_layers_beside_named_ones_give_way_to_the_arms(place: Path, small: Path) -> None:
    text = (place / "axolotl.yml").read_text("utf-8")
    both = text.replace("lora_target_modules:", "lora_target_linear: true\nlora_target_modules:")
    (place / "axolotl.yml").write_text(both, "utf-8")
    done = command("export", small, "r=2 lr=0.002", "--patch", "axolotl.yml", "--out", "new.yml")
    assert done.code == 0, done.told
    assert read_trainer_file(place / "new.yml").facts["targets"] == "attention"


def test_of_full_fine_tuning_the_rate_is_written_alone(place: Path, small: Path) -> None:
    for name in RUNS:
        done = command("export", small, "full", "--patch", name, "--out", f"new-{name}")
        assert done.code == 0, done.told
        old, new = read_trainer_file(place / name), read_trainer_file(place / f"new-{name}")
        assert new.facts == old.facts | {"lr": 5e-4}
        assert "note: the LoRA keys are left, remove them to train in full: " in done.told
        assert f"{old.sources['rank']}, " in done.told


def test_what_cannot_be_patched_is_refused(place: Path, small: Path) -> None:
    (place / "y.yaml").write_text("learning_rate: 1e-4\nmax_length: 9\n", "utf-8")
    (place / "z.yaml").write_text("use_peft: true\nlora_r: 4\nuse_dora: true\n", "utf-8")
    (place / "c.json").write_text((place / "adapter" / "adapter_config.json").read_text("utf-8"))
    arm = "r=2 lr=0.002"
    for name, words, part in (
        ("adapter", (arm,), "found a stored adapter"),
        ("c.json", (arm,), "found a stored adapter"),
        ("y.yaml", (arm,), "found full fine-tuning, expected a LoRA adapter"),
        ("z.yaml", (arm,), "expected an arm of method dora"),
        ("axolotl.yml", (), "found no recommended arm: Not decided yet"),
        ("axolotl.yml", (), "add 'r=2 lr=0.002' to the command"),
        ("axolotl.yml", (arm, "--merge"), "found an option for weights"),
    ):
        outcome = command("export", small, *words, "--patch", name, "--out", "new")
        assert (outcome.code, part in outcome.told) == (2, True), outcome.told
    assert "new" not in files_below(place)


def test_what_the_study_had_otherwise_is_listed_and_another_origin_is_warned_of(
    place: Path,
) -> None:
    """A study of the file itself has no warning, even of fewer steps; its length stays."""
    shutil.copytree(pocket_folder(), place / "base")
    text = (place / "axolotl.yml").read_text("utf-8")
    (place / "mine.yml").write_text(re.sub("base_model: .*", "base_model: ./base", text), "utf-8")
    assert command("init", "s.yaml", "--from", "mine.yml").code == 0
    short = settings(
        "train.max_steps=2", "train.batch_size=1", "train.max_length=64", "strategy=grid",
        "seeds=[0]", "arms.0.rank=4", "arms.0.lr=1e-3", "evaluate.max_items=4",
        "evaluate.retention=[]",
    )  # fmt: skip
    assert command("run", "s.yaml", "--out", "st", *short).code == 0
    for name in ("mine.yml", "axolotl.yml", "trl.yaml"):
        done = command("export", "st", "r=4", "--patch", name, "--out", f"new-{name}")
        assert done.code == 0, done.told
        warned = [line for line in done.err.splitlines() if "not made from this file" in line]
        assert len(warned) == {"mine.yml": 0, "axolotl.yml": 1, "trl.yaml": 2}[name], done.err
        if name == "mine.yml":
            assert [line for line in done.err.splitlines() if line.startswith("note: ")] == [
                "note: micro_batch_size stays 2, the study had 1",
                "note: sequence_len stays 512, the study had 64",
                "note: num_epochs stays 3.0, the study had max_steps 2",
                "note: these stay: export writes rank, alpha, targets, dropout and rate; a study's "
                "length is what it could afford",
            ]


@pytest.mark.filterwarnings("ignore")  # of TRL's own imports
def test_trl_trains_with_the_patched_file(place: Path, small: Path, tmp_path: Path) -> None:
    from datasets import load_dataset
    from trl import ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, TrlParser, get_peft_config

    (place / "mine.yaml").write_text(
        f"model_name_or_path: {pocket_folder()}\ndataset_name: pairs.jsonl\nuse_peft: true\n"
        "lora_r: 16\nlora_alpha: 32\nlora_dropout: 0.0\nlora_target_modules: [q_proj]\n"
        f"learning_rate: 1.0e-3\nmax_steps: 1\noutput_dir: {tmp_path / 'o'}\nuse_cpu: true\n"
        "bf16: false\nreport_to: none\nsave_strategy: 'no'\n"
    )
    done = command("export", small, "r=2 lr=0.002", "--patch", "mine.yaml", "--out", "new.yaml")
    assert done.code == 0, done.told
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig))
    script, args, model = parser.parse_args_and_config(["--config", "new.yaml"])
    assert (model.lora_r, model.lora_alpha, args.learning_rate) == (2, 4, 0.002)
    rows = load_dataset("json", data_files=script.dataset_name, split="train",
                        cache_dir=str(tmp_path / "c"))  # fmt: skip
    trainer: Any = SFTTrainer(
        model.model_name_or_path, args, train_dataset=rows, peft_config=get_peft_config(model)
    )
    trainer.train()
    assert trainer.state.global_step == 1
    ranks = {p.shape[0] for n, p in trainer.model.named_parameters() if "lora_A" in n}
    assert ranks == {2}


def test_what_is_written_reads_back() -> None:
    for text in ("a: >-\n  b\n# d\nc: 1\n", "a:\n- b\nc: 1\n", "a: {}\nc: 1\n"):
        for values in ({"a": "e", "c": 1}, {"a": {"e": 2}, "c": 1}, {"a": ["e", "f"], "c": 2}):
            assert read_values(with_values(text, values)) == values
    for value in (2e-3, 1e-5, 2.5e-7, 16, 2**53 + 1, 0.05):
        assert yaml.safe_load(literal(value, "yaml")) == value
        assert json.loads(literal(value, "json")) == value
        assert ast.literal_eval(literal(value, "python")) == value
