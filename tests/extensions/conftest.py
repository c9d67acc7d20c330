"""The file of an extension, beside its test."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def load_extension(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Runs a file of this folder as a module, as a user would who imports it."""

    def load(name: str) -> ModuleType:
        place = Path(__file__).with_name(f"{name}.py")
        spec = importlib.util.spec_from_file_location(f"extension_{name}", place)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load
