"""Changes of one weight matrix by training: norm, spectrum and singular vectors.

W0 is the base's matrix, and W = W0 + dW the trained one. Definitions and sources: docs/methods.md,
"Spectra". Everything is computed in float32 or better, whatever the weights' dtype, and spectra of
dW in float64.

Shapes: m = out, n = in, d = min(m, n), r = rank, k = leading vectors compared.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankscope.errors import UserError
from rankscope.extensions.spectra import SpectraConfig
from rankscope.extensions.spectra.leading_vectors import (
    dense_leading_vectors,
    low_rank_leading_vectors,
)
from rankscope.extensions.spectra.record import (
    STORED_SINGULAR_VALUES,
    MatrixSpectrum,
    SpectraRecord,
    chance_levels,
    layer_index,
)
from rankscope.extensions.spectra.subspace_iteration import Triples
from rankscope.models.base import Base
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.lora import Adapter
from rankscope.models.low_rank_update import LowRankUpdate, to_float64
from rankscope.models.methods.lora import LoraMethod
from rankscope.models.quantize import dense_weight
from rankscope.models.svd_cache import (
    SvdCache,
    at_least_float32,
    decomposition_device,
    svd_cache_folder,
)
from rankscope.records import TrialSpec

PAPER_TOP_K = 500  # Vectors compared in arXiv 2512.15634


def effective_rank(singular_values: Tensor) -> float:
    """Return exp(-sum p ln p), p = sigma / sum(sigma) (Roy & Vetterli 2007); 0 for a zero
    matrix."""
    sigma = to_float64(singular_values)
    total = float(sigma.sum())
    if total == 0:
        return 0.0
    return float(torch.exp(torch.special.entr(sigma / total).sum()))


def stable_rank(singular_values: Tensor) -> float:
    """Return |dW|_F^2 / sigma_1^2 (Rudelson & Vershynin 2007); 0 for a zero matrix."""
    sigma = to_float64(singular_values)
    if sigma.numel() == 0 or float(sigma.max()) == 0:
        return 0.0
    return float(((sigma / sigma.max()) ** 2).sum())


def default_top_k(shape: tuple[int, int]) -> int:
    """Return min(500, d / 4), at least 1: comparing most of d vectors finds similarity anywhere."""
    return max(1, min(PAPER_TOP_K, min(shape) // 4))


def num_compared_vectors(shape: tuple[int, int], settings: SpectraConfig) -> int:
    """Count the leading vectors of a matrix to compare: ``top_k`` or the default, at most d."""
    return min(settings.top_k or default_top_k(shape), *shape)


def similarity_from_cosines(left: Tensor, right: Tensor) -> dict[str, Any]:
    """Compare the first k singular vectors of W0 and W; return fields of a record, left and right.

    C = U_k^T U~_k (k, k) is ``left``, and ``right`` the cosines of right vectors. arXiv 2512.15634
    compares k = 500 without naming the definition, so all three are computed: vectors matched by
    position, mean_i |C_ii|; each vector with its closest of W0's, mean_j max_i |C_ij|; or the
    spans, |C|_F^2 / k, which cannot fall below (2k - d) / k.
    """
    k = len(left)
    cosines = [left.abs(), right.abs()]

    def pair(values: Iterable[Tensor]) -> tuple[float, float]:
        left, right = (min(1.0, float(v)) for v in values)  # rounding can lift a 1 above 1
        return left, right

    return {
        "similarity_index": pair(c.diagonal().mean() for c in cosines),
        "similarity_max": pair(c.max(dim=0).values.mean() for c in cosines),
        "similarity_subspace": pair((c**2).sum() / k for c in cosines),
    }


def spectra_record(
    trial_id: str, settings: SpectraConfig, matrices: list[MatrixSpectrum], seconds: float
) -> SpectraRecord:
    return SpectraRecord(
        trial_id=trial_id,
        intruder_k=settings.intruder_k,
        intruder_epsilon=settings.intruder_epsilon,
        matrices=tuple(matrices),
        seconds=seconds,
    )


def adapter_spectrum(
    name: str, weight: Tensor, adapter: Adapter, settings: SpectraConfig, svds: SvdCache
) -> MatrixSpectrum:
    """Measure one matrix of an adapter; ``weight`` is W0 (m, n)."""
    update = LoraMethod.of(adapter.method).update(adapter, name, weight)
    return _matrix_spectrum(name, weight, update, settings, svds)


def full_spectrum(
    name: str, weight: Tensor, tuned: Tensor, settings: SpectraConfig, svds: SvdCache
) -> MatrixSpectrum:
    """Measure one matrix that was trained itself, given W0 and W, (m, n) each."""
    if weight.ndim != 2 or tuned.shape != weight.shape:
        raise UserError(
            name,
            f"a tuned weight of shape {tuple(tuned.shape)}",
            f"the base's {tuple(weight.shape)}: the same architecture",
        )
    delta = to_float64(tuned) - to_float64(weight)
    return _matrix_spectrum(name, weight, delta, settings, svds)


def _dense_singular_values(delta: Tensor) -> Tensor:
    """Return the singular values of a dense float64 matrix (m, n), largest first, (d,).

    They come from the Gram matrix of the shorter side, at a third of the cost. Values below 1e-8 of
    the largest are lost in rounding, which is below the resolution of any measure here.
    """
    small = delta.mT @ delta if delta.shape[0] >= delta.shape[1] else delta @ delta.mT
    values: Tensor = torch.linalg.eigvalsh(small).flip(0).clamp_min(0).sqrt()
    return values


def _matrix_spectrum(
    name: str,
    weight: Tensor,
    update: LowRankUpdate | Tensor,
    settings: SpectraConfig,
    svds: SvdCache,
) -> MatrixSpectrum:
    """Compute all measures of one matrix; an update of full rank is dense, (m, n) float64.

    The leading vectors of W are as many as are compared or examined.
    """
    base, shape = svds.of(name, weight), (int(weight.shape[0]), int(weight.shape[1]))
    k, examined = num_compared_vectors(shape, settings), min(settings.intruder_k, *shape)
    count = max(k, examined)
    if isinstance(update, LowRankUpdate):
        norm, sigma = update.frobenius(), update.singular_values()
        tuned = low_rank_leading_vectors(base, update, count) if norm else None
    else:
        norm, sigma = float(torch.linalg.matrix_norm(update)), _dense_singular_values(update)
        before = at_least_float32(weight)
        tuned = dense_leading_vectors(base, before + update.to(before), count) if norm else None
    if tuned is None:  # the base's own vectors: another SVD might rotate those of equal values
        same = torch.eye(len(base.S), count, dtype=base.U.dtype, device=base.U.device)
        tuned = Triples.from_svd(same, base.S, same, count)
    left, right = tuned.U, tuned.V
    alike = similarity_from_cosines(left[:k, :k], right[:k, :k])
    positions, cosines, energy = intruders_among(
        left[:, :examined], tuned.S[:examined], settings.intruder_epsilon
    )
    base_norm = float(torch.linalg.vector_norm(to_float64(base.S)))
    return MatrixSpectrum(
        name=name,
        layer=layer_index(name),
        module=name.rsplit(".", 1)[-1],
        shape=shape,
        frobenius=norm,
        relative=norm / base_norm if base_norm else 0.0,
        singular_values=tuple(sigma[:STORED_SINGULAR_VALUES].tolist()),
        effective_rank=effective_rank(sigma),
        stable_rank=stable_rank(sigma),
        top_k=k,
        **alike,
        **chance_levels(k, shape),
        intruders=len(positions),
        intruder_energy=energy,
        intruder_positions=positions,
        tuned_singular_values=tuple(tuned.S[:examined].tolist()),
        largest_cosines=tuple(min(1.0, cosine) for cosine in cosines),
        residual=tuned.residual,
        ill_conditioned=tuned.ill_conditioned if norm else 0,
    )


def check_spectra_settings(settings: SpectraConfig, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Refuse more vectors than a matrix has.

    All singular vectors of a matrix span the same space, whatever training did, so they would
    compare as equal. The default of ``intruder_k`` is cut to each matrix's number.
    """
    has_default = settings.intruder_k == SpectraConfig().intruder_k
    counts = {"top_k": settings.top_k, "intruder_k": None if has_default else settings.intruder_k}
    for name, shape in shapes.items():
        for field, k in counts.items():
            if k is not None and not 1 <= k <= min(shape):
                raise UserError(
                    f"analyze.spectra.{field}",
                    f"{k}",
                    f"1 to {min(shape)}, the number of singular vectors of {name} {shape}",
                    "correct it",
                )


