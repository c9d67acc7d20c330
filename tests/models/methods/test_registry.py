"""The registry of methods: light to import, and the source of the documentation's table."""

import subprocess
import sys
from pathlib import Path

import pytest

from rankscope.models.methods import all_methods, get_method, method_names

ROOT = Path(__file__).parents[3]


def test_importing_it_loads_no_heavy_library() -> None:
    code = (
        "import sys, rankscope.models.methods\n"
        "print(sorted({'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_table_of_methods_in_the_documentation_is_the_registrys() -> None:
    table = "\n".join(
        ["| method | meaning |", "|---|---|"]
        + [f"| `{method.name}` | {method.summary} |" for method in all_methods()]
    )
    assert table in (ROOT / "docs" / "study-file.md").read_text("utf-8"), f"expected:\n{table}"


def test_an_unknown_name_gets_the_known_ones() -> None:
    assert get_method("dora").label == "DoRA"
    assert len(set(method_names())) == len(method_names())
    with pytest.raises(ValueError, match=r"'dorra': expected one of lora, .* did you mean 'dora'"):
        get_method("dorra")
