"""Commands on models, adapters and studies that make no sense: refused, and nothing is written."""

import shlex
import shutil
from pathlib import Path

import pytest
from command_line import files_below, rankscope
from finished_studies import Finished
from peft import IA3Config, get_peft_model
from peft_adapters import saved_adapter, tuned_from, wide_adapter
from safetensors.torch import load_file, save_file
from tiny_models import tiny_llama

EVAL = "eval pocket --max-items 4 --out {new} --tasks "

# (command, a part of the message)
REFUSED = [
    # eval
    (EVAL + "pocket_mad", "did you mean 'pocket_med'?"),
    (EVAL + "''", "no tasks were given"),
    (EVAL + "pocket_med,pocket_med", "is given twice"),
    (EVAL + "pocket_med --split valid", "evaluate.split is 'valid', but must be 'validation'"),
    (EVAL + "pocket_med --adapter nowhere", "no such folder"),
    (EVAL + "pocket_med --adapter {pocket} --adapter {pocket}", "each model's own"),
    (EVAL + "pocket_med --set dtype=float64", "'float32', 'bfloat16' or 'float16'"),
    (EVAL + "pocket_med --set evaluate.too_long=cut", "too_long is 'cut', but must be 'refuse'"),
    (EVAL + "nowhere.yaml", "nowhere.yaml does not exist. Write one with"),
    (EVAL + "./nowhere", "no such file or folder"),
    (EVAL + "perplexity", "found no rows, expected your own texts"),
    (EVAL + "rows.xlsx", "rows.xlsx: found the suffix '.xlsx', expected .jsonl"),
    (EVAL + "rows.json", "task rows.json: found no such file or folder"),
    (EVAL + "owner/name", "'hub: owner/name'"),
    # A mixture is not scored as the task whose name it has.
    (EVAL + "both.yaml", "give its tasks to --tasks: pocket_law, pocket_gsm"),
    ("report {study} --figures {new} --format gif", "'gif' is not one of"),
    # plan and run
    ("plan study.yaml --device h10", "'h10', expected here or one of h100"),
]  # fmt: skip


@pytest.fixture(scope="module")
def places(
    tmp_path_factory: pytest.TempPathFactory, base: Path, given_models: Path, exportable: Finished
) -> dict[str, Path]:
    """What commands name, in a folder of their own."""
    folder = tmp_path_factory.mktemp("refusals")
    ia3 = IA3Config(target_modules=["q_proj"], feedforward_modules=[])  # neither rank nor alpha
    get_peft_model(tiny_llama(), ia3).save_pretrained(folder / "ia3")
    (folder / "rows.xlsx").write_text("question,answer")
    (folder / "both.yaml").write_text("name: pocket_med\nmixture: [pocket_law, pocket_gsm]\n")
    (folder / "study.yaml").write_text(
        "name: x\nmodel: pocket\ntasks: [pocket_med]\narms: [{method: full, lr: 1e-4}]\n"
    )
    tuned_from(tiny_llama()).save_pretrained(folder / "full")
    tiny_llama(seed=5).save_pretrained(folder / "other")
    tiny_llama(num_layers=3).save_pretrained(folder / "deeper")
    longer = tiny_llama()
    longer.resize_token_embeddings(310)
    longer.save_pretrained(folder / "more_tokens")
    shutil.copytree(folder / "full", folder / "lacking")
    file = folder / "lacking" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, {"format": "pt"})
    models = ("ia3", "full", "other", "deeper", "more_tokens", "lacking")
    return {
        **{name: folder / name for name in (*models, "new")},
        "lora": saved_adapter(folder / "lora", tiny_llama()),
        "dora": saved_adapter(folder / "dora", tiny_llama(), use_dora=True),
        "wide": wide_adapter(folder / "wide"),
        "base": base,
        "pocket": given_models / "lora",
        "study": exportable.out,
    }


@pytest.mark.parametrize(("command", "said"), REFUSED, ids=lambda text: text[:60])
def test_what_makes_no_sense_is_refused_and_nothing_is_written(
    command: str, said: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(places["new"].parent)
    before = files_below(places["new"].parent)
    outcome = rankscope(*shlex.split(command.format(**places)))
    assert (outcome.code, said in outcome.told) == (2, True), outcome
    assert outcome.out == ""
    assert outcome.err.count("error: ") == 1
    assert files_below(places["new"].parent) == before
