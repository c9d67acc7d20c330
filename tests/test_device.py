"""The machine: what the allocator keeps, which device and dtype are chosen, what memory is seen."""

import mmap
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from launcher import Launcher

from rankscope.cli.application import WAITING_LOOPS, _limit_busy_waiting as limit_busy_waiting
from rankscope.device import (
    _processor_flags as processor_flags,
    available_memory_bytes,
    choose_device,
    choose_dtype,
    distinct_places,
    keep_freed_memory,
    limit_kernel_cache,
    peak_memory_bytes,
    release_freed_memory,
    reset_peak_memory,
    use_deterministic,
)
from rankscope.errors import UserError
from rankscope.run.versions import LIBRARIES, provenance

CPU = torch.device("cpu")
MIB = 2**20

# Resident memory, MiB, before taking 256 MiB and after having given them back.
FREE_256_MIB = """
import sys
import psutil, torch
from rankscope.device import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
resident = lambda: psutil.Process().memory_info().rss // 2**20
before = resident()
block = torch.ones(64 * 2**20)
del block
print(resident() - before)
"""


# What oneDNN compiles in a step of eight ranks on every linear layer; each layer has the same
# products.
COMPILES = """
import os, sys
import torch
os.environ.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY", None)
sys.path += sys.argv[1:]
from rankscope.device import limit_kernel_cache
limit_kernel_cache()
from toy_training import protocol, trained, trial
linears = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
group = [trial(f"r={r}", rank=r, targets=linears) for r in (1, 2, 3, 4, 8, 16, 32, 64)]
with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON_CREATION):
    trained(group, protocol(max_steps=1), dtype=torch.bfloat16)
"""


def resident_growth_mib(launcher: Launcher, mode: str) -> int:
    launcher.start(mode, code=FREE_256_MIB)
    assert launcher.ended() == 0, launcher.said()
    return int(launcher.said())


def test_freed_memory_is_kept_only_where_asked(launcher: Launcher) -> None:
    assert resident_growth_mib(launcher, "default") < 64
    # On a C library other than glibc the subprocess itself fails: the claim does not hold there.
    assert resident_growth_mib(launcher, "keep") > 192


def test_a_device_is_the_best_there_is_or_the_one_that_is_named() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.backends.mps.is_available():
        expected = "mps"
    assert choose_device("auto").type == expected
    assert choose_device("cpu") == CPU
    assert 0 < available_memory_bytes(CPU) <= psutil.virtual_memory().total
    with pytest.raises(UserError, match=r"'cuda:99': found \d+ cuda"):
        choose_device("cuda:99")


def test_dtype_follows_the_name_or_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert choose_dtype("float32", CPU) == torch.float32
    assert choose_dtype("bfloat16", CPU) == torch.bfloat16
    native = {"avx512_bf16", "amx_bf16"} & processor_flags()
    assert choose_dtype("auto", CPU) == (torch.bfloat16 if native else torch.float32)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert choose_dtype("auto", CPU) == torch.float32
    for is_native, expected in ((True, torch.bfloat16), (False, torch.float16)):  # A100, T4
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda answer=is_native, **_: answer)
        assert choose_dtype("auto", torch.device("cuda")) == expected


def test_peak_memory_sees_a_block_that_is_gone_and_can_start_anew() -> None:
    reset_peak_memory(CPU)
    before = peak_memory_bytes(CPU)
    # Straight from the kernel, so that giving it back does not depend on the allocator.
    with mmap.mmap(-1, 256 * MIB) as block:
        for page in range(0, 256 * MIB, mmap.PAGESIZE):
            block[page] = 1
    during = peak_memory_bytes(CPU)
    assert during - before > 192 * MIB
    reset_peak_memory(CPU)
    assert peak_memory_bytes(CPU) < during - 128 * MIB


def test_one_seed_gives_one_sequence() -> None:
    threads, mode = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        draws = []
        for seed in (7, 7, 8):
            use_deterministic(seed)
            draws.append((torch.rand(4).tolist(), np.random.rand(4).tolist()))
        assert draws[0] == draws[1]
        assert draws[0][0] != draws[2][0]
        assert draws[0][1] != draws[2][1]
        assert torch.get_num_threads() == threads
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warns)


def test_places_written_once_need_no_deterministic_kernel() -> None:
    """On CUDA alone, and what was set before is set again, whatever happens inside."""
    mode = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        for warn_only in (True, False):
            torch.use_deterministic_algorithms(True, warn_only=warn_only)
            with distinct_places(CPU):
                assert torch.are_deterministic_algorithms_enabled()
            with suppress(ZeroDivisionError), distinct_places(torch.device("cuda")):
                assert not torch.are_deterministic_algorithms_enabled()
                _ = 1 / 0
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.is_deterministic_algorithms_warn_only_enabled() == warn_only
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warns)


def test_freed_memory_can_be_handed_back() -> None:
    keep_freed_memory()
    blocks = [torch.ones(2**20) for _ in range(64)]
    del blocks
    before = psutil.Process().memory_info().rss
    release_freed_memory()
    assert psutil.Process().memory_info().rss < before - 128 * MIB


def test_the_command_lets_threads_limit_busy_waiting_unless_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        monkeypatch.setenv(name, "")  # so that it is as before in the end
        monkeypatch.delenv(name)
    limit_busy_waiting()
    assert os.environ["GOMP_SPINCOUNT"] == str(WAITING_LOOPS)
    limit_kernel_cache()
    assert 0 < int(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) < 1024
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    limit_busy_waiting()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    limit_busy_waiting()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_a_layer_finds_the_products_that_the_one_before_it_compiled(launcher: Launcher) -> None:
    tests = Path(__file__).parent
    launcher.start(tests / "fixtures", tests.parent / "benchmarks", code=COMPILES)
    assert launcher.ended() == 0, launcher.said()
    lines = [line for line in launcher.said().splitlines() if "create:cache_miss" in line]
    distinct = {line.rpartition(",")[0] for line in lines}  # without the time it took
    assert lines or choose_dtype("auto", CPU) != torch.bfloat16
    # With half of that cache half of the products are compiled twice.
    assert len(lines) <= 1.2 * len(distinct)


def test_provenance_describes_this_process() -> None:
    found = provenance()
    assert found.libraries["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(found.libraries) == set(LIBRARIES)
    assert "not installed" not in found.libraries.values()
    assert found.num_threads == torch.get_num_threads()
    assert found.processor
    age = datetime.now(UTC) - datetime.fromisoformat(found.created)
    assert 0 <= age.total_seconds() < 3600
