"""Constructed matrices whose intruders are known: docs/science.md, "Numbers that must come out"."""

import math

import pytest
import torch
from full_decompositions import intruder_dimensions
from scipy.linalg import hadamard
from torch import Tensor

from rankscope.analyses.spectra.intruders import Intruders, intruders_among
from rankscope.analyses.spectra.leading_vectors import low_rank_leading_vectors
from rankscope.models.low_rank_update import LowRankUpdate
from rankscope.models.svd_cache import SVD, svd

SIZE = 256


def orthogonal(size: int, seed: int) -> Tensor:
    """(size, size), float64, seeded."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(
        torch.randn(size, size, generator=generator, dtype=torch.float64)
    ).Q.contiguous()


@pytest.fixture(scope="module")
def base() -> SVD:
    """W0 = Q1 diag(linspace(1, .1, 256)) Q2^T."""
    return SVD(
        orthogonal(SIZE, 1),
        torch.linspace(1, 0.1, SIZE, dtype=torch.float64),
        orthogonal(SIZE, 2),
    )


def product(parts: SVD) -> Tensor:
    return (parts.U * parts.S) @ parts.V.mT


def by_full_decomposition(base: SVD, delta: Tensor) -> Intruders:
    """Intruders of W0 + delta by its SVD in float32, as users' weights are."""
    after = svd((product(base) + delta).float())
    return intruder_dimensions(base.U.float(), after.U, after.S)


def by_both_routes(base: SVD, *factors: tuple[float, Tensor, Tensor]) -> list[Intruders]:
    """Of dW = sum of value u v^T: by a full decomposition, and from the base's as an adapter."""
    values = torch.tensor([value for value, _, _ in factors], dtype=torch.float64)
    B = torch.stack([u for _, u, _ in factors], dim=1) * values
    A = torch.stack([v for _, _, v in factors])
    leading = low_rank_leading_vectors(base, LowRankUpdate(A, B), 10)
    fast = intruders_among(leading.left, leading.S, 0.5)
    return [by_full_decomposition(base, B @ A), fast]


@pytest.mark.parametrize(("planted", "expected"), [(1, 1), (3, 3), (8, 8), (12, 10)])
def test_planted_intruders_are_counted_up_to_k(base: SVD, planted: int, expected: int) -> None:
    h = torch.tensor(hadamard(SIZE), dtype=torch.float64) / 16
    factors = [(20.0 - j, base.U @ h[:, j + 1], base.V @ h[:, j + 101]) for j in range(planted)]
    for positions, cosines, energy in by_both_routes(base, *factors):
        assert positions == tuple(range(expected))
        # Each planted direction has 256 entries of +-1/16 in the base's vectors: its largest cosine
        # is 1/16, moved a little by W0 itself (.066 in the founding notes).
        assert all(c == pytest.approx(0.066, abs=0.004) for c in cosines[:expected])
        if planted == 1:
            delta = factors[0][0] * torch.outer(*factors[0][1:])
            s = svd((product(base) + delta).float()).S[:10].double() ** 2
            assert energy == pytest.approx(float(s[0] / s.sum()))
        if expected == 10:
            assert energy == 1.0


def test_amplifying_an_existing_direction_makes_no_intruder(base: SVD) -> None:
    for positions, cosines, energy in by_both_routes(base, (5.0, base.U[:, 99], base.V[:, 99])):
        assert positions == ()
        assert energy == 0.0
        assert cosines[0] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("share", "decay", "none"),
    [
        (0.0, "linear", True),
        (0.1, "geometric", True),
        (0.05, "linear", True),
        (0.1, "linear", False),
    ],
)
def test_gaussian_noise_makes_no_intruder_unless_singular_values_crowd(
    base: SVD, share: float, decay: str, none: bool
) -> None:
    # Noise of a tenth of |W0|_F moves singular values by more than the gaps of a linear spectrum
    # (.0035): vectors of such a crowd mix freely and some look like intruders. Over 12 draws of the
    # noise the counts were 0 to 4 there, and 0 in all draws of the other cases.
    if decay == "geometric":
        base = base._replace(S=torch.logspace(0, -1, SIZE, dtype=torch.float64))
    generator = torch.Generator().manual_seed(1004)
    noise = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    noise *= share * float(torch.linalg.vector_norm(base.S)) / float(noise.norm())
    positions, *_ = by_full_decomposition(base, noise)
    assert (positions == ()) is none


@pytest.mark.parametrize("m", [1, 2, 3, 5, 6, 16])
def test_an_even_mix_of_m_base_vectors_is_an_intruder_from_five_on(base: SVD, m: int) -> None:
    u = base.U[:, 20 : 20 + m].sum(dim=1) / math.sqrt(m)
    v = base.V[:, 60 : 60 + m].sum(dim=1) / math.sqrt(m)
    for positions, cosines, _ in by_both_routes(base, (1e4, u, v)):
        assert cosines[0] == pytest.approx(1 / math.sqrt(m), abs=1e-3)
        assert (0 in positions) == (m >= 5)


@pytest.mark.parametrize("theta", [0.5, 1.0, 1.7, 1.8, 5.0])
@pytest.mark.parametrize("shape", [(96, 32), (400, SIZE)])  # decomposed, and iterated
def test_left_null_space_of_a_tall_matrix(theta: float, shape: tuple[int, int]) -> None:
    m, n = shape
    q, s = orthogonal(m, 4), torch.linspace(1, 0.1, n, dtype=torch.float64)
    tall = SVD(q[:, :n], s, orthogonal(n, 5))
    tuned = product(tall) + theta * torch.outer(q[:, n + 8], tall.V[:, 0])
    assert float(torch.linalg.matrix_norm(tuned, 2)) == pytest.approx(math.sqrt(1 + theta**2))
    for positions, cosines, _ in by_both_routes(tall, (theta, q[:, n + 8], tall.V[:, 0])):
        assert cosines[0] == pytest.approx(1 / math.sqrt(1 + theta**2), abs=1e-5)
        assert (0 in positions) == (theta > math.sqrt(3))


def test_a_zero_matrix_has_no_energy_to_share() -> None:
    zero = SVD(torch.eye(4), torch.zeros(4), torch.eye(4))
    assert intruder_dimensions(torch.eye(4), zero.U, zero.S, 2) == ((), (1.0, 1.0), 0.0)
