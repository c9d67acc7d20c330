"""Answers from a vLLM server, against the own engine's: a stand-in by transformers and PEFT."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from command_line import Outcome, rankscope

from faults import refused
from rankscope.config.study import ModelConfig
from rankscope.evaluate.continuous_batching import GenerationLimits, generate
from rankscope.evaluate.vllm import Vllm
from rankscope.models.adapters.folder import load_adapter
from rankscope.models.load import load_base
from rankscope.store import Ledger

STAND_IN = Path(__file__).parents[1] / "fixtures/vllm_stand_in.py"
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
    "analyze": {"spectra": {"enabled": False}, "answers": {"enabled": False}},
}


@pytest.fixture
def pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ``vllm`` is on the PATH; the file of the ids of its processes."""
    command = tmp_path / "bin/vllm"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STAND_IN}" "$@"\n', "utf-8")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)
    monkeypatch.setenv("STAND_IN_PIDS", str(tmp_path / "pids"))
    return tmp_path / "pids"


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
    files = sorted((out / "artifacts").rglob("*.parquet"))
    return {f.relative_to(out): pd.read_parquet(f)["generated"].tolist() for f in files}


def test_answers_are_those_of_the_own_engine(
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
    for key, record in study.evals.items():
        parity = {name: v for name, v in record.metrics.items() if name.startswith("vllm")}
        if methods.get(key[0]) in ("dora", "peft"):
            assert parity == {}
        else:
            assert parity["vllm_equal"] == 1
            assert parity["vllm_difference"] < 1e-4
    assert have_ended(pids)
    page = (tmp_path / "out/report.html").read_text("utf-8")
    assert "vLLM wrote the answers of 4 models; both engines wrote the first ones: 100.0%" in page


def answers(folder: Path) -> tuple[list[str], Vllm]:
    """Of the pocket model with an adapter, by a server if that is possible."""
    base = load_base(ModelConfig(pocket=True), torch.device("cpu"), torch.float32)
    base.multi_lora.attach(load_adapter(folder, "a", readable=True))
    engine, limits = Vllm(base.folder), GenerationLimits(4, 64, 256, frozenset({0}))
    engine.folders = {"a": folder}
    prompts = [[5, 6, 7], [8, 9]]
    written = engine.generate(base, prompts, ["a"], limits)["a"]
    engine.close()
    assert [g.ids for g in written] == [g.ids for g in generate(base, prompts, ["a"], limits)["a"]]
    return [generation.text for generation in written], engine


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("no-lora", "vLLM refused /v1/load_lora_adapter: status 404"),
        ("broken-lora", "vLLM refused /v1/load_lora_adapter: status 500"),
        ("scaled", "vLLM computes another model: log p of its answers differs by"),
        ("ignored", "vLLM computes another model: log p of its answers differs by"),
        ("refuses-later", "vLLM failed twice: vLLM refused /v1/completions: status 400"),
    ],
)
def test_what_it_cannot_do_is_left_to_the_own_engine(
    given_models: Path, pids: Path, monkeypatch: pytest.MonkeyPatch, fault: str, found: str
) -> None:
    monkeypatch.setenv("STAND_IN_FAULT", fault)
    _, engine = answers(given_models / "lora")
    assert found in engine.notes()[0]
    assert engine.metrics("a") == {}
    assert have_ended(pids)


def replace_command(pids: Path, script: str) -> None:
    (pids.parent / "bin/vllm").write_text(f"#!/bin/sh\necho $$ >> {pids}\n{script}\n", "utf-8")


def test_a_server_that_does_not_start_is_tried_twice(given_models: Path, pids: Path) -> None:
    replace_command(pids, "echo 'ValueError: no such architecture'; exit 1")
    _, engine = answers(given_models / "lora")
    assert len(pids.read_text("utf-8").split()) == 2
    assert "vLLM failed twice: ValueError: no such architecture" in engine.notes()[0]


def test_auto_takes_the_own_engine_without_a_gpu(tmp_path: Path, pids: Path) -> None:
    ran = run(tmp_path, "auto", arms=ARMS[:1])
    assert ran.code == 0, ran.err
    assert not pids.exists()


def test_no_command_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    outcome = run(tmp_path, "vllm")
    refused(outcome, where="evaluate.engine", found="no such command", do="PATH")
    assert "train" not in outcome.err


@pytest.mark.timeout(300)
def test_the_server_ends_with_the_process_that_started_it(tmp_path: Path, pids: Path) -> None:
    """Even if that is killed."""
    replace_command(pids, "exec sleep 1000")
    write_study(tmp_path, "vllm", ARMS[:1])
    words = [sys.executable, "-m", "rankscope", "run", "study.yaml", "--out", "out"]
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        try:
            while not (pids.exists() and pids.read_text("utf-8").strip()):
                assert process.poll() is None
                time.sleep(0.05)
        finally:
            process.kill()
    while not have_ended(pids):
        time.sleep(0.05)
