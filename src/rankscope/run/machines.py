"""Machines that a plan is made for: what they compute, move and hold, and who says so.

To add one, add a line to ``MACHINES``. Rates are dense ones, without sparsity.
"""

import math
import mmap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch

from rankscope.device import available_memory_bytes, dtype_name
from rankscope.errors import UserError, did_you_mean

PROBE_ROWS = 1024
PROBE_SECONDS = 0.3
COPIED_BYTES = 2**26
NEW_BYTES = 2**27

PUBLISHED_UTILIZATION = 0.41
"""Most of the product rate that training is planned to use on a machine that was not measured.
Published for LoRA on an 8B and a 7B model, one H100, full rows of 4,096 tokens: 402 and 423 of 989
TFLOP/s (NVIDIA NeMo AutoModel, performance summary)."""


@dataclass(frozen=True, slots=True)
class Machine:
    label: str
    device: torch.device
    rates: Mapping[str, float]  # By dtype, 10^12 operations per second of a matrix product
    bandwidth: float  # Of its memory, 10^9 bytes per second
    memory: float  # 10^9 bytes
    source: str
    decomposition_share: float = 0.01
    """Of the float32 rate, in singular value decompositions; on an H100 one of 4096 x 4096 then
    takes 3 s. Not measured."""
    measured: bool = False
    pace: float = 1.0
    """Measured over estimated seconds of training steps, for training and scoring; ``pace.py``."""
    probed_layers: int = 0  # Of the model, in that measurement; 0: nothing was measured
    first_touch: float = math.inf
    """10^9 bytes per second of memory that is new to a process; below one on some virtual
    machines."""
    utilization: float = 1.0
    """Most of the product rate that a pass can use; the time model itself may give less."""

    def dtype(self, wanted: str) -> torch.dtype:
        """The base's dtype; ``auto`` is bfloat16 if the device computes in it."""
        fast = "bfloat16" if "bfloat16" in self.rates else "float32"
        name = fast if wanted == "auto" else wanted
        if name not in self.rates:
            raise UserError(
                f"plan: found dtype {name}, which {self.label} does not compute in; expected "
                f"{' or '.join(self.rates)} ('--set dtype=...')"
            )
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]

    def basis(self, dtype: torch.dtype, share: float) -> str:
        """What estimates of time rest on, as a sentence; ``share`` of the rate is reached."""
        rate = self.rates[dtype_name(dtype)]
        shown = f"{rate:,.0f} TFLOP/s" if rate >= 10 else f"{rate * 1000:,.0f} GFLOP/s"
        figures = f"{shown} ({dtype_name(dtype)}) and {self.bandwidth:,.0f} GB/s"
        if self.measured:
            layers = self.probed_layers
            steps = f", with training steps of {layers} layers" if layers else ""
            used = f"training is estimated to use {share:.0%} of the rate"
            return f"{figures} measured here{steps}; {used}"
        used = f"{share:.0%}" if share >= 0.01 else "less than 1%"
        return (
            f"{figures} ({self.source}), assumed to be used to {used} (published for LoRA on an "
            f"H100: {self.utilization:.0%}); not measured"
        )


def _card(
    label: str, source: str, bfloat16: float, float32: float, bandwidth: float, memory: float
) -> Machine:
    rates = {"bfloat16": bfloat16, "float32": float32}
    device = torch.device("cuda")
    return Machine(
        label, device, rates, bandwidth, memory, source, utilization=PUBLISHED_UTILIZATION
    )


MACHINES: Mapping[str, Machine] = {
    "h100": _card("NVIDIA H100 SXM", "data sheet", 989, 67, 3350, 80),
    "h200": _card("NVIDIA H200 SXM", "data sheet", 989, 67, 4800, 141),
    "a100": _card("NVIDIA A100 80GB SXM", "data sheet", 312, 19.5, 2039, 80),
    "l40s": _card("NVIDIA L40S", "data sheet", 362, 91.6, 864, 48),
    "l4": _card("NVIDIA L4", "data sheet", 121, 30.3, 300, 24),
    "4090": _card("GeForce RTX 4090", "Ada architecture white paper", 165, 82.6, 1008, 24),
    "m3": Machine(
        "Apple M3",
        torch.device("mps"),
        {"float32": 3.6},
        100,
        24,
        "10 cores x 128 units x 2 x 1.4 GHz; Apple publishes bandwidth and memory only",
        utilization=PUBLISHED_UTILIZATION,
    ),
}
"""By the name that ``rankscope plan --device`` takes."""


def find_machine(name: str) -> Machine | None:
    """A machine of the catalogue; None for ``here``."""
    if name == "here":
        return None
    if name not in MACHINES:
        hint = did_you_mean(name, MACHINES) or "."
        raise UserError(
            f"plan: found device {name!r}{hint} Expected 'here' or one of {', '.join(MACHINES)}"
        )
    return MACHINES[name]


@cache
def this_machine(device: torch.device, dtype: torch.dtype, shape: tuple[int, int]) -> Machine:
    """The machine that this process runs on, measured for about a second, once.

    Args:
        shape: (out, in) of a weight of the model: products of small matrices are slower.
    """

    def product(dtype: torch.dtype) -> float:
        x = torch.randn(PROBE_ROWS, shape[1], device=device).to(dtype)
        weight = torch.randn(shape[1], shape[0], device=device).to(dtype)
        rows = 1
        # A processor without bfloat16 products takes a thousand times as long: begin with one row.
        while rows < PROBE_ROWS:
            if seconds_of(partial(torch.matmul, x[:rows], weight), device) > PROBE_SECONDS / 4:
                break
            rows *= 4
        seconds = fastest(partial(torch.matmul, x[:rows], weight), device)
        return 2 * rows * shape[0] * shape[1] / seconds / 1e12

    values = torch.zeros(COPIED_BYTES // 4, device=device)
    rates = {dtype_name(d): product(d) for d in {dtype, torch.float32}}
    return Machine(
        label="this machine",
        device=device,
        rates=rates,
        bandwidth=2 * COPIED_BYTES / fastest(lambda: values.add_(1), device) / 1e9,
        memory=available_memory_bytes(device) / 1e9,
        source="measured",
        decomposition_share=0.01 if device.type == "cuda" else 0.5,
        first_touch=first_touch() if device.type == "cpu" else math.inf,
        measured=True,
    )


def first_touch() -> float:
    """Of a mapping of its own: memory that the heap kept would not be new."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, NEW_BYTES, flags=flags) as pages:
        begun = time.perf_counter()
        for start in range(0, NEW_BYTES, mmap.PAGESIZE):
            pages[start] = 1
        return NEW_BYTES / (time.perf_counter() - begun) / 1e9


def fastest(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of a few calls: other work on the machine only adds to the others."""
    call()
    best, ends = seconds_of(call, device), time.perf_counter() + PROBE_SECONDS
    while time.perf_counter() < ends:
        best = min(best, seconds_of(call, device))
    return best


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, its kernels included."""
    begun = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - begun
