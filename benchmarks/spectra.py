"""Race: intruders and vector similarity from the base's cached decomposition, against full SVDs.

    python benchmarks/spectra.py
    python benchmarks/spectra.py --size 1024 --model ""

One matrix of random numbers with a random update of rank 64, then a whole adapter of random numbers
on the attention of a real model. The peer decomposes W fully; the base's decomposition costs it
nothing, and ours is in memory, or read from disk for the adapter. With ``--peft`` PEFT's own
``reduce_intruder_dimension`` races on that matrix as well: it decomposes W0 and W, and then what it
writes. Every line is one JSON object; it ends with 1 where a parity fails. benchmarks/README.md
says what the fields mean.
"""

import argparse
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.intruders import reduce_intruder_dimension
from torch import Tensor, nn

from race import Segment, Turn, announce, heading, race
from rankscope.extensions.spectra.leading_vectors import low_rank_leading_vectors
from rankscope.extensions.spectra.spectra import (
    default_top_k,
    intruders_among,
    similarity_from_cosines,
)
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.low_rank_update import LowRankUpdate
from rankscope.models.svd_cache import SvdCache, svd
from real_model import real_model

SIGMA, SIMILARITY = 1e-5, 1e-3
"""Largest relative difference of a singular value, and largest difference of a max-matched
similarity, between the fast route and a full decomposition. Decisions must be the same."""
INTRUDERS = 10
EPSILON = 0.5


class Given(NamedTuple):
    """The matrices of a race: one of a size, or those of a model's attention."""

    size: int
    model: Path | None
    rank: int
    is_similarity: bool
    """Compare a quarter of the leading vectors, at most 500; else ten."""
    cache: Path

    def matrices(self) -> Iterator[tuple[str, Tensor, LowRankUpdate]]:
        """Name, W0 and update of each."""
        if self.model is None:
            # Some new directions stand above the base's largest value of 2, others below.
            generator = torch.Generator().manual_seed(0)
            weight = torch.randn(self.size, self.size, generator=generator) / self.size**0.5
            yield "W", weight, update(weight, self.rank, 1.8, seed=1)
            return
        reader = CheckpointReader(self.model)
        attention = ("q_proj", "k_proj", "v_proj", "o_proj")
        for seed, name in enumerate(n for n in reader.layers if n.endswith(attention)):
            weight = reader.weight(name).float()
            size = 0.5 * float(torch.linalg.matrix_norm(weight, 2))
            yield name, weight, update(weight, self.rank, size, seed)

    def vectors(self, weight: Tensor) -> int:
        """Leading vectors that are compared."""
        return default_top_k(tuple(weight.shape)) if self.is_similarity else INTRUDERS


def update(weight: Tensor, rank: int, size: float, seed: int) -> LowRankUpdate:
    """A (r, n) and B (m, r) of random numbers with |B A|_2 near ``size``."""
    (m, n), generator = weight.shape, torch.Generator().manual_seed(seed)
    a = torch.randn(rank, n, generator=generator) / n**0.5
    return LowRankUpdate(a, size * torch.randn(m, rank, generator=generator) / m**0.5)


def results(cosines: Tensor, right: Tensor, sigma: Tensor, k: int) -> dict[str, Any]:
    """Singular values, intruders and similarity, from cosines of the leading vectors with the
    base's: left ones with all, right ones."""
    intruders = intruders_among(cosines[:, :INTRUDERS], sigma[:INTRUDERS], EPSILON)
    return {
        "sigma": sigma[:k].tolist(),
        "intruders": intruders[0],
        "similarity": similarity_from_cosines(cosines[:k, :k], right[:k, :k])["similarity_max"],
    }


def cached(given: Given) -> Turn:
    """Our side."""
    cache, matrices = SvdCache(max_bytes=0, folder=given.cache), [*given.matrices()]
    bases = {name: cache.of(name, weight) for name, weight, _ in matrices}

    def turn() -> Segment:
        seconds, found = 0.0, {}
        for name, weight, change in matrices:
            k = given.vectors(weight)
            begun = time.perf_counter()
            base = cache.of(name, weight) if given.model else bases[name]
            fast = low_rank_leading_vectors(base, change, max(k, INTRUDERS))
            seconds += time.perf_counter() - begun
            found[name] = results(fast.U, fast.V, fast.S, k)
        return Segment(seconds, len(matrices), found)

    return turn


