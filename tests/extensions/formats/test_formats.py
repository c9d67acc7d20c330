"""Adapters for mlx-lm, llama.cpp and Ollama compute the weights that PEFT merges."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import files_below, rankscope, write_rows
from gguf import GGUFReader
from peft_adapters import KINDS, merged, saved_adapter, weights
from safetensors.numpy import load_file, save_file
from tiny_models import tiny_llama

from rankscope.errors import UserError
from rankscope.models.adapters.folder import load_adapter, recorded_base
from rankscope.models.lora import Adapter
from rankscope.records import StudyRecords
from rankscope.report.use_it import BaseSource, UseStep
from rankscope.tools.export import ExportRequest, export_trial
from rankscope.tools.formats import _format_names as format_names, get_format

HUB = BaseSource("a/b on the hub", '"a/b"', "a/b --revision c", "float32", "a/b")
TARGETS = ["q_proj", "k_proj", "v_proj", "down_proj"]
# Sums of at most 192 float32 products, in another order, as of a merged model of PEFT's.
CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}
Arrays = dict[str, np.ndarray[Any, Any]]


def written(
    form: str, adapter: Adapter, out: Path, study: StudyRecords, config: Any = None
) -> list[UseStep]:
    out.mkdir()
    return get_format(form).write(adapter, out, config or tiny_llama().config, study, HUB)


def of_mlx(folder: Path, base: Arrays) -> Iterator[tuple[str, Any, Any]]:
    """(module, its weight as mlx-lm computes it): W + scale (A B)^T, rows of DoRA of length m."""
    settings = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    tensors, scale = (
        load_file(folder / "adapters.safetensors"),
        settings["lora_parameters"]["scale"],
    )
    for key in tensors:
        module, _, part = key.rpartition(".")
        if part != "lora_a":
            continue
        weight = base[module] + scale * (tensors[key] @ tensors[f"{module}.lora_b"]).T
        if settings["fine_tune_type"] == "dora":
            weight *= (tensors[f"{module}.m"] / np.linalg.norm(weight, axis=1))[:, None]
        yield module, weight, tensors[key].shape[1]


def stored_as_pairs(weight: Any, heads: int) -> Any:
    """Rows of each head as llama.cpp rotates them: number i beside number i + d / 2."""
    half = len(weight) // heads // 2
    order = [
        head * 2 * half + place
        for head in range(heads)
        for i in range(half)
        for place in (i, i + half)
    ]
    return weight[order]


@pytest.mark.parametrize("kind", KINDS)
def test_mlx_lm_computes_the_weights_that_peft_merges(
    exportable: Any, kind: str, tmp_path: Path
) -> None:
    settings = {} if kind == "pissa" else KINDS[kind]
    folder = saved_adapter(tmp_path / "peft", tiny_llama(), target_modules=TARGETS, **settings)
    written("mlx", load_adapter(folder, "pocket_med"), tmp_path / "mlx", exportable.records)
    base = {name: weight.numpy() for name, weight in weights(tiny_llama()).items()}
    whole, found = merged(tiny_llama(), folder), list(of_mlx(tmp_path / "mlx", base))
    changed = {name for name in base if not np.array_equal(base[name], whole[name].numpy())}
    assert {name for name, _, _ in found} == changed
    for name, weight, rank in found:
        np.testing.assert_allclose(weight, whole[name].numpy(), **CLOSE)
        assert rank == (6 if kind == "patterns" else 4)  # the largest, for all
    config = json.loads((tmp_path / "mlx" / "adapter_config.json").read_text("utf-8"))
    keys = config["lora_parameters"]["keys"]
    assert keys == ["mlp.down_proj", *(f"self_attn.{leaf}_proj" for leaf in "kqv")]
    assert config["num_layers"] == tiny_llama().config.num_hidden_layers


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_an_adapter_of_mlx_lm_is_read_as_the_one_of_peft(
    exportable: Any, kind: str, tmp_path: Path
) -> None:
    ours = load_adapter(saved_adapter(tmp_path / "p", tiny_llama(), **KINDS[kind]), "pocket_med")
    written("mlx", ours, tmp_path / "mlx", exportable.records)
    theirs = load_adapter(tmp_path / "mlx", "pocket_med")
    assert theirs.scaling == pytest.approx(ours.scaling, rel=1e-15)
    for ours_of, theirs_of in ((ours.a, theirs.a), (ours.b, theirs.b)):
        assert ours_of.keys() == theirs_of.keys()
        assert all(torch.equal(ours_of[name], theirs_of[name]) for name in ours_of)
    assert all(torch.equal(m, theirs.magnitude[name]) for name, m in ours.magnitude.items())


def test_eval_takes_an_adapter_of_mlx_lm_and_knows_its_base(
    exportable: Any, tmp_path: Path
) -> None:
    for form in ("peft", "mlx"):
        done = rankscope("export", exportable.out, "r=2", "--format", form,
                         "--out", tmp_path / form)  # fmt: skip
        assert done.code == 0, done
    assert files_below(tmp_path / "mlx") == {
        *("README.md", "adapter_config.json", "adapters.safetensors")
    }
    card = (tmp_path / "mlx" / "README.md").read_text("utf-8")
    assert "library_name: mlx" in card
    assert "mlx_lm.generate --model FOLDER_OF_THE_BASE --adapter-path ." in card
    rows = [{"prompt": f"{n} plus {n} is", "completion": f"{2 * n}"} for n in range(4)]
    words = ("--tasks", write_rows(tmp_path / "rows.jsonl", rows), "--json")
    adapters = [w for form in ("peft", "mlx") for w in ("--adapter", tmp_path / form)]
    done = rankscope("eval", exportable.base, *adapters, *words)
    assert done.code == 0, done
    base, peft, mlx = (row["record"] for row in json.loads(done.out)["scores"])
    assert peft["metrics"] == mlx["metrics"] != base["metrics"]
    assert recorded_base(tmp_path / "mlx") == exportable.records.model.sha256


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"fine_tune_type": "full"}, {}, "found fine_tune_type 'full', expected 'lora' or 'dora'"),
        ({"lora_parameters": {"rank": 4}}, {}, "expected 'rank' and 'scale'"),
        ({}, {"x.lora_a": (2, 8, 4)}, r"a tensor 'x.lora_a' of shape \(2, 8, 4\)"),
        ({}, {"x.lora_a": (8, 4)}, "lora_A of 'x'"),
    ],
)
def test_what_of_mlx_lm_cannot_be_read_is_named(
    tmp_path: Path, config: Any, tensors: Any, message: str
) -> None:
    settings = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 2.0}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | config), "utf-8")
    arrays = {name: np.ones(shape, np.float32) for name, shape in tensors.items()}
    save_file(arrays, tmp_path / "adapters.safetensors")
    with pytest.raises(Exception, match=message):
        load_adapter(tmp_path, "x")


@pytest.mark.parametrize("kind", ["lora", "rslora", "patterns"])
def test_llama_cpp_computes_the_weights_that_peft_merges(
    exportable: Any, kind: str, tmp_path: Path
) -> None:
    model = tiny_llama()
    folder = saved_adapter(tmp_path / "peft", model, target_modules=TARGETS, **KINDS[kind])
    written("gguf", load_adapter(folder, "pocket_med"), tmp_path / "gguf", exportable.records)
    file = GGUFReader(tmp_path / "gguf" / "adapter.gguf")
    tensors = {tensor.name: tensor.data for tensor in file.tensors}
    fields = {name: field.contents() for name, field in file.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    base, whole = weights(tiny_llama()), merged(tiny_llama(), folder)
    leaves = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "down_proj": "ffn_down"}
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    changed = [name for name in base if not torch.equal(base[name], whole[name])]
    assert len(tensors) == 2 * len(changed)
    for name in changed:
        leaf, layer = name.rpartition(".")[2], name.split(".")[2]
        a, b = (tensors[f"blk.{layer}.{leaves[leaf]}.weight.lora_{part}"] for part in "ab")
        assert a.dtype == b.dtype == np.float32
        # As src/llama-adapter.cpp scales it: alpha over the rank of this module.
        update = fields["adapter.lora.alpha"] / b.shape[1] * (b.astype(np.float64) @ a)
        stored, wanted = base[name].numpy(), whole[name].numpy()
        if leaf in heads:
            stored, wanted = (stored_as_pairs(w, heads[leaf]) for w in (stored, wanted))
        np.testing.assert_allclose(stored + update, wanted, **CLOSE)


def test_a_modelfile_has_the_system_text_and_the_ends_of_answers(
    exportable: Any, tmp_path: Path
) -> None:
    done = rankscope("export", exportable.out, "r=2", "--format", "gguf", "--out", tmp_path / "g")
    assert done.code == 0, done
    assert "adapter written to" in done.told
    assert files_below(tmp_path / "g") == {"README.md", "adapter.gguf", "Modelfile"}
    lines = (tmp_path / "g" / "Modelfile").read_text("utf-8").splitlines()
    assert {"FROM ./base.gguf", "ADAPTER ./adapter.gguf", 'PARAMETER stop """<eos>"""'} <= {*lines}
    assert not any(line.startswith(("SYSTEM", "TEMPLATE")) for line in lines)
    card = (tmp_path / "g" / "README.md").read_text("utf-8")
    assert "llama-cli -m base.gguf --lora adapter.gguf" in card
    study = exportable.records
    adapter = load_adapter(saved_adapter(tmp_path / "a", tiny_llama()), "pocket_med")
    for text in ("Be brief.\nSay why.", 'A """ b'):
        tasks = tuple(task.model_copy(update={"system": text}) for task in study.tasks)
        out = tmp_path / str(len(text))
        if '"""' in text:
            with pytest.raises(UserError, match='found a text with """'):
                written("gguf", adapter, out, replace(study, tasks=tasks))
            continue
        steps = written("gguf", adapter, out, replace(study, tasks=tasks))
        assert f'SYSTEM """{text}"""' in (out / "Modelfile").read_text("utf-8")
        # The hub's folder, as the script reads no hub id.
        assert steps[0].code.splitlines() == [
            "hf download a/b --revision c --local-dir base",
            "python llama.cpp/convert_hf_to_gguf.py base --outfile base.gguf",
        ]


