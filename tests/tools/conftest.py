"""One finished study that the tests of this room read: two seeds of LoRA, DoRA and full."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from external_resources import browser_path
from pocket_study import changed, small_study

from rankscope.models.model_folder import pocket_folder
from rankscope.records import StudyRecords

TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"


@dataclass(frozen=True)
class Finished:
    """A study's folder, its records, and the local folder of its base."""

    out: Path
    records: StudyRecords
    base: Path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A study of seconds on a local copy of the pocket model with a chat template."""
    folder = tmp_path_factory.mktemp("finished")
    base = folder / "my-model"
    shutil.copytree(pocket_folder(), base)
    settings = base / "tokenizer_config.json"
    texts = json.loads(settings.read_text("utf-8")) | {"chat_template": TEMPLATE}
    settings.write_text(json.dumps(texts), "utf-8")
    arms = [
        {"method": "lora", "rank": 2, "lr": 2e-3},
        {"method": "dora", "rank": 4, "lr": 2e-3},
        {"method": "full", "lr": 5e-4},
    ]
    study = small_study(
        folder,
        model=str(base),
        arms=arms,
        train=changed("train", max_steps=4)["train"],
        evaluate=changed("evaluate", cross_domain=[], max_items=8)["evaluate"],
    )
    return Finished(folder / "out", study.run(folder / "out"), base)


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
