"""Answers from a vLLM server, against the own engine's; commands that serve trained models."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pyarrow as pa
import pytest
import torch
from command_line import Outcome, rankscope
from launcher import Launcher, text_of
from pocket_study import UNANALYZED

import vllm_parity
from faults import refused
from rankscope.config.study import ModelConfig, StudyConfig
from rankscope.errors import UserError
from rankscope.evaluate.continuous_batching import GenerationLimits, generate
from rankscope.evaluate.engines import resolved_engine
from rankscope.extensions.vllm import Refused, VllmEngine, _is_readable, server
from rankscope.extensions.vllm.comparison import parity
from rankscope.extensions.vllm.server import serve_options
from rankscope.extensions.vllm.serving import obstacle
from rankscope.models.adapters.folder import load_adapter
from rankscope.models.load import load_base
from rankscope.models.model_folder import pocket_folder
from rankscope.report.use_it import BaseSource, use_steps
from rankscope.store import Ledger, items_path

from . import vllm_stand_in

ARMS = [
    {"method": "lora", "rank": [2, 8], "lr": 4e-3},
    {"method": "dora", "rank": 2, "lr": 4e-3},
    {"method": {"peft": {"peft_type": "LORA", "r": 2}}, "lr": 4e-3},
    {"method": "full", "lr": 5e-4},
]
STUDY = {
    "name": "s",
    "model": "pocket",
    "tasks": ["pocket_gsm"],
    "arms": ARMS,
    "seeds": [0],
    "device": "cpu",
    "dtype": "float32",
    "train": {"max_steps": 4, "batch_size": 4, "gradient_accumulation": 1},
    "analyze": UNANALYZED,
}


@pytest.fixture
def pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A ``vllm`` is on the PATH; the file of the ids of its processes."""
    command = tmp_path / "bin/vllm"
    command.parent.mkdir()
    process = f'"{sys.executable}" "{vllm_stand_in.__file__}"'
    command.write_text(f'#!/bin/sh\nexec {process} "$@"\n', "utf-8")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)
    monkeypatch.setenv("STAND_IN", str(tmp_path / "it"))
    with vllm_stand_in.writing() as address:
        monkeypatch.setenv("STAND_IN_MODELS", address)
        yield tmp_path / "it.pids"


def write_study(folder: Path, engine: str, arms: object) -> Path:
    evaluate = {"max_items": 6, "max_new_tokens": 12, "engine": engine}
    file = folder / "study.yaml"
    file.write_text(json.dumps(STUDY | {"evaluate": evaluate, "arms": arms}), "utf-8")
    return file


def run(folder: Path, engine: str, name: str = "out", arms: object = ARMS) -> Outcome:
    return rankscope("run", write_study(folder, engine, arms), "--out", folder / name)


def have_ended(pids: Path) -> bool:
    return not any(psutil.pid_exists(int(pid)) for pid in pids.read_text("utf-8").split())


def texts(out: Path) -> dict[Path, list[str]]:
    """What each model wrote, by file of items."""
    files = sorted((out / "artifacts").rglob("items/*.parquet"))
    return {f.relative_to(out): pd.read_parquet(f)["generated"].tolist() for f in files}


