"""The file of an extension, beside its test; where trackers write."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from finished_studies import two_groups

__all__ = ["two_groups"]


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


@pytest.fixture
def tracker_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds the local stores of all trackers, named by their own variables."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "240")  # on a busy machine it begins late
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # MLflow makes a folder for artifacts here
    return tmp_path
