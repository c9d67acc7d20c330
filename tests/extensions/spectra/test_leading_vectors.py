"""The leading vectors of a tuned matrix by iteration, against its full decomposition."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rankscope.extensions.spectra import leading_vectors
from rankscope.extensions.spectra.leading_vectors import (
    DiagonalPlusLowRank,
    countable,
    dense_leading_vectors,
    low_rank_leading_vectors,
    to_base_basis,
)
from rankscope.extensions.spectra.spectra import intruders_among, similarity_from_cosines
from rankscope.extensions.spectra.subspace_iteration import NotConvergedError, leading_triples
from rankscope.models import svd_cache
from rankscope.models.low_rank_update import LowRankUpdate
from rankscope.models.svd_cache import SVD, SvdCache, from_int16, svd, to_int16

from .full_decompositions import intruder_dimensions, similarity

SHAPES = [(400, 400), (500, 300), (300, 500), (310, 300)]
K = 24


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_update(m: int, n: int, rank: int, scale: float) -> LowRankUpdate:
    return LowRankUpdate(gaussian(rank, n, seed=1), scale * gaussian(m, rank, seed=2))


def base_weight(shape: tuple[int, int], decay: float) -> Tensor:
    """A matrix with random vectors whose singular values fall like i^-decay; gaussian for 0."""
    if not decay:
        return gaussian(*shape, seed=3)
    d = min(shape)
    u, v = torch.linalg.qr(gaussian(shape[0], d)).Q, torch.linalg.qr(gaussian(shape[1], d)).Q
    return 20 * (u * torch.arange(1, d + 1, dtype=torch.float64) ** -decay) @ v.mT


@pytest.fixture
def iterates_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A direct decomposition in place of the iteration is an error."""

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("fell back to the direct route")

    with monkeypatch.context() as patched:
        patched.setattr(DiagonalPlusLowRank, "dense", refused)
        yield


@pytest.mark.usefixtures("iterates_only")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.5])
@pytest.mark.parametrize("size", [1e-3, 0.3, 3.0])
def test_iteration_equals_the_full_decomposition(
    shape: tuple[int, int], decay: float, size: float
) -> None:
    m, n = shape
    weight = base_weight(shape, decay)
    base = svd(weight)
    A, B = gaussian(8, n, seed=1) / n**0.5, gaussian(m, 8, seed=2) / m**0.5
    scaling = size * float(base.S[0])
    full = svd(weight + scaling * B @ A)
    found = low_rank_leading_vectors(base, LowRankUpdate(A, scaling * B), K)
    torch.testing.assert_close(found.S, full.S[:K], rtol=1e-7, atol=1e-7 * float(full.S[0]))
    assert found.residual <= 1e-8
    alike = similarity_from_cosines(found.U[:K], found.V[:K])
    for name, expected in similarity(base, full, K).items():
        assert alike[name] == pytest.approx(expected, abs=1e-4)
    direct = intruder_dimensions(base.U, full.U, full.S, 10)
    intruders = intruders_among(found.U[:, :10], found.S[:10], 0.5)
    assert intruders[0] == direct[0]
    assert intruders[1] == pytest.approx(direct[1], abs=1e-5)
    assert intruders[2] == pytest.approx(direct[2], abs=1e-6)


