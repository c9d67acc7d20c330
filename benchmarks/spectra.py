"""Race: intruders and vector similarity from the base's cached decomposition, against full SVDs.

    python benchmarks/spectra.py
    python benchmarks/spectra.py --size 1024 --model ""

One matrix of random numbers with a random update of rank 64, then a whole adapter of random numbers
on the attention of a real model. The peer decomposes W fully; the base's decomposition costs it
nothing, and ours is in memory, or read from disk for the adapter. With ``--peft`` PEFT's own
``reduce_intruder_dimension`` is timed on that matrix as well: it decomposes W0 and W, and then what
it writes. Every line is one JSON object; it ends with 1 where a parity fails. benchmarks/README.md
says what the fields mean.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.intruders import reduce_intruder_dimension
from torch import Tensor, nn

from race import rounded
from rankscope.device import keep_freed_memory, peak_memory_bytes, provenance
from rankscope.extensions.spectra.leading_vectors import low_rank_leading_vectors
from rankscope.extensions.spectra.spectra import (
    Intruders,
    default_top_k,
    intruders_among,
    similarity_from_cosines,
)
from rankscope.extensions.spectra.subspace_iteration import Triples
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.fetch import cached_model_folder
from rankscope.models.low_rank_update import LowRankUpdate
from rankscope.models.svd_cache import SVD, SvdCache, svd

SIGMA, DECISIONS, SIMILARITY = 1e-5, 0, 1e-3
"""Largest relative difference of a singular value, decisions that differ, and largest difference of
a max-matched similarity, between the fast route and a full decomposition."""
INTRUDERS = 10
EPSILON = 0.5


def _bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the fast route is from full decompositions."""

    sigma: float
    decisions: int
    similarity: float
    ill_conditioned: int

    @property
    def holds(self) -> bool:
        """Whether all three are within their bounds; not for NaN."""
        close = self.sigma <= SIGMA and self.similarity <= SIMILARITY
        return close and self.decisions <= DECISIONS

    def fields(self) -> dict[str, object]:
        """For the JSON line."""
        return {
            "parity": self.sigma,
            "parity_decisions": self.decisions,
            "parity_max_matched": self.similarity,
            "ill_conditioned": self.ill_conditioned,
        }


def compared(base: SVD, full: SVD, fast: Triples, k: int) -> Parity:
    """The fast route's first ``k`` vectors against a full decomposition of W."""
    expected, found = (
        decisions(base, full),
        intruders_among(fast.U[:, :INTRUDERS], fast.S[:INTRUDERS], EPSILON),
    )
    alike = similarity_from_cosines(fast.U[:k, :k], fast.V[:k, :k])
    left, right = base.U[:, :k].mT @ full.U[:, :k], base.V[:, :k].mT @ full.V[:, :k]
    reference = similarity_from_cosines(left, right)
    return Parity(
        sigma=float(((fast.S[:k] - full.S[:k]) / full.S[:k]).abs().max()),
        decisions=len(set(expected[0]) ^ set(found[0])),
        similarity=max(
            abs(a - b)
            for a, b in zip(alike["similarity_max"], reference["similarity_max"], strict=True)
        ),
        ill_conditioned=fast.ill_conditioned,
    )


def decisions(base: SVD, full: SVD) -> Intruders:
    """Intruders by full decompositions."""
    return intruders_among(base.U.mT @ full.U[:, :INTRUDERS], full.S[:INTRUDERS], EPSILON)


def seconds(call: Callable[[], object], times: int = 1) -> float:
    """Median seconds of a call."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def update(m: int, n: int, rank: int, size: float, seed: int) -> tuple[Tensor, Tensor]:
    """A (r, n) and B (m, r) of random numbers with |B A|_2 near ``size``."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, n, generator=generator) / n**0.5
    return a, size * torch.randn(m, rank, generator=generator) / m**0.5


def peft_on_one_layer(weight: Tensor, A: Tensor, B: Tensor) -> tuple[float, int]:
    """Seconds of PEFT's own function on a model of this one layer, and intruders that it names."""
    model = nn.Sequential(OrderedDict(layer=nn.Linear(*weight.shape[::-1], bias=False)))
    settings = LoraConfig(r=len(A), lora_alpha=len(A), target_modules=["layer"])
    tuned = get_peft_model(model, settings)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, tensor in (("base_layer", weight), ("lora_A", A), ("lora_B", B)):
            found = [p for key, p in tuned.named_parameters() if f".{name}." in key]
            found[0].copy_(tensor)
    said: list[str] = []
    began = time.perf_counter()
    reduce_intruder_dimension(tuned, top_k=INTRUDERS, logging_sink=said.append)
    took = time.perf_counter() - began
    counts = [int(text.rpartition(" ")[2]) for text in said if "Intruders: " in text]
    return took, sum(counts)


def heading(benchmark: str) -> dict[str, object]:
    """The first fields of a line."""
    here = provenance()
    device = f"{here.processor}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return {"benchmark": benchmark, "device": device}


