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

SHRINK = "shrink {lora} --out {new} "
INSPECT = "inspect {base} {lora} --out {new} "
FULL = "shrink {full} --base {base} --out {new} "
EVAL = "eval pocket --max-items 4 --out {new} --tasks "
SPECTRA = INSPECT + "--set analyze.spectra."

# (command, a part of the message)
REFUSED = [
    # eval
    (EVAL + "pocket_mad", "did you mean 'pocket_med'?"),
    (EVAL + "''", "no tasks were given"),
    (EVAL + "pocket_med,pocket_med", "is given twice"),
    (EVAL + "pocket_med --split valid", "evaluate.split: found 'valid', expected 'validation'"),
    (EVAL + "pocket_med --adapter nowhere", "no such folder"),
    (EVAL + "pocket_med --adapter {pocket} --adapter {pocket}", "each model's own"),
    (EVAL + "pocket_med --set dtype=float64", "'float32', 'bfloat16' or 'float16'"),
    (EVAL + "pocket_med --set evaluate.too_long=cut", "too_long: found 'cut', expected 'refuse'"),
    (EVAL + "nowhere.yaml", "nowhere.yaml: found a fault ([Errno 2] No such file"),
    (EVAL + "./nowhere", "no such file or folder"),
    (EVAL + "perplexity", "found no rows, expected your own texts"),
    (EVAL + "rows.xlsx", "rows.xlsx: found the suffix '.xlsx', expected .jsonl"),
    (EVAL + "rows.json", "task rows.json: found no such file or folder"),
    (EVAL + "owner/name", "'hub: owner/name'"),
    # A mixture is not scored as the task whose name it has.
    (EVAL + "both.yaml", "give its tasks to --tasks: pocket_law, pocket_gsm"),
    # inspect
    ("inspect {base} {wide}", "as in this model; give an adapter of this model"),
    ("inspect {base} {ia3}", "peft_type 'IA3', expected 'LORA'"),
    (SPECTRA + "top_k=33", "analyze.spectra.top_k: found 33, expected 1 to 32, the number of"),
    (SPECTRA + "intruder_k=0", "intruder_k: found 0, expected greater than"),
    (SPECTRA + "intruder_epsilon=.nan", "intruder_epsilon: found "),
    (INSPECT + "--set analyze.heads.enabled=true", "found analyze.heads without a task"),
    ("report {study} --figures {new} --format gif", "'gif' is not one of"),
    (INSPECT + "--set dtype=half", "dtype: found 'half', expected"),
    (INSPECT + "--set dtype", "--set dtype: expected KEY=VALUE"),
    (INSPECT + "--set dtype=auto", "found dtype alone, expected it together with an analysis"),
    ("inspect pocket {pocket} --out {new} --set analyze.heads.enabled=true "
     "--set evaluate.cross_domain=[pocket_medd]",
     "did you mean 'pocket_med'?"),
    # shrink
    (SHRINK, "found none, expected exactly one of --rank, --parameters, --scale; give one"),
    (SHRINK + "--rank 2 --scale 0.5", "found --rank and --scale, expected exactly one of"),
    (SHRINK + "--rank 0", "--rank 0: expected at least 1"),
    (SHRINK + "--scale -1", "expected a number of at least 0"),
    (SHRINK + "--scale 1e45", "down_proj: found numbers above float32's largest"),
    (SHRINK + "--scale 1e300", "choose a smaller --scale"),
    (SHRINK + "--rank 2,x", "--rank '2,x': found a fault"),
    (SHRINK + "--parameters 100", "found 100 parameters, expected at least 768, rank 1 of each of"),
    ("shrink {base} --scale 0.5 --out {new}", "use --rank or --parameters to make it one"),
    ("shrink {full} --rank 2 --out {new}", "expected the base that it was trained from; give"),
    (FULL + "--rank 65", "--rank 65: expected at most 64, the largest rank of a matrix"),
    (FULL + "--parameters 1855", "expected at least 1,856, rank 1 of each of 14 matrices"),
    ("shrink {base} --base {base} --rank 2 --out {new}", "no change in any linear layer"),
    ("shrink {other} --base {base} --rank 2 --out {new}", "times the norm of the base, expected a"),
    ("shrink {deeper} --base {base} --rank 2 --out {new}", "found 21 linear layers of LlamaFor"),
    ("shrink {more_tokens} --base {base} --rank 2 --out {new}", "holds no new tokens"),
    ("shrink {lacking} --base {base} --rank 2 --out {new}",
     "found no 'model.layers.1.mlp.up_proj.weight', of 1 missing tensors"),
    ("shrink nowhere --scale 0.5 --out {new}", "no such folder"),
    ("shrink {dora} --scale 0.5 --out {new}",
     "an update of dora, which depends on the base; give --base"),
    ("shrink {dora} --scale 0.5 --base {base} --out {base}", "found a folder with files in it"),
    ("shrink {wide} --scale 0.5 --base {base} --out {new}", "(64, 64) as in this model"),
    # plan and run
    ("run study.yaml --track paper", "expected one of mlflow, trackio, wandb"),
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