@pytest.mark.usefixtures("iterates_only")
@pytest.mark.parametrize("shape", [(300, 300), (400, 300), (300, 400)])
def test_a_new_direction_without_a_share_in_the_leading_vectors_is_found(
    shape: tuple[int, int],
) -> None:
    """dW = 50 u_250 v_280^T: orthogonal to all that an iteration from e_1.. would begin with."""
    base = svd(base_weight(shape, 0.5))
    A, B = base.V[:, 279:280].mT, base.U[:, 249:250]
    found = low_rank_leading_vectors(base, LowRankUpdate(A, 50.0 * B), 10)
    assert float(found.S[0]) == pytest.approx(50, rel=1e-3)
    assert float(found.U[249, 0].abs()) == pytest.approx(1, abs=1e-3)
    assert float(found.V[279, 0].abs()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("shape", [(40, 40), (60, 40), (40, 60)])
@pytest.mark.parametrize("rank", [1, 5, 30])
def test_the_core_is_the_tuned_matrix_in_the_bases_basis(shape: tuple[int, int], rank: int) -> None:
    m, n = shape
    weight = gaussian(m, n)
    core = to_base_basis(svd(weight), random_update(m, n, rank, 0.3))
    dense = core.dense()
    sigma = torch.linalg.svdvals(weight + random_update(m, n, rank, 0.3).dense())
    torch.testing.assert_close(torch.linalg.svdvals(dense), sigma)
    x, y = gaussian(dense.shape[1], 4, seed=4), gaussian(dense.shape[0], 4, seed=5)
    torch.testing.assert_close(core.apply(x), dense @ x)
    torch.testing.assert_close(core.adjoint(y), dense.mT @ y)
    # Inertia: an exact count, at any value between two singular values.
    for i in range(len(sigma) - 1):
        assert core.count_above(float(sigma[i] + sigma[i + 1]) / 2) == i + 1
    assert core.count_above(2 * float(sigma[0])) == 0


def blind(core: DiagonalPlusLowRank, count: int) -> Tensor:
    """A start without the update's own directions."""
    return torch.eye(len(core.S), count, dtype=core.Q.dtype)


def test_what_the_iteration_missed_is_noticed_and_computed_directly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Begun without the update's directions, it may miss some vectors: the count shows it."""
    weight = base_weight((300, 300), 0.5)
    base = svd(weight)
    A, B = base.V[:, 279:280].mT, base.U[:, 249:250]
    monkeypatch.setattr(DiagonalPlusLowRank, "start", blind)
    core = to_base_basis(base, LowRankUpdate(A, 50.0 * B))
    passed_over = leading_triples(core, blind(core, 30), 10, 1e-8)
    assert float(passed_over.S[0]) < 49
    assert core.count_above(float(passed_over.S[9] + passed_over.next_value) / 2) == 11
    found = low_rank_leading_vectors(base, LowRankUpdate(A, 50.0 * B), 10)
    assert float(found.S[0]) == pytest.approx(50, rel=1e-3)
    assert found.residual == 0  # the direct route


def test_a_cluster_at_the_last_vector_does_not_hide_one_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The 9th to the 12th value are one, so that the count is of those above them."""
    values = torch.linspace(20, 1, 300, dtype=torch.float64)
    values[8:12] = values[8]
    u, v = torch.linalg.qr(gaussian(300, 300)).Q, torch.linalg.qr(gaussian(300, 300, seed=1)).Q
    base = SVD(u, values, v)
    A, B = v[:, 279:280].mT, u[:, 249:250]
    seen = low_rank_leading_vectors(base, LowRankUpdate(A, 50.0 * B), 11)
    assert 0 < seen.residual <= 1e-8  # iterated, and the count agrees
    monkeypatch.setattr(DiagonalPlusLowRank, "start", blind)
    core = to_base_basis(base, LowRankUpdate(A, 50.0 * B))
    passed_over = leading_triples(core, blind(core, 30), 10, 1e-8)
    assert countable(passed_over)[0] == 8
    found = low_rank_leading_vectors(base, LowRankUpdate(A, 50.0 * B), 10)
    assert float(found.S[0]) == pytest.approx(50, rel=1e-2)
    assert found.residual == 0  # the direct route


def test_a_base_of_zeros_or_of_low_rank_is_decomposed_directly() -> None:
    A, B = gaussian(4, 300, seed=1), gaussian(300, 4, seed=2)
    for weight in (torch.zeros(300, 300).double(), gaussian(300, 2) @ gaussian(2, 300)):
        found = low_rank_leading_vectors(svd(weight), LowRankUpdate(A, B), 20)
        sigma = torch.linalg.svdvals(weight + B @ A)
        torch.testing.assert_close(found.S, sigma[:20], rtol=1e-6, atol=1e-6)


def test_a_start_that_cannot_converge_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankscope.extensions.spectra.subspace_iteration.MAX_SWEEPS", 1)
    weight = gaussian(300, 300)
    core = to_base_basis(svd(weight), random_update(300, 300, 4, 0.5))
    with pytest.raises(NotConvergedError, match="after 1 sweeps"):
        leading_triples(core, core.start(40), 20, 1e-8)


def test_a_cluster_is_called_ill_conditioned() -> None:
    q = torch.linalg.qr(gaussian(40, 40)).Q
    s = torch.cat([torch.tensor([2.0, 1.5, 1.0, 1.0 + 1e-9]), torch.linspace(0.5, 0.1, 36)])
    weight = (q * s.double()) @ torch.linalg.qr(gaussian(40, 40, seed=1)).Q
    base = svd(weight)
    nothing = dense_leading_vectors(base, weight, 4)
    assert nothing.ill_conditioned == 2  # the third and the fourth, by each other
    assert dense_leading_vectors(base, weight, 2).ill_conditioned == 0
    # The k-th value and the next are one cluster: the last vector is not determined.
    assert dense_leading_vectors(base, weight, 3).ill_conditioned == 1


@pytest.mark.parametrize("shape", [(400, 300), (300, 400), (300, 300)])
def test_an_iteration_on_a_dense_matrix_equals_the_full_decomposition(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    """With a new direction that none of the base's leading vectors touches."""
    weight = base_weight(shape, 0.3)
    base = svd(weight)
    after = weight + 0.05 * gaussian(*shape, seed=8)
    after += 60 * torch.outer(base.U[:, 249], base.V[:, 279])
    full = svd(after)
    monkeypatch.setattr(leading_vectors, "DENSE_ITERATE_IF", (256, 10))

    def refused(_: Tensor) -> SVD:
        raise AssertionError("fell back to the direct route")

    monkeypatch.setattr(leading_vectors, "svd", refused)
    found = dense_leading_vectors(base, after, 20)
    torch.testing.assert_close(found.S, full.S[:20], rtol=1e-6, atol=0)
    expected = (base.U.mT @ full.U[:, :20]).abs()
    torch.testing.assert_close(found.U.abs(), expected, atol=1e-4, rtol=0)
    assert float(found.U[249, 0].abs()) > 0.9


def test_rounded_vectors_keep_what_is_measured_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 bits: singular values to 1e-5, the same intruders, similarity to 1e-3."""
    monkeypatch.setattr(svd_cache, "ROUNDED_FROM", 256)
    weight = gaussian(400, 400, seed=3).float() / 20
    A, B = gaussian(8, 400, seed=1).float() / 20, 1.9 * gaussian(400, 8, seed=2).float() / 20
    exact, full = svd(weight), svd(weight + B @ A)
    rounded = SvdCache().of("W", weight)
    assert not torch.equal(rounded.U, exact.U)
    found = low_rank_leading_vectors(rounded, LowRankUpdate(A, B), 100)
    assert float(((found.S - full.S[:100]) / full.S[:100]).abs().max()) < 1e-5
    alike = similarity_from_cosines(found.U[:100], found.V[:100])
    expected = similarity(exact, full, 100)["similarity_max"]
    assert alike["similarity_max"] == pytest.approx(expected, abs=1e-3)
    intruders = intruders_among(found.U[:, :10], found.S[:10], 0.5)
    direct = intruder_dimensions(exact.U, full.U, full.S, 10)
    assert 0 < len(intruders[0]) < 10
    assert intruders[0] == direct[0]
    # Each block of 64 rows has a scale of its own: a vector in one entry leaves the others exact.
    narrow = torch.full((500, 1), 1e-3)
    narrow[70] = 1
    error = from_int16(*to_int16(narrow)) - narrow
    assert 0 < float(error.norm()) < 1.3e-4
    assert float(error[:64].abs().max()) < 1e-7
    assert torch.equal(from_int16(*to_int16(torch.zeros(3, 2))), torch.zeros(3, 2))