@pytest.mark.parametrize(
    ("label", "options", "message"),
    [
        ("dora", {"format": "gguf"}, "found an adapter of DoRA, expected LoRA on one of llama"),
        ("full", {"format": "mlx"}, "a fully fine-tuned model, .*mlx_lm.convert --hf-path FOLDER"),
        ("full", {"format": "gguf"}, "convert that folder: .*convert_hf_to_gguf.py FOLDER"),
        ("r=2", {"format": "mlx", "merge": True}, "found --merge, which writes a whole model"),
        ("r=2", {"format": "onnx"}, "--format: found 'onnx', expected one of gguf, mlx, peft"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_by_name(
    exportable: Any, label: str, options: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        export_trial(exportable.out, tmp_path / "x", ExportRequest(label=label, **options))
    assert not (tmp_path / "x").exists()


def test_an_unknown_architecture_and_an_unknown_module_are_refused(
    exportable: Any, tmp_path: Path
) -> None:
    adapter = load_adapter(saved_adapter(tmp_path / "a", tiny_llama()), "pocket_med")
    config = tiny_llama().config
    config.model_type = "opt"
    with pytest.raises(UserError, match="a base of 'opt', expected LoRA on one of llama, mistral"):
        written("gguf", adapter, tmp_path / "g", exportable.records, config)
    name = next(iter(adapter.a))
    for parts in (adapter.a, adapter.b):
        parts["model.extra.x"] = parts.pop(name)
    for form in sorted({*format_names()} - {"peft"}):
        with pytest.raises(UserError, match=r"'model\.extra\.x', expected modules"):
            written(form, adapter, tmp_path / f"{form}-2", exportable.records)


SYSTEM = "Be brief. ```\n'Never' guess \U0001f600."


def test_the_system_text_that_all_rows_share_reaches_card_and_modelfile(
    exportable: Any, tmp_path: Path
) -> None:
    def rows(place: str, first: str, start: int = 0) -> Path:
        chats = [
            [
                ("system", SYSTEM if n % 2 else first),
                ("user", f"{n} and {n}"),
                ("assistant", f"is {n}"),
            ]
            for n in range(start, start + 12)
        ]
        turns = [[{"role": role, "content": text} for role, text in chat] for chat in chats]
        return write_rows(tmp_path / place, [{"messages": chat} for chat in turns])

    study = {
        "name": "chat",
        "model": {"path": str(exportable.base), "prompt_format": "chat"},
        "tasks": [
            {"name": name, "train": str(rows(f"{name}.jsonl", first)), "test": str(test)}
            for test in [rows("test.jsonl", SYSTEM, 20)]
            for name, first in (("one", SYSTEM), ("two", "Be long."))
        ],
        "arms": [{"method": "lora", "rank": 2, "lr": 1e-3}],
        "seeds": [0],
        "train": {
            "max_steps": 2,
            "batch_size": 1,
            "gradient_accumulation": 1,
            "schedule": "cosine",
        },
        "analyze": {"spectra": {"enabled": False}},
    }
    (tmp_path / "study.yaml").write_text(json.dumps(study), "utf-8")
    ran = rankscope("run", tmp_path / "study.yaml", "--out", tmp_path / "out")
    assert ran.code == 0, ran
    for task, form in (("one", "peft"), ("one", "gguf"), ("two", "peft"), ("two", "gguf")):
        done = rankscope("export", tmp_path / "out", "r=2", "--task", task, "--format", form,
                         "--out", tmp_path / task / form)  # fmt: skip
        assert done.code == 0, done
    card = (tmp_path / "one" / "peft" / "README.md").read_text("utf-8")
    (line,) = (line for line in card.splitlines() if line.startswith("messages.insert"))
    messages: list[dict[str, str]] = []
    exec(line, {"messages": messages})  # noqa: S102
    assert messages == [{"role": "system", "content": SYSTEM}]
    assert "```" not in line
    for part in ("| max steps | 2 |", "| batch size | 1 |", "| schedule | cosine |",
                 "| warmup fraction | 0.1 |", "| max length | 1024 |"):  # fmt: skip
        assert part in card
    assert "| epochs |" not in card
    assert f'SYSTEM """{SYSTEM}"""' in (tmp_path / "one/gguf/Modelfile").read_text("utf-8")
    assert "messages.insert" not in (tmp_path / "two/peft/README.md").read_text("utf-8")
    assert "SYSTEM" not in (tmp_path / "two/gguf/Modelfile").read_text("utf-8")
