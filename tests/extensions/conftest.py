"""Finished studies, refusals, the file of an extension beside its test; where trackers write."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from finished_studies import base, exportable, given_models, small, two_groups

from rankscope import registry
from rankscope.analyses import all_analyses
from rankscope.data.registry import named_tasks
from rankscope.evaluate.scorers import scorers
from rankscope.models.methods import _methods as methods
from rankscope.report.figures import figure_files
from rankscope.sources import sources
from rankscope.train.objectives import objectives

from ..run.test_refusals import (
    test_a_study_that_cannot_run_is_refused_before_anything_is_written as refused,
)

__all__ = ["base", "exportable", "given_models", "small", "two_groups"]


def refusals(*cases: tuple[dict[str, Any], str]) -> Callable[..., None]:
    """A test that the small study, so changed, is refused before anything is written."""

    @pytest.mark.parametrize(("changes", "said"), cases, ids=lambda value: str(value)[:60])
    def test(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
        refused(changes, said, tmp_path)

    return test


@pytest.fixture
def load_extension(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Runs a file of this folder as the module of another package, which has its other files."""

    def load(name: str) -> ModuleType:
        place = Path(__file__).with_name(f"{name}.py")
        spec = importlib.util.spec_from_file_location(
            f"extension_{name}", place, submodule_search_locations=[str(place.parent)]
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        there = (*registry.extensions(), module)
        monkeypatch.setattr(registry, "extensions", lambda: there)
        forget()
        return module

    yield load
    monkeypatch.undo()
    forget()


def forget() -> None:
    found = (registry.parts, all_analyses, methods, objectives, scorers, sources)
    for function in (*found, named_tasks, figure_files):
        function.cache_clear()


@pytest.fixture
def tracker_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds the local stores of all trackers, named by their own variables."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)  # it reads its variable where it is first imported
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "240")  # on a busy machine it begins late
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # MLflow makes a folder for artifacts here
    return tmp_path
