"""The registry of methods."""

import subprocess
import sys
from pathlib import Path

import pytest

from rankscope.models import methods
from rankscope.models.methods import get_method


def test_importing_it_loads_no_heavy_library() -> None:
    code = (
        "import sys, rankscope.models.methods\n"
        "print(sorted({'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_each_file_is_a_method() -> None:
    """Which is found by listing the folder; ``lora`` comes first, the default of an arm that
    continues an adapter."""
    folder = Path(methods.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "method"}
    assert {type(m).__module__.rpartition(".")[2] for m in methods.all_methods()} == files
    assert methods.all_methods()[0].name == "lora"


def test_an_unknown_name_gets_the_known_ones() -> None:
    assert get_method("dora").label == "DoRA"
    with pytest.raises(ValueError, match=r"'dorra': expected one of lora, .* did you mean 'dora'"):
        get_method("dorra")
