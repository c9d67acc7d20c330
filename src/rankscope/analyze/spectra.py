"""What training did to a weight matrix: norm, spectrum and singular vectors of W0 and W = W0 + dW.

Legend: m = out, n = in, d = min(m, n), r = rank, A (r, n), B (m, r), dW = s B A (m, n), k = leading
vectors compared. Formulas and sources: docs/science.md, "Spectra". Everything is computed in
float32 or better whatever the weights' dtype; spectra of dW in float64.

``tuned.py`` finds the leading vectors of W; everything here takes their cosines as they come.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import torch
from torch import Tensor

from rankscope.analyze.intruders import intruders_among
from rankscope.analyze.leading_vectors import Leading, of_adapter, of_matrix, unchanged
from rankscope.analyze.svd_cache import SVD, SvdCache, double, precise
from rankscope.errors import IntegrityError, UserError
from rankscope.models.adapters.scaling import layer_of
from rankscope.models.lora import Adapter
from rankscope.records import MatrixSpectrum, SpectraRecord

STORED_SINGULAR_VALUES = 128
PAPER_TOP_K = 500
"""Vectors compared in arXiv 2512.15634."""

BaseWeights = Callable[[str], Tensor] | Mapping[str, Tensor]
"""Module path -> base weight (m, n)."""


class SpectraSettings(Protocol):
    """What the analysis reads of the study file's ``spectra`` section."""

    @property
    def top_k(self) -> int | None: ...
    @property
    def intruder_k(self) -> int: ...
    @property
    def intruder_epsilon(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Similarity:
    """Leading singular vectors of W against those of W0, left and right."""

    index: tuple[float, float]
    """(a) mean_i |C_ii|, vectors matched by position."""
    max: tuple[float, float]
    """(b) mean_j max_i |C_ij|, each tuned vector with its closest base vector."""
    subspace: tuple[float, float]
    """(c) |C|_F^2 / k, whatever the basis within."""
    chance: tuple[float, float]
    """Expected (c) of unrelated subspaces, k / m and k / n."""


def delta_frobenius(A: Tensor, B: Tensor, scaling: float) -> float:
    """|s B A|_F without forming it: s^2 tr[(B^T B)(A A^T)], in float64."""
    a, b = double(A), double(B)
    # The trace of a product of symmetric matrices is the sum of their elementwise product.
    squared = float(((b.mT @ b) * (a @ a.mT)).sum())
    return abs(scaling) * sqrt(max(0.0, squared))


def delta_singular_values(A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """Singular values of s B A, largest first, (min(r, m, n),), float64.

    With B = Q_B R_B and A^T = Q_A R_A they are those of s R_B R_A^T, at most r x r.
    """
    r_b = torch.linalg.qr(double(B), mode="r").R
    r_a = torch.linalg.qr(double(A).mT, mode="r").R
    values: Tensor = torch.linalg.svdvals(scaling * (r_b @ r_a.mT))
    return values


def effective_rank(singular_values: Tensor) -> float:
    """exp(-sum p ln p), p = sigma / sum(sigma) (Roy & Vetterli 2007); 0 for a zero matrix."""
    sigma = double(singular_values)
    total = float(sigma.sum())
    if total == 0:
        return 0.0
    p = sigma / total
    return float(torch.exp(torch.special.entr(p).sum()))


def stable_rank(singular_values: Tensor) -> float:
    """|dW|_F^2 / sigma_1^2 (Rudelson & Vershynin 2007); 0 for a zero matrix."""
    sigma = double(singular_values)
    if sigma.numel() == 0 or float(sigma.max()) == 0:
        return 0.0
    return float(((sigma / sigma.max()) ** 2).sum())


def default_top_k(shape: tuple[int, int]) -> int:
    """min(500, d / 4), at least 1: comparing more would find likeness by counting alone."""
    return max(1, min(PAPER_TOP_K, min(shape) // 4))


def compared_vectors(shape: tuple[int, int], config: SpectraSettings) -> int:
    """How many leading vectors of a matrix are compared: as asked or by default, at most all."""
    return min(config.top_k or default_top_k(shape), *shape)


def check_too_many(shapes: Mapping[str, tuple[int, int]], asked: Mapping[str, int | None]) -> None:
    """Raise UserError where an option asks for more vectors than a matrix, by name, has.

    All vectors of a matrix span what they always spanned: compared, they would be alike whatever
    happened. None is a default, which fits any.
    """
    for name, shape in shapes.items():
        for option, k in asked.items():
            if k is not None and not 1 <= k <= min(shape):
                raise UserError(
                    f"{option} {k}: {name} {shape} has {min(shape)} singular vectors; expected 1 "
                    f"to {min(shape)}"
                )


def similarity(base: SVD, tuned: SVD, k: int) -> Similarity:
    """Compare the first ``k`` singular vectors of W0 and W by three definitions.

    C = U_k^T U~_k (k, k), and the same with right vectors. arXiv 2512.15634 compares k = 500
    without saying by which; (c) cannot fall below (2k - d) / k and is k / d by chance, which is
    reported beside it.
    """
    if not 1 <= k <= len(base.S):
        raise UserError(f"similarity: k = {k}, expected 1 to {len(base.S)} singular vectors")
    left, right = base.U[:, :k].mT @ tuned.U[:, :k], base.V[:, :k].mT @ tuned.V[:, :k]
    return similarity_of(left, right, (len(base.U), len(base.V)))


def similarity_of(left: Tensor, right: Tensor, shape: tuple[int, int]) -> Similarity:
    """The same from the cosines C themselves, (k, k), of left and of right vectors."""
    k = len(left)
    pairs = [left.abs(), right.abs()]

    def both(values: Iterable[Tensor]) -> tuple[float, float]:
        # Rounding can lift a cosine of one just above it.
        left, right = (min(1.0, float(v)) for v in values)
        return left, right

    return Similarity(
        index=both(c.diagonal().mean() for c in pairs),
        max=both(c.max(dim=0).values.mean() for c in pairs),
        subspace=both((c**2).sum() / k for c in pairs),
        chance=(k / shape[0], k / shape[1]),
    )


def analyze_adapter(
    base_weights: BaseWeights,
    adapter: Adapter,
    config: SpectraSettings,
    trial_id: str,
    cache: SvdCache | None = None,
) -> SpectraRecord:
    """Spectra of an adapter: dW = s B A, or what DoRA's magnitude makes of W0 + s B A, less W0.

    Raises UserError where factors do not fit the base weight, IntegrityError where a number is not
    finite. ``cache`` keeps base SVDs from trial to trial.
    """
    started = time.perf_counter()
    cache = cache or SvdCache()
    matrices = [
        adapter_matrix(name, _base_weight(base_weights, name), adapter, config, cache)
        for name in adapter.a
    ]
    return spectra_record(trial_id, config, matrices, started)


def adapter_matrix(
    name: str, weight: Tensor, adapter: Adapter, config: SpectraSettings, cache: SvdCache
) -> MatrixSpectrum:
    """Spectra of one matrix of an adapter; ``weight`` is W0 (m, n)."""
    A, B = (factor.to(weight.device) for factor in adapter.factors(name))
    _check_factors(name, weight, A, B)
    if name in adapter.magnitude:  # dW is of full rank
        _check_finite(f"{name}: magnitude", adapter.magnitude[name])
        delta = adapter.delta(name, double(weight))
        return full_matrix(name, weight, delta, config, cache)
    norm = delta_frobenius(A, B, adapter.scaling)
    sigma = delta_singular_values(A, B, adapter.scaling)
    base, k = cache.of(name, weight), _vectors(weight, config)
    # An update of zero leaves the very same vectors; a second SVD might rotate degenerate ones.
    after = of_adapter(base, A, B, adapter.scaling, k) if norm else unchanged(base, k)
    return _spectrum(name, weight, (norm, sigma), (base, after), config)


def analyze_full(
    base_weights: BaseWeights,
    tuned_weights: BaseWeights,
    names: Iterable[str],
    config: SpectraSettings,
    trial_id: str,
    cache: SvdCache | None = None,
) -> SpectraRecord:
    """The same measures for weights that were trained themselves: dW = W - W0 is dense.

    ``names`` are module paths of linear layers. Raises as ``analyze_adapter``.
    """
    started = time.perf_counter()
    cache = cache or SvdCache()
    matrices = []
    for name in names:
        weight = _base_weight(base_weights, name)
        tuned = _base_weight(tuned_weights, name)
        matrices.append(full_matrix(name, weight, delta_of(name, weight, tuned), config, cache))
    return spectra_record(trial_id, config, matrices, started)


def delta_of(name: str, weight: Tensor, tuned: Tensor) -> Tensor:
    """W - W0, (m, n) float64.

    Raises:
        UserError: the shapes differ.
    """
    if tuned.shape != weight.shape:
        raise UserError(
            f"{name}: tuned weight is {tuple(tuned.shape)}, the base's {tuple(weight.shape)}: "
            "these are not the same architecture"
        )
    _check_finite(name, tuned)
    return double(tuned) - double(weight)


def full_matrix(
    name: str, weight: Tensor, delta: Tensor, config: SpectraSettings, cache: SvdCache
) -> MatrixSpectrum:
    """Spectra of one matrix whose update ``delta``, (m, n) float64, is of full rank."""
    norm = float(torch.linalg.matrix_norm(delta))
    sigma = dense_singular_values(delta)
    base, k = cache.of(name, weight), _vectors(weight, config)
    tuned = precise(weight) + delta.to(precise(weight))
    after = of_matrix(base, tuned, k) if norm else unchanged(base, k)
    return _spectrum(name, weight, (norm, sigma), (base, after), config)


def dense_singular_values(delta: Tensor) -> Tensor:
    """Singular values of a dense matrix (m, n) in float64, largest first, (min(m, n),).

    By the Gram matrix of the shorter side, at a third of the cost; values below 1e-8 of the largest
    are lost in rounding, which no measure here can see.
    """
    small = delta.mT @ delta if delta.shape[0] >= delta.shape[1] else delta @ delta.mT
    values: Tensor = torch.linalg.eigvalsh(small).flip(0).clamp_min(0).sqrt()
    return values


def _vectors(weight: Tensor, config: SpectraSettings) -> int:
    """How many leading vectors of W the measures need."""
    shape = (int(weight.shape[0]), int(weight.shape[1]))
    return min(max(compared_vectors(shape, config), config.intruder_k), min(shape))


def _spectrum(
    name: str,
    weight: Tensor,
    delta: tuple[float, Tensor],
    vectors: tuple[SVD, Leading],
    config: SpectraSettings,
) -> MatrixSpectrum:
    """Measures of one matrix; ``delta`` is |dW|_F and the singular values of dW."""
    norm, sigma = delta
    base, after = vectors
    shape = (int(weight.shape[0]), int(weight.shape[1]))
    k = compared_vectors(shape, config)
    alike = similarity_of(after.left[:k, :k], after.right[:k, :k], shape)
    examined = min(config.intruder_k, min(shape))
    found = intruders_among(after.left[:, :examined], after.S[:examined], config.intruder_epsilon)
    base_norm = float(torch.linalg.vector_norm(double(base.S)))
    return MatrixSpectrum(
        name=name,
        layer=layer_of(name),
        module=name.rsplit(".", 1)[-1],
        shape=shape,
        frobenius=norm,
        relative=norm / base_norm if base_norm else 0.0,
        singular_values=tuple(sigma[:STORED_SINGULAR_VALUES].tolist()),
        effective_rank=effective_rank(sigma),
        stable_rank=stable_rank(sigma),
        top_k=k,
        similarity_index=alike.index,
        similarity_max=alike.max,
        similarity_subspace=alike.subspace,
        chance_subspace=alike.chance,
        intruders=found.count,
        intruder_energy=found.energy,
        intruder_positions=found.positions,
        tuned_singular_values=tuple(after.S[:examined].tolist()),
        largest_cosines=tuple(min(1.0, cosine) for cosine in found.max_cosine),
        residual=after.residual,
        ill_conditioned=after.ill_conditioned,
    )


def spectra_record(
    trial_id: str, config: SpectraSettings, matrices: list[MatrixSpectrum], started: float
) -> SpectraRecord:
    return SpectraRecord(
        trial_id=trial_id,
        intruder_k=config.intruder_k,
        intruder_epsilon=config.intruder_epsilon,
        matrices=tuple(matrices),
        seconds=time.perf_counter() - started,
    )


def _base_weight(weights: BaseWeights, name: str) -> Tensor:
    if isinstance(weights, Mapping):
        if name not in weights:
            raise UserError(
                f"{name}: no such weight among the {len(weights)} given; is this the model the "
                "adapter was trained on?"
            )
        weight = weights[name]
    else:
        weight = weights(name)
    if weight.ndim != 2 or not weight.numel():
        raise UserError(f"{name}: weight has shape {tuple(weight.shape)}, expected a matrix")
    _check_finite(name, weight)
    return weight.detach()


def _check_factors(name: str, weight: Tensor, A: Tensor, B: Tensor) -> None:
    m, n = weight.shape
    fits = A.ndim == 2 and B.ndim == 2 and A.shape[1] == n and B.shape[0] == m
    if not fits or A.shape[0] != B.shape[1]:
        raise UserError(
            f"{name}: adapter has A {tuple(A.shape)} and B {tuple(B.shape)}, expected A (r, {n}) "
            f"and B ({m}, r) for this base weight: it was made for another model"
        )
    _check_finite(f"{name}: A", A)
    _check_finite(f"{name}: B", B)


def _check_finite(name: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise IntegrityError(f"{name}: {bad} of {tensor.numel()} numbers are NaN or infinite")