def full_spectra(
    base: Base,
    folder: Path,
    names: Sequence[str],
    settings: SpectraConfig,
    svds: SvdCache | None = None,
) -> list[MatrixSpectrum]:
    """Measure the fully fine-tuned model in ``folder``.

    Several shards make this call together: each reads and decomposes its part of the matrices, and
    returns the spectra of all.
    """
    shards, device, linears = base.shards, decomposition_device(base.device), base.linears()
    svds = svds or SvdCache(max_bytes=0, folder=svd_cache_folder())
    # Read the stored float32: bfloat16 rounds a weight by up to 1 part in 512, as much as a small
    # learning rate may have moved it.
    stored = CheckpointReader(folder)
    before = CheckpointReader(base.folder) if shards.size > 1 else None
    order, own = list(names), []
    if before is not None:  # The largest first, so that all have alike to do: q, k, v, o repeat
        order.sort(key=lambda n: linears[n].weight.numel() * min(linears[n].weight.shape))
        order.reverse()
    for name in order[shards.index :: shards.size]:
        if before is None:
            weight = dense_weight(linears[name]).to(device)
        else:  # Gathering it would make the shards wait for each other
            weight = before.weight(name, device).to(linears[name].weight.dtype)
        own.append(full_spectrum(name, weight, stored.weight(name, device), settings, svds))
    found = {matrix.name: matrix for part in shards.collect(own) for matrix in part}
    return [found[name] for name in names]


