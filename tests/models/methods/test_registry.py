"""The registry of methods."""

import subprocess
import sys

import pytest

from rankscope.models.methods import get_method


def test_importing_it_loads_no_heavy_library() -> None:
    code = (
        "import sys, rankscope.models.methods\n"
        "print(sorted({'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_an_unknown_name_gets_the_known_ones() -> None:
    assert get_method("dora").label == "DoRA"
    with pytest.raises(ValueError, match=r"'dorra': expected one of lora, .* did you mean 'dora'"):
        get_method("dorra")
