"""What every test shares: the allocator setting of the product, and what lies outside the checkout.

Folders are the package's rooms. ``fixtures/`` is on the path of imports: models (``tiny_models``,
``architectures``), trainings of seconds (``toy_training``), simulated studies
(``synthetic_study``, ``report_studies``), real ones (``pocket_study``, shared and finished in
``finished_studies``), the command (``command_line``; ``launcher`` if it is to be killed). Real
faults are in ``faults/``, what users add from outside in
``extensions/``, and tests of an extension in its folder there.

Tests that request ``data_dir``, ``model_folder`` or ``browser`` are deselected where the machine
has none, those that request ``minutes`` by ``make test``; see ``fixtures/external_resources.py``.
No assertion is about time: pytest's limit ends what hangs.
"""

import gc
import os
import signal
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import external_resources
import pytest
from launcher import Launcher

from fetch_model import fetched_model

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# As in a terminal: tests that are started in the background would ignore Ctrl-C, and so their runs.
signal.signal(signal.SIGINT, signal.default_int_handler)

# As the command does: a peer that Transformers loads takes no compiled code from the hub either.
os.environ.setdefault("USE_HUB_KERNELS", "NO")

pytest_plugins = ["pytester"]


def pytest_addoption(parser: pytest.Parser) -> None:
    external_resources.add_option(parser)


def pytest_configure(config: pytest.Config) -> None:
    external_resources.register(config)
    if config.getoption("numprocesses", None):
        return  # tests run in other processes than this one
    import torch

    from rankscope.device import keep_freed_memory

    # Without it training steps cost many times more on virtual machines; see docs/trust.md.
    keep_freed_memory()
    # Models in tests are tiny: a second thread would only wait, long where other work shares cores.
    torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported stays: Python's collector need not look through it while tests are found,
    nor ever after."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> None:
    """Nor through what earlier files imported and keep: a run collects once for each group."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _untrusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--trust-task-code`` sets it in this process; restored after each test."""
    monkeypatch.setenv("RANKSCOPE_TRUST_TASK_CODE", "0")


@pytest.fixture(scope="session")
def minutes() -> None:
    """Marks a test that takes long by nature; ``make test-slow`` runs it."""


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real data sets, ``<task>/{train,validation,test}.jsonl``."""
    return external_resources.data_folder()


@pytest.fixture(scope="module")
def beginnings(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of every file of the real data sets."""
    folder = tmp_path_factory.mktemp("data")
    for path in data_dir.glob("*/*.jsonl"):
        copy = folder / path.relative_to(data_dir)
        copy.parent.mkdir(exist_ok=True)
        with path.open("rb") as file:
            copy.write_bytes(b"".join(islice(file, 60)))
    return folder


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """A real small model, fetched before."""
    return fetched_model(external_resources.MODEL)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Starts commands in processes of their own."""
    with Launcher(tmp_path_factory.mktemp("launcher")) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """The machine's own Chromium, headless."""
    from browser import chromium

    with chromium() as found:
        yield found