def race_matrix(
    size: int, rank: int, folder: Path, peft: bool
) -> list[tuple[dict[str, object], Parity]]:
    """One square matrix: intruders among the first ten, then similarity of the first 500."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(size, size, generator=generator) / size**0.5
    cache = SvdCache(max_bytes=0, folder=folder)
    first = seconds(lambda: cache.of("W", weight))
    base = cache.of("W", weight)
    loading = seconds(lambda: cache.of("W", weight), 3)
    k = default_top_k((size, size))
    # Some new directions stand above the base's largest value of 2, others below.
    A, B = update(size, size, rank, 1.8, seed=1)
    began = time.perf_counter()
    exact = svd(weight)
    base_seconds = time.perf_counter() - began
    began = time.perf_counter()
    full = svd(weight + B @ A)
    tuned_seconds = time.perf_counter() - began
    results = []
    for name, vectors in (("spectra_intruders", INTRUDERS), ("spectra_similarity", k)):
        fast = low_rank_leading_vectors(base, LowRankUpdate(A, B), vectors)
        ours = seconds(lambda v=vectors: low_rank_leading_vectors(base, LowRankUpdate(A, B), v), 3)
        parity = compared(exact, full, fast, vectors)
        line = heading(name) | {
            "ratio": tuned_seconds / ours,
            "ratio_from_disk": tuned_seconds / (ours + loading),
            "ratio_once": (base_seconds + tuned_seconds) / (first + ours),
            **parity.fields(),
            "size": size,
            "rank": rank,
            "vectors": vectors,
            "seconds": {
                "ours": ours,
                "loading": loading,
                "full": tuned_seconds,
                "first_of_a_base": first,
            },
            "intruders": len(decisions(exact, full)[0]),
            "residual": fast.residual,
            "cache_bytes": _bytes_below(folder),
            "peak_memory_bytes": peak_memory_bytes(torch.device("cpu")),
        }
        if peft and name == "spectra_intruders":
            took, count = peft_on_one_layer(weight, A, B)
            line |= {"peft_seconds": took, "ratio_peft": took / ours, "peft_intruders": count}
        results.append((line, parity))
    return results


def race_adapter(folder: Path, rank: int, cache: Path) -> tuple[dict[str, object], Parity]:
    """A whole adapter of a real model: everything cached, against a full SVD of every matrix."""
    model = CheckpointReader(folder)
    names = [n for n in model.layers if n.endswith(("q_proj", "k_proj", "v_proj", "o_proj"))]
    spectra = SvdCache(max_bytes=0, folder=cache)
    took = {"ours": 0.0, "first_of_a_base": 0.0, "full": 0.0}
    parities, count = [], 0
    for seed, name in enumerate(names):
        weight = model.weight(name).float()
        m, n = weight.shape
        size = 0.5 * float(torch.linalg.matrix_norm(weight, 2))
        A, B = update(m, n, rank, size, seed)
        k = default_top_k((m, n))
        took["first_of_a_base"] += seconds(lambda w=weight: spectra.of("W", w))

        def ours(w: Tensor = weight, A: Tensor = A, B: Tensor = B, k: int = k) -> Triples:
            update = LowRankUpdate(A, B)
            return low_rank_leading_vectors(spectra.of("W", w), update, max(k, INTRUDERS))

        took["ours"] += seconds(ours)
        base, began = svd(weight), time.perf_counter()
        full = svd(weight + B @ A)
        took["full"] += time.perf_counter() - began
        parities.append(compared(base, full, ours(), k))
        count += len(decisions(base, full)[0])
    parity = Parity(
        sigma=max(p.sigma for p in parities),
        decisions=sum(p.decisions for p in parities),
        similarity=max(p.similarity for p in parities),
        ill_conditioned=sum(p.ill_conditioned for p in parities),
    )
    line = heading("spectra_adapter") | {
        "ratio": took["full"] / took["ours"],
        **parity.fields(),
        "model": folder.name,
        "rank": rank,
        "matrices": len(names),
        "seconds": took,
        "intruders": count,
        "cache_bytes": _bytes_below(cache),
        "peak_memory_bytes": peak_memory_bytes(torch.device("cpu")),
    }
    return line, parity


def main() -> int:
    """Race, print, and exit with 1 where the sides did not find the same."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--size", type=int, default=4096, help="of the square matrix; 0 for none")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--model", default="smollm2-135m", help="fetched model or folder, or none")
    parser.add_argument("--peft", action="store_true", help="time PEFT's own function too")
    options = parser.parse_args()
    keep_freed_memory()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        if options.size:
            place = Path(folder) / "matrix"
            results += race_matrix(options.size, options.rank, place, options.peft)
            for line, _ in results:
                print(json.dumps(rounded(line)), flush=True)
        if options.model:
            given = Path(options.model)
            given = given if given.is_dir() else cached_model_folder(options.model)
            results.append(race_adapter(given, 16, Path(folder) / "adapter"))
            print(json.dumps(rounded(results[-1][0])), flush=True)
    if all(parity.holds for _, parity in results):
        return 0
    print("no race: the fast route found other values than full decompositions", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