@pytest.mark.usefixtures("minutes")
def test_a_study_has_the_answers_of_the_own_engine(
    tmp_path: Path, pids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the base, LoRA and a whole model, also if the server dies once; DoRA, and models that run
    by PEFT, are left to the own engine."""
    assert run(tmp_path, "own", "own").code == 0
    monkeypatch.setenv("STAND_IN_FAULT", "dies-once")
    ran = run(tmp_path, "vllm")
    assert ran.code == 0, ran.err
    expected = texts(tmp_path / "own")
    assert texts(tmp_path / "out") == expected
    assert len(set(map(tuple, expected.values()))) > 6
    study = Ledger.read(tmp_path / "out", with_analyses=False)
    methods = {trial.spec.trial_id: trial.spec.method for trial in study.trials}
    compared = set()
    for key, record in study.evals.items():
        means = {name: v for name, v in record.metrics.items() if name.startswith("vllm")}
        if methods.get(key[0]) in ("dora", "peft"):
            assert means == {}
            continue
        assert means["vllm_equal"] == 1
        assert means["vllm_difference"] < 1e-4
        file = tmp_path / "out" / items_path(*key, "vllm")
        if not file.exists():
            continue
        assert key[0] not in compared  # once, before its first split
        compared.add(key[0])
        table = pd.read_parquet(file)
        items = pd.read_parquet(tmp_path / "out" / items_path(*key))
        assert table["item_id"].tolist() == items["item_id"].tolist()
        assert table["own"].tolist() == table["vllm"].tolist() == items["generated"].tolist()
        assert table["missed"].sum() == 0
        assert table["difference"].mean() == pytest.approx(means["vllm_difference"])
        gaps = (table["own_logprob"] - table["vllm_logprob"]).abs()
        assert gaps.tolist() == pytest.approx(table["difference"].tolist())
    assert len(compared) == 4
    assert rankscope("verify", tmp_path / "out").code == 0
    assert have_ended(pids)
    page = (tmp_path / "out/report.html").read_text("utf-8")
    assert "vLLM wrote the answers of 4 models; both engines wrote the first ones: 100.0%" in page
    assert "by item: artifacts/*/vllm/" in page


@pytest.mark.parametrize(
    ("dtype", "difference", "without", "missed", "is_refused"),
    [
        (torch.bfloat16, 0.099, 1.0, 16, False),
        (torch.bfloat16, 0.101, 1.0, 0, True),
        (torch.bfloat16, 0.05, 0.026, 0, False),
        (torch.bfloat16, 0.05, 0.024, 0, True),  # twice as near to the base without the adapter
        (torch.bfloat16, 0.0, 1.0, 17, True),  # of 160 tokens
        (torch.float16, 0.012, 1.0, 0, False),
        (torch.float16, 0.013, 1.0, 0, True),
        (torch.float32, 0.00011, 1.0, 0, True),
        (torch.float32, float("nan"), 1.0, 0, True),
    ],
)
def test_how_far_the_engines_may_be_apart(
    dtype: torch.dtype, difference: float, without: float, missed: int, is_refused: bool
) -> None:
    row = {"equal": False, "tokens": 10, "missed": 0, "difference": difference}
    rows = [{**row, "difference_without_adapter": without} for _ in range(16)]
    rows[0]["missed"] = missed
    table = pa.Table.from_pylist(rows)
    if is_refused:
        with pytest.raises(Refused, match=r"another model|other tokens"):
            parity(table, dtype)
    else:
        assert parity(table, dtype)["vllm_difference"] == pytest.approx(difference)


def answers(folder: Path) -> tuple[list[str], VllmEngine]:
    """Of the pocket model with an adapter, by a server if that is possible."""
    base = load_base(ModelConfig(pocket=True), torch.device("cpu"), torch.float32)
    base.multi_lora.attach(load_adapter(folder, "a", readable=True))
    engine, limits = VllmEngine(), GenerationLimits(4, 64, 256, frozenset({0}))
    engine.begin(lambda name: folder)
    prompts = {"0": [5, 6, 7], "1": [8, 9]}
    written = engine.generate(base, prompts, ["a"], limits)["a"]
    engine.close()
    own = generate(base, [*prompts.values()], ["a"], limits)["a"]
    assert [g.ids for g in written] == [g.ids for g in own]
    return [generation.text for generation in written], engine


def test_answers_are_those_of_the_own_engine(given_models: Path, pids: Path) -> None:
    written, engine = answers(given_models / "lora")
    assert len(written) == 2
    assert engine.metrics("a")["vllm_equal"] == 1
    assert have_ended(pids)


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("broken-lora", "vLLM refused /v1/load_lora_adapter: status 500"),
        ("scaled", "vLLM computes another model: log p of its answers differs by"),
        ("refuses-later", "vLLM failed twice: vLLM refused /v1/completions: status 400"),
        ("no-token_ids", "no reply as of vLLM 0.10.2 or later: TypeError"),
        ("one-less", "no reply as of vLLM 0.10.2 or later: KeyError(1)"),
        ("hangs", "vLLM failed twice: /v1/completions: no reply in 1 s"),
    ],
)
def test_what_it_cannot_do_is_left_to_the_own_engine(
    given_models: Path, pids: Path, monkeypatch: pytest.MonkeyPatch, fault: str, found: str
) -> None:
    monkeypatch.setenv("STAND_IN_FAULT", fault)
    if fault == "hangs":
        monkeypatch.setattr(server, "MAX_REPLY_SECONDS", 0.5)
    _, engine = answers(given_models / "lora")
    (note,) = engine.notes()  # and none of answers that vLLM wrote
    assert found in note
    assert engine.metrics("a") == {}
    if "another model" in note:  # and the table shows it
        (table,) = engine.tables.values()
        assert max(table["missed"].to_pylist()) == 4 or max(table["difference"].to_pylist()) > 0.001


@pytest.mark.usefixtures("minutes")
def test_the_comparison_with_a_real_server_in_small(
    pids: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--ranks 2 --lengths 1,4 --dtypes float32".split()
    places = ["--model", str(pocket_folder()), "--data-dir", str(data_dir)]
    monkeypatch.setattr(sys, "argv", ["vllm_parity", *options, *places])
    assert vllm_parity.main() == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(line["models"]) == 4
    for of_model in line["models"].values():
        assert (of_model["equal"], of_model["missed"]) == (1, 0)
    assert have_ended(pids)


def replace_command(pids: Path, script: str) -> None:
    (pids.parent / "bin/vllm").write_text(f"#!/bin/sh\necho $$ >> {pids}\n{script}\n", "utf-8")


def test_a_server_that_does_not_start_is_tried_twice(given_models: Path, pids: Path) -> None:
    replace_command(pids, "echo 'ValueError: no such architecture'; exit 1")
    _, engine = answers(given_models / "lora")
    assert len(pids.read_text("utf-8").split()) == 2
    assert "vLLM failed twice: ValueError: no such architecture" in engine.notes()[0]


@pytest.mark.parametrize(
    ("wish", "device", "dtype", "changes", "found"),
    [
        ("auto", "cuda", torch.bfloat16, {}, "vllm"),
        ("auto", "cuda:1", torch.float16, {}, "vllm"),
        ("auto", "cuda", torch.float32, {}, "own"),
        ("auto", "cuda", torch.bfloat16, {"quantize": "4bit"}, "own"),
        ("auto", "cuda", torch.bfloat16, {"train": {"devices": 2}}, "own"),
        ("auto", "cpu", torch.bfloat16, {}, "own"),
        ("auto", "mps", torch.bfloat16, {}, "own"),
        ("own", "cuda", torch.bfloat16, {}, "own"),
        ("vllm", "cpu", torch.float32, {}, "vllm"),
        ("vllm", "cuda", torch.float16, {}, "vllm"),
        ("vllm", "cuda", torch.float32, {}, "float32, in which it has no adapters on a GPU"),
        ("vllm", "cuda", torch.bfloat16, {"quantize": "4bit"}, "or that is quantized"),
        ("vllm", "cuda", torch.bfloat16, {"train": {"devices": 2}}, "that several devices hold"),
    ],
)
@pytest.mark.usefixtures("pids")
def test_which_engine_a_study_takes(
    wish: str, device: str, dtype: torch.dtype, changes: dict[str, object], found: str
) -> None:
    study = STUDY | {"evaluate": {"engine": wish}, "arms": ARMS[:1]} | changes
    config = StudyConfig.model_validate(study)
    if found in ("own", "vllm"):
        assert resolved_engine(config, torch.device(device), dtype) == found
    else:
        with pytest.raises(UserError, match=found):
            resolved_engine(config, torch.device(device), dtype)


def test_a_server_on_a_gpu_takes_half_of_what_is_free() -> None:
    options = serve_options(2048, 32, torch.bfloat16, (60 * 2**30, 80 * 2**30))
    assert options[options.index("--gpu-memory-utilization") + 1] == "0.375"
    assert options[options.index("--dtype") + 1] == "bfloat16"
    assert options[options.index("--max-lora-rank") + 1] == "32"
    assert "--enforce-eager" not in options
    on_cpu = serve_options(2048, 0, torch.float32, None)
    assert "--enforce-eager" in on_cpu
    assert not {"--gpu-memory-utilization", "--enable-lora"} & set(on_cpu)


def test_no_command_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    outcome = run(tmp_path, "vllm")
    refused(outcome, where="evaluate.engine", found="no such command", do="PATH")
    assert "train" not in outcome.err


@pytest.mark.timeout(300)
def test_the_server_ends_with_the_process_that_started_it(
    launcher: Launcher, tmp_path: Path, pids: Path
) -> None:
    """Even if that is killed."""
    replace_command(pids, "exec sleep 1000")
    file, path = write_study(tmp_path, "vllm", ARMS[:1]), {"PATH": os.environ["PATH"]}
    launcher.start("run", file, "--out", tmp_path / "out", environment=path)
    launcher.wait_for(lambda: text_of(pids).strip())
    launcher.send(signal.SIGKILL)
    while not have_ended(pids):
        time.sleep(0.05)


HUB_BASE = BaseSource("a/b on the hub", '"a/b"', "a/b", "bfloat16", "a/b")


def serving(**settings: object) -> str:
    """The vLLM command for an adapter."""
    steps = use_steps(HUB_BASE, {"peft_type": "LORA", **settings}, "mine", ".", None)
    return next(step.code for step in steps if "vLLM" in step.title)


@pytest.mark.parametrize(
    ("rank", "limit"),
    [(1, 8), (8, 8), (9, 16), (64, 64), (65, 128), (257, 320), (321, 512), (512, 512)],
)
def test_the_rank_limit_is_one_of_vllms_list(rank: int, limit: int) -> None:
    assert serving(r=rank) == (
        f"vllm serve a/b --enable-lora --max-lora-rank {limit} --lora-modules mine=."
    )


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"r": 513}, "vLLM takes at most 512"),
        ({"r": 8, "use_dora": True}, "does not read DoRA"),
        ({"r": 8, "rank_pattern": {"x": 16}}, "the same scaling"),
        ({"r": 8, "alpha_pattern": {"x": 16}}, "the same scaling"),
        ({"peft_type": "VERA", "r": 256}, "not VERA"),
    ],
)
def test_what_cannot_be_served_unmerged_is_said(settings: dict[str, object], reason: str) -> None:
    assert reason in obstacle({"peft_type": "LORA", **settings})
    assert serving(**settings) == "vllm serve merged"
    assert obstacle({"peft_type": "LORA", "r": 8, "use_rslora": True}) == ""  # it reads that


def test_adapters_of_other_programs_are_left_to_the_own_engine(tmp_path: Path) -> None:
    settings = {"target_modules": ["q_proj"], "r": 8, "lora_alpha": 16}
    for kind, readable in (({"peft_type": "LORA"}, True), ({"fine_tune_type": "lora"}, False)):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, **kind}))
        assert _is_readable(tmp_path, "mine") is readable