def analyze_trial(
    trial: TrialSpec,
    base: Base,
    tuned: Base,
    matrix_names: Iterable[str],
    settings: SpectraConfig,
    svds: SvdCache,
) -> SpectraRecord:
    """Measure a trial's adapter, PEFT tuner or, in ``matrix_names``, fully fine-tuned model.

    ``tuned`` is the base with the trial's adapter attached, or the trial's own model.
    """
    started = time.perf_counter()
    device, linears = decomposition_device(base.device), base.linears()

    def full(name: str, weight: Tensor, tuned_weight: Tensor) -> MatrixSpectrum:
        return full_spectrum(name, weight.to(device), tuned_weight.to(device), settings, svds)

    if (tuner := tuned.multi_lora.injected_tuner) is not None:
        matrices = [
            full(n, dense_weight(linears[n]), tuner.merged_weight(n)) for n in tuner.mergeable()
        ]
    elif trial.is_full:
        given = tuned.folder, [*matrix_names], settings
        base.shards.announce("call", full_spectra, *given)
        matrices = full_spectra(base, *given, svds)
    else:
        adapter = tuned.multi_lora.adapters[trial.trial_id]
        matrices = [
            adapter_spectrum(n, dense_weight(linears[n]).to(device), adapter, settings, svds)
            for n in adapter.a
        ]
    return spectra_record(trial.trial_id, settings, matrices, time.perf_counter() - started)


# --- intruder dimensions: leading vectors of W that resemble none of W0 (arXiv 2410.21228)

# Left vector y_j is one if max_i |cos(y_j, x_i)| < epsilon over ALL left vectors x_i of W0. A
# vector that is spread evenly over more than 1 / epsilon^2 of them is one, too: the word means "no
# single old direction", not "outside their span". Counts saturate at k, so the energy share is
# reported.

Intruders = tuple[tuple[int, ...], tuple[float, ...], float]
"""Indices among the k vectors, from 0, largest singular value first; max_i |cos(y_j, x_i)| of each
of the k vectors; and the intruders' energy, sum sigma^2 over that of all k vectors."""


def intruders_among(cosines: Tensor, S: Tensor, epsilon: float) -> Intruders:
    """Find the intruders among k leading left vectors of W.

    ``cosines`` (d0, k) are to ALL left vectors of W0; ``S`` (k,) are singular values of W.
    """
    max_cosine = cosines.abs().max(dim=0).values
    is_intruder = max_cosine < epsilon
    squared = S.cpu().double() ** 2
    total = float(squared.sum())
    energy = float(squared[is_intruder.cpu()].sum()) / total if total else 0.0
    positions = tuple(torch.nonzero(is_intruder).flatten().tolist())
    return positions, tuple(max_cosine.tolist()), energy
