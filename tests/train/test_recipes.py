"""The one-page recipe runs from its command line and learns its sentence."""

import ast
import sys
from pathlib import Path

import pytest
from evaluation_worlds import tokenizer
from tiny_models import tiny_llama
from toy_training import minimal

from rankscope.hashing import weights_sha256

RECIPE = Path(__file__).parents[2] / "recipes" / "minimal.py"


def test_minimal_trains_a_saved_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_llama().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    before = weights_sha256(tmp_path)
    capsys.readouterr()
    minimal().main(str(tmp_path))
    lines = capsys.readouterr().out.strip().splitlines()
    losses = [float(line.split()[-1]) for line in lines if line.startswith("step")]
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 0.01
    assert weights_sha256(tmp_path) == before


def test_minimal_imports_nothing_of_rankscope() -> None:
    """The reference shares no code with what it is the reference for."""
    imported: list[str | None] = []
    for node in ast.walk(ast.parse(RECIPE.read_text())):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported.append(node.module)
    roots = {str(name).partition(".")[0] for name in imported}
    assert roots <= {*sys.stdlib_module_names, "torch", "transformers"}
