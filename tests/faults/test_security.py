"""What strangers' files cannot do (docs/trust.md): each test plants the real thing."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command_line import rankscope, write_rows
from transformers import AutoTokenizer

from faults import edit, refused

MARKS = "from pathlib import Path\nPath({!r}).touch()\n"


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that planted code makes if it runs."""
    return tmp_path / "it ran"


def change(path: Path, **settings: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | settings), "utf-8")


# --- models


@pytest.mark.parametrize("model_type", ["llama", "own"])
def test_code_that_comes_with_a_model_is_not_run(model: Path, mark: Path, model_type: str) -> None:
    """A known type is transformers' own class, whatever the folder brings; another is refused."""
    code = MARKS.format(str(mark)) + (
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
        "class OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    (model / "own.py").write_text(code)
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    change(model / "config.json", auto_map=classes, model_type=model_type)
    change(model / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own.OwnTokenizer"]})
    commands: list[tuple[object, ...]] = [
        ("params", model),
        ("check", "study.yaml"),
        ("eval", model, "--tasks", "pocket_cloze", "--max-items", "2"),
    ]
    for words in commands:
        outcome = rankscope(*words)
        assert outcome.code == (0 if model_type == "llama" else 2), outcome.err
        assert not mark.exists()
    if model_type == "own":  # the plant is alive: a loader that trusts it runs it
        AutoTokenizer.from_pretrained(model, trust_remote_code=True)
        assert mark.exists()


def test_a_kernel_that_a_configuration_names_is_not_loaded(model: Path) -> None:
    """transformers would look for it on the hub, or fail without its package ``kernels``."""
    for key in ("attn_implementation", "_attn_implementation"):
        change(model / "config.json", **{key: "owner/kernel"})
    plain = rankscope("params", "pocket")
    named = rankscope("params", model)
    assert (named.code, plain.code) == (0, 0), named.err
    assert named.out.splitlines()[3:] == plain.out.splitlines()[3:]
    for words in (("plan", "study.yaml"), ("run", "study.yaml")):
        outcome = rankscope(*words)
        assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("set_to", [{}, {"USE_HUB_KERNELS": "0"}])
def test_libraries_see_no_package_kernels(place: Path, mark: Path, set_to: dict[str, str]) -> None:
    """Libraries import it if it is installed, whatever the variable says."""
    (place / "kernels").mkdir()
    (place / "kernels" / "__init__.py").write_text(MARKS.format(str(mark)))
    (place / "kernels-0.18.2.dist-info").mkdir()
    told = "Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n"
    (place / "kernels-0.18.2.dist-info" / "METADATA").write_text(told)
    path = os.pathsep.join([str(place), *sys.path])
    kept = {name: text for name, text in os.environ.items() if name != "USE_HUB_KERNELS"}
    environment = {**kept, "PYTHONPATH": path, **set_to}
    library = "from rankscope.cli import main\ntry: main()\nfinally: import kernels"
    command = [sys.executable, "-c", library, "params", "pocket"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "import of kernels halted" in ran.stderr
    assert not mark.exists()
    subprocess.run([sys.executable, "-c", "import kernels"], env=environment, check=True)
    assert mark.exists()


@pytest.mark.parametrize(
    "attack",
    [
        "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ (messages | map(attribute='__class__') | list)[0].__base__.__subclasses__() }}",
    ],
)
def test_a_chat_template_stays_in_its_sandbox(model: Path, mark: Path, attack: str) -> None:
    (model / "chat_template.jinja").write_text(attack.replace("MARK", str(mark).replace(" ", "?")))
    outcome = rankscope("check", "study.yaml")
    refused(outcome, where="chat template", found="a fault", do="prompt_format: plain")
    assert not mark.exists()


# --- pickles, connections


@contextmanager
def watched(*events: str) -> Iterator[list[tuple[str, object]]]:
    """What this process does meanwhile, by the interpreter's own audit."""
    seen: list[tuple[str, object]] = []
    state = {"on": True}

    def hook(event: str, values: tuple[object, ...]) -> None:
        if state["on"] and event in events:
            seen.append((event, values))

    sys.addaudithook(hook)  # stays until the process ends
    try:
        yield seen
    finally:
        state["on"] = False


@pytest.mark.pitfall(17)
def test_nothing_is_unpickled(model: Path, place: Path, mark: Path) -> None:
    weights = [*model.glob("*.safetensors")]
    payload = pickle.dumps(Payload(mark))
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin", "vocab.pkl"):
        (model / name).write_bytes(payload)
    with watched("pickle.find_class") as unpickled:
        assert rankscope("run", "study.yaml").code == 0  # safetensors beside them are read
        for file in weights:
            file.unlink()
        outcome = rankscope("check", "study.yaml")
        refused(outcome, where="model", found=", a pickle", do="save_pretrained")
        (place / "adapter").mkdir()
        (place / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
        (place / "adapter" / "adapter_model.bin").write_bytes(payload)
        for words in (("eval", "pocket", "--tasks", "pocket_med", "--adapter", "adapter"),):
            outcome = rankscope(*words)
            refused(outcome, where="adapter", found="adapter_model.bin, a pickle", do="save")
        (place / "rows.pkl").write_bytes(payload)
        edit(place, "model: ./model", "model: pocket")
        edit(place, "train: rows.jsonl", "train: rows.pkl")
        refused(rankscope("check", "study.yaml"), where="rows.pkl", found=".pkl", do="convert")
    assert unpickled == []
    assert not mark.exists()
    pickle.loads(payload)
    assert mark.exists()


def test_a_study_of_local_files_opens_no_connection(place: Path) -> None:
    with watched("socket.connect", "socket.getaddrinfo", "socket.gethostbyname") as opened:
        for words in (
            ("check", "study.yaml"),
            ("plan", "study.yaml"),
            ("run", "study.yaml", "--out", "out"),
            ("status", "out"),
            ("report", "out"),
            ("verify", "out"),
            ("export", "out", "--best-lora", "--out", "adapter"),
        ):
            assert rankscope(*words).code == 0, words
    assert opened == []


# --- code that tasks name


def test_a_scorer_in_python_runs_only_if_allowed(place: Path, mark: Path) -> None:
    grader = MARKS.format(str(mark)) + "def grade(answer, gold, prompt):\n    return 0.5\n"
    (place / "grader.py").write_text(grader)
    write_rows(
        place / "rows.jsonl",
        [{"prompt": f"what {n} ?", "completion": f"metal {n}"} for n in range(60)],
    )
    edit(place, "train: rows.jsonl", "train: rows.jsonl\n    scorer: python:grader.py:grade")
    outcome = rankscope("check", "study.yaml")
    refused(outcome, where="mine", found="which runs Python code", do="--trust-task-code")
    assert not mark.exists()
    assert rankscope("check", "study.yaml", "--trust-task-code", "--rows", "0").code == 0
    assert mark.exists()


def test_a_data_set_with_a_loading_script_is_refused(place: Path, mark: Path) -> None:
    folder = place / "owner" / "scripted"
    folder.mkdir(parents=True)
    (folder / "scripted.py").write_text(MARKS.format(str(mark)))
    edit(place, "train: rows.jsonl", "hub: owner/scripted")
    refused(
        rankscope("check", "study.yaml"),
        where="owner/scripted",
        found="would run its own code",
        do="refs/convert/parquet",
    )
    assert not mark.exists()