def full(given: Given) -> Turn:
    """A full SVD of every W."""
    matrices = [*given.matrices()]
    bases = {name: svd(weight) for name, weight, _ in matrices}

    def turn() -> Segment:
        seconds, found = 0.0, {}
        for name, weight, change in matrices:
            begun = time.perf_counter()
            whole = svd(weight + change.B @ change.A)
            seconds += time.perf_counter() - begun
            k, base = given.vectors(weight), bases[name]
            left, right = base.U.mT @ whole.U[:, : max(k, INTRUDERS)], base.V.mT @ whole.V[:, :k]
            found[name] = results(left, right, whole.S, k)
        return Segment(seconds, len(matrices), found)

    return turn


def peft(given: Given) -> Turn:
    """PEFT's own function on a model of the one layer; it says how many intruders it found."""
    ((_, weight, change),) = given.matrices()

    def turn() -> Segment:
        model = nn.Sequential(OrderedDict(layer=nn.Linear(*weight.shape[::-1], bias=False)))
        settings = LoraConfig(r=given.rank, lora_alpha=given.rank, target_modules=["layer"])
        tuned = get_peft_model(model, settings)  # type: ignore[arg-type]
        parts = (("base_layer", weight), ("lora_A", change.A), ("lora_B", change.B))
        with torch.no_grad():
            for name, tensor in parts:
                found = [p for key, p in tuned.named_parameters() if f".{name}." in key]
                found[0].copy_(tensor)
        said: list[str] = []
        begun = time.perf_counter()
        reduce_intruder_dimension(tuned, top_k=INTRUDERS, logging_sink=said.append)
        seconds = time.perf_counter() - begun
        counts = [int(text.rpartition(" ")[2]) for text in said if "Intruders: " in text]
        return Segment(seconds, 1, {"intruders": sum(counts)})

    return turn


def compared(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """How far the fast route is from full decompositions, at worst."""
    pairs = [(ours[name], theirs[name]) for name in ours]
    sigma = [(torch.tensor(a["sigma"]), torch.tensor(b["sigma"])) for a, b in pairs]
    alike = [(torch.tensor(a["similarity"]), torch.tensor(b["similarity"])) for a, b in pairs]
    return {
        "parity": float(torch.stack([((a - b) / b).abs().max() for a, b in sigma]).max()),
        "parity_tolerance": SIGMA,
        "parity_decisions": sum(len(set(a["intruders"]) ^ set(b["intruders"])) for a, b in pairs),
        "parity_max_matched": float(torch.stack([(a - b).abs().max() for a, b in alike]).max()),
        "intruders": sum(len(b["intruders"]) for _, b in pairs),
    }


def main() -> int:
    """Race, print, and exit with 1 where the sides did not find the same."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--size", type=int, default=4096, help="of the square matrix; 0 for none")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--model", help="folder; by default SmolLM2-135M; '' for none")
    parser.add_argument("--pairs", type=int, default=8, help="of turns, in each race")
    parser.add_argument("--peft", action="store_true", help="race PEFT's own function too")
    options = parser.parse_args()
    code = 0
    with tempfile.TemporaryDirectory() as folder:
        races = {}
        if options.size:
            for name in ("spectra_intruders", "spectra_similarity"):
                is_similarity = name == "spectra_similarity"
                cache = Path(folder) / "matrix"
                races[name] = Given(options.size, None, options.rank, is_similarity, cache)
        if options.model != "":
            model = Path(options.model) if options.model else real_model()
            races["spectra_adapter"] = Given(0, model, 16, True, Path(folder) / "adapter")
        for name, given in races.items():
            peers = {"ratio": full}
            if options.peft and name == "spectra_intruders":
                peers["ratio_peft"] = peft
            result, raced = race(cached, peers, given, options.pairs)
            pairs = raced["ratio"]
            result |= compared(pairs.ours[0].found, pairs.theirs[0].found)
            if "ratio_peft" in raced:
                result["peft_intruders"] = raced["ratio_peft"].theirs[0].found["intruders"]
            code |= announce({**heading(name, "float32"), **result})
            code |= result["parity_decisions"] > 0 or result["parity_max_matched"] > SIMILARITY
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
