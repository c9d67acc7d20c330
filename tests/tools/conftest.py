"""Finished studies that the tests of this room read, and where figures and trackers write."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from external_resources import browser_path
from finished_studies import base, exportable, given_models, small

__all__ = ["base", "exportable", "given_models", "small"]


@pytest.fixture
def figure_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chromium for kaleido."""
    monkeypatch.setenv("BROWSER_PATH", browser_path() or "")


@pytest.fixture(scope="module")
def tracker_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that holds the local stores of all trackers, named by their own variables."""
    folder = tmp_path_factory.mktemp("trackers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB__SERVICE_WAIT", "240")  # on a busy machine it begins late
        patch.setenv("WANDB_DIR", str(folder))
        patch.chdir(folder)  # MLflow makes a folder for artifacts here
        yield folder
