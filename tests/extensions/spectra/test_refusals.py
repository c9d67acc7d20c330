"""Commands on spectra that make no sense: refused, and nothing is written."""

from pathlib import Path

import pytest

from ...tools.test_refusals import (
    test_what_makes_no_sense_is_refused_and_nothing_is_written as refused,
)

SHRINK = "shrink {lora} --out {new} "
INSPECT = "inspect {base} {lora} --out {new} "
FULL = "shrink {full} --base {base} --out {new} "
SPECTRA = INSPECT + "--set analyze.spectra."

REFUSED = [
    # inspect
    ("inspect {base} {wide}", "as in this model; give an adapter of this model"),
    ("inspect {base} {ia3}", "peft_type 'IA3', expected 'LORA'"),
    (SPECTRA + "top_k=33", "analyze.spectra.top_k: found 33, expected 1 to 32, the number of"),
    (SPECTRA + "intruder_k=0", "intruder_k is 0, but must be greater than"),
    (SPECTRA + "intruder_epsilon=.nan", "intruder_epsilon is "),
    (INSPECT + "--set dtype=half", "dtype is 'half', but must be"),
    (INSPECT + "--set dtype", "--set dtype: expected KEY=VALUE"),
    (INSPECT + "--set dtype=auto", "found dtype alone, expected it together with an analysis"),
    ("inspect ~no-such-user/x y", "home directory"),
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
]  # fmt: skip


@pytest.mark.parametrize(("command", "said"), REFUSED, ids=lambda text: text[:60])
def test_what_makes_no_sense_is_refused(
    command: str, said: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(command, said, places, monkeypatch)
