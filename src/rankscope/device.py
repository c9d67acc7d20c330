"""The machine that a study runs on: allocator, device, dtype, memory, determinism, versions."""

import ctypes
import gc
import os
import platform
import random
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

from rankscope.errors import UserError, free_memory_bytes

# Parameters of mallopt(3), from glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4
NEVER_TRIM = -1
TOP_PAD_BYTES = 64 * 2**20

KEPT_KERNELS = 128
"""Number of compiled products that oneDNN keeps. A pass of eight ranks on every linear layer has
some 90 different products, and if fewer are kept, every layer compiles its own again. With 32 that
took over a third of a step with AMX (LOG.md, "compiled products"). The default, 1,024, is no faster
and takes 0.4 GB more."""

BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""Processor flags with which bfloat16 products are faster than float32 ones."""
WITHOUT_BFLOAT16 = frozenset(
    {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"}
)
"""Values of ONEDNN_MAX_CPU_ISA that keep oneDNN from using those instructions."""


def keep_freed_memory() -> None:
    """Let glibc's allocator keep freed memory instead of returning it to the kernel.

    A training step frees and requests the same large blocks again and again; on virtual machines
    the page faults can cost more than the arithmetic. Affects this process for good.
    """
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER_TRIM), (M_TOP_PAD, TOP_PAD_BYTES))
    for setting in settings if platform.libc_ver()[0] == "glibc" else ():
        ctypes.CDLL(None).mallopt(*map(ctypes.c_int, setting))


def release_freed_memory() -> None:
    """Return free memory to the kernel, such as that of a model that was just loaded.

    On CUDA it includes the blocks that torch's allocator keeps, because another process may need
    them. Layers with kernels of an extension refer to themselves, so only a garbage collection
    frees their models.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def limit_kernel_cache() -> None:
    """Let oneDNN keep few of its compiled products, unless the environment sets a number.

    By default it keeps 1,024, but every training pass has another number of tokens, so later passes
    reuse few. Call this before the first product.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KEPT_KERNELS))


def choose_device(text: str = "auto") -> torch.device:
    """Choose the device to compute on; ``auto`` takes CUDA, then MPS, then CPU.

    ``text`` is ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:1``. Raises UserError for a device
    that this machine does not have.
    """
    if text == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(text)
    num_devices = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }[device.type]
    if (device.index or 0) >= num_devices:
        found = f"{num_devices} {device.type} device(s) that torch {torch.__version__} can use"
        do = "use 'device: auto', or install a torch built for it"
        raise UserError(f"device {text!r}", found, "it among them", do)
    return device


def visible_gpus() -> list[str]:
    """Return the CUDA devices of this process, as CUDA_VISIBLE_DEVICES names them."""
    number = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in named.split(",") if name.strip()]
    return names[:number] if names else [str(i) for i in range(number)]


def choose_dtype(text: str, device: torch.device) -> torch.dtype:
    """Choose the base's dtype.

    ``auto`` is bfloat16 if ``device`` computes in it natively, else float16 on CUDA and float32
    elsewhere. Native are CUDA from compute capability 8.0 on, and processors with AVX512-BF16 or
    AMX.
    """
    if text == "auto":
        limited = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in WITHOUT_BFLOAT16
        is_native = device.type == "cpu" and not limited and BFLOAT16_FLAGS & _processor_flags()
        if device.type == "cuda":
            is_native = torch.cuda.is_bf16_supported(including_emulation=False)
        other = torch.float16 if device.type == "cuda" else torch.float32
        return torch.bfloat16 if is_native else other
    named: torch.dtype = getattr(torch, text)
    return named


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _processor_flags() -> frozenset[str]:
    """Return the processor's instruction set flags in Linux's names; empty on other systems."""
    return frozenset(processor_field("flags").split())


def processor_field(name: str) -> str:
    """Return a field of Linux's description of the first processor; empty on other systems."""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(errors="replace")
        if match := re.search(rf"^{name}\s*:\s*(.+)$", text, re.M):
            return match[1].strip()
    return ""


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory in use at once since the last reset, bytes.

    On CUDA it is the memory that torch's allocator gave out on ``device``. Otherwise it is the
    resident set of the whole process, libraries included.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if peak := _status_bytes("VmHWM"):
        return peak
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def live_memory_bytes(device: torch.device) -> int:
    """Return the memory in use, bytes, after free memory was returned; 0 if the system has no
    figure.

    On CUDA it is that of torch's allocator on ``device``. Otherwise it is that of this process,
    without mapped files.
    """
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    release_freed_memory()
    return _status_bytes("RssAnon", "VmSwap")


def _status_bytes(*names: str) -> int:
    """Return the sum of fields of ``/proc/self/status``; 0 on systems without it."""
    with suppress(OSError):
        lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
        return sum(int(words[1]) * 1024 for words in lines if words and words[0][:-1] in names)
    return 0


def reset_peak_memory(device: torch.device) -> None:
    """Reset ``peak_memory_bytes``, if this system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set


def available_memory_bytes(device: torch.device) -> int:
    """Return free memory of ``device``, bytes, within the limits of container and process."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory_bytes()


def use_deterministic(seed: int) -> None:
    """Seed every generator, and choose deterministic kernels if torch has them.

    On a CPU, two runs of the same program with the same libraries are then bitwise equal. On CUDA
    they are not: attention's backward pass takes its fast form, and a kernel without a
    deterministic form warns. Products of float32 are not rounded to TF32, whatever a container
    sets.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    # cuBLAS reads this when it makes its first handle.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # The default fills every torch.empty with NaN, which finds bugs and costs a pass over memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.set_float32_matmul_precision("highest")


def on_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a CPU tensor to ``device``.

    The copy does not wait for CUDA: from pinned memory it takes its turn among the kernels.
    """
    is_cuda = device.type == "cuda"
    return (values.pin_memory() if is_cuda else values).to(device, non_blocking=is_cuda)


@contextmanager
def distinct_places(device: torch.device) -> Iterator[None]:
    """Promise that values are written by index to places that all differ.

    On CUDA deterministic kernels would sort the places, and copy the whole tensor that is written
    to: a cache of keys and values, in every layer, for every token.
    """
    was_on = torch.are_deterministic_algorithms_enabled() and device.type == "cuda"
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    if was_on:
        torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        if was_on:
            torch.use_deterministic_algorithms(True, warn_only=warns)
