"""Too little memory: trials that do not fit are ``oom``, everything else is one clear message."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import rankscope, settings
from launcher import COMMAND, Launcher
from pocket_study import SETTINGS, small_study

from fault_memory import LEAKY, address_space_of, fresh, leaky_study
from fault_points import tiny_study
from faults import message_of, refused
from rankscope.run.prepare import prepare
from rankscope.store import Ledger

LORA = SETTINGS["arms"][0]


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """One that has run no study: what such a process has freed would do for the next command."""
    with Launcher(tmp_path_factory.mktemp("launcher")) as started:
        yield started


@pytest.mark.pitfall(21)
def test_a_trial_above_the_memory_limit_is_out_of_memory(tmp_path: Path) -> None:
    """The pocket model alone takes more than 1 MB in float32."""
    file, out = tiny_study(tmp_path, arms=[LORA], memory_limit="1MB"), tmp_path / "out"
    ran = rankscope("run", file, "--out", out)
    assert ran.code == 3
    assert "error: " not in ran.err
    status = json.loads(rankscope("status", out, "--json").out)
    (trial,) = status["trials"]
    assert trial["status"] == "oom"
    assert trial["failure"].startswith("out of memory: training needs about ")
    assert trial["failure"].endswith("memory_limit is 1.0 MB")
    more = settings("memory_limit=1GB")
    assert rankscope("run", file, "--out", out, "--retry", "oom", *more).code == 0


SHORT_REPORT = (
    """
import resource
import psutil
from rankscope.run import outputs

def short_of_memory(*study):
    limit = psutil.Process().memory_info().vms + 10**6
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return recommend(*study)

recommend, outputs.recommend = outputs.recommend, short_of_memory
"""
    + COMMAND
)


@pytest.mark.pitfall(21, 33)
def test_a_report_that_does_not_fit_is_out_of_memory(launcher: Launcher, copied: Path) -> None:
    """All trials are done, and the page cannot be made."""
    before = (copied / "report.html").read_bytes()
    launcher.start("report", copied, "--json", code=SHORT_REPORT)
    do = "every trial is stored: free some memory"
    refused(launcher.outcome(), 3, where=str(copied), found="out of memory", do=do)
    assert (copied / "report.html").read_bytes() == before


FIRST_PRODUCT = (
    """
import resource
import numpy as np
import psutil
from rankscope.store import Ledger

factor = np.ones((600, 600))
product = np.empty_like(factor)

def opened_after_a_product(*arguments, **options):
    limit = psutil.Process().memory_info().vms + 10**6
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    np.matmul(factor, factor, out=product)
    return opened(*arguments, **options)

opened, Ledger.open = Ledger.open, opened_after_a_product
"""
    + COMMAND
)


def test_a_first_product_without_memory_does_not_end_the_process(copied: Path) -> None:
    """OpenBLAS takes its memory then, and calls ``exit(1)`` if it gets none."""
    outcome = fresh(("status", copied), 4 * 10**9, FIRST_PRODUCT)
    assert outcome.code in (0, 3), outcome
    assert "OpenBLAS" not in outcome.err


def test_a_command_that_has_no_room_does_not_begin(launcher: Launcher, own: Path) -> None:
    """Threads of native libraries would abort the process."""
    limits = {"RLIMIT_AS": address_space_of(launcher.process) + 50 * 10**6}
    ran = launcher.run("check", own.parent / "study.yaml", "--json", limits=limits)
    found = "of address space left"
    refused(ran, 3, where="out of memory", found=found, expected="at least 300.0 MB")


@pytest.mark.pitfall(29)
def test_a_leak_of_one_group_is_not_blamed_on_the_next(launcher: Launcher, tmp_path: Path) -> None:
    file, out = leaky_study(tmp_path), tmp_path / "out"
    launcher.start("run", file, "--out", out, code=LEAKY)
    ran = launcher.outcome()
    assert ran.code == 3, ran.err
    assert "that earlier groups did not return" in message_of(ran)
    with Ledger.open(out, write=False) as ledger:
        assert list(ledger.statuses().values()) == ["done", "planned"]
        groups = ledger.groups()
    assert groups.batch_tokens == {}  # nor does it make passes smaller for good
    assert launcher.run("run", file, "--out", out).code == 0


def test_workers_share_the_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    study = small_study(tmp_path)
    monkeypatch.setattr("rankscope.run.machines.available_memory_bytes", lambda device: 8 * 10**9)
    room = prepare(study.config).grouping.room_bytes
    quarter = prepare(study.config, num_processes=4).grouping.room_bytes
    assert quarter == pytest.approx(room / 4)
    limited = small_study(tmp_path, memory_limit="1GB").config  # of one group, as documented
    assert prepare(limited, num_processes=4).grouping.room_bytes == 10**9
