"""Finished studies that the tests of this room read, and where figures are drawn."""

import pytest
from external_resources import browser_path
from finished_studies import base, exportable, given_models

__all__ = ["base", "exportable", "given_models"]


@pytest.fixture
def figure_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chromium for kaleido."""
    monkeypatch.setenv("BROWSER_PATH", browser_path() or "")
