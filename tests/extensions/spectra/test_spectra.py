"""Spectra of LoRA updates against the dense product; constructed matrices with known intruders."""

import math

import pytest
import torch
from scipy.linalg import hadamard
from torch import Tensor, nn

from rankscope.errors import UserError
from rankscope.extensions.spectra import SpectraConfig
from rankscope.extensions.spectra.leading_vectors import low_rank_leading_vectors
from rankscope.extensions.spectra.record import MatrixSpectrum
from rankscope.extensions.spectra.spectra import (
    Intruders,
    adapter_spectrum,
    default_top_k,
    effective_rank,
    full_spectrum,
    intruders_among,
    stable_rank,
)
from rankscope.models.lora import Adapter
from rankscope.models.low_rank_update import LowRankUpdate
from rankscope.models.svd_cache import SVD, SvdCache, svd
from rankscope.report.charts.concentration import effective_number, gini

from .full_decompositions import intruder_dimensions, similarity

NAME = "model.layers.3.self_attn.q_proj"
SHAPES = [(40, 40), (64, 24), (24, 64)]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def adapter(A: Tensor, B: Tensor, scaling: float = 1.0, name: str = NAME) -> Adapter:
    """One module's adapter of rank r: A (r, n), B (m, r)."""
    return Adapter(
        name="a",
        rank=len(A),
        alpha=scaling * len(A),
        scaling=scaling,
        targets=(name,),
        a={name: nn.Parameter(A)},
        b={name: nn.Parameter(B)},
    )


def spectrum(
    weight: Tensor, tuned: Adapter | Tensor, settings: SpectraConfig | None = None
) -> MatrixSpectrum:
    measure = adapter_spectrum if isinstance(tuned, Adapter) else full_spectrum
    return measure(NAME, weight, tuned, settings or SpectraConfig(), SvdCache())  # type: ignore[operator]


def test_ranks_of_known_spectra() -> None:
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert stable_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([3.0, 0.0, 0.0])) == pytest.approx(1)
    # p = (3/4, 1/4): exp of its entropy is 4 / 3^(3/4); stable rank (9 + 1) / 9.
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(4 / 3**0.75)
    assert stable_rank(torch.tensor([3.0, 1.0])) == pytest.approx(10 / 9)
    assert effective_rank(torch.zeros(3)) == stable_rank(torch.zeros(3)) == 0.0


def test_concentration_of_known_energies() -> None:
    assert effective_number([2.0] * 5) == pytest.approx(5)
    assert effective_number([3.0, 0.0, 0.0]) == pytest.approx(1)
    assert effective_number([3.0, 1.0]) == pytest.approx(4 / 3**0.75)
    assert effective_number([0.0]) == gini([0.0, 0.0]) == 0
    assert gini([1.0, 1.0, 1.0]) == pytest.approx(0)
    assert gini([0.0, 0.0, 7.0, 0.0]) == pytest.approx(3 / 4)
    assert gini([1.0, 3.0]) == pytest.approx(1 / 4)


def test_default_top_k_is_a_quarter_and_at_most_the_papers() -> None:
    assert default_top_k((4096, 4096)) == 500
    assert default_top_k((512, 3584)) == 128
    assert default_top_k((3, 2)) == 1


def test_the_three_similarities_tell_a_permutation_from_a_rotation_from_a_new_space() -> None:
    u, v = torch.linalg.qr(gaussian(20, 20, seed=1)).Q, torch.linalg.qr(gaussian(20, 20, seed=2)).Q
    s = torch.linspace(2, 1, 20)
    base = svd((u * s) @ v.mT)
    swapped = [1, 0, 3, 2, *range(4, 20)]
    permuted = base._replace(U=base.U[:, swapped], V=base.V[:, swapped])
    found = similarity(base, permuted, 4)
    assert found["similarity_index"] == pytest.approx((0, 0), abs=1e-5)
    assert found["similarity_max"] == pytest.approx((1, 1), abs=1e-5)
    assert found["similarity_subspace"] == pytest.approx((1, 1), abs=1e-5)

    turned = base.U.clone()
    c = math.sqrt(0.5)
    turned[:, :2] = base.U[:, :2] @ torch.tensor([[c, -c], [c, c]])
    found = similarity(base, base._replace(U=turned), 2)
    assert found["similarity_index"][0] == pytest.approx(c, abs=1e-5)
    assert found["similarity_max"][0] == pytest.approx(c, abs=1e-5)
    assert found["similarity_subspace"][0] == pytest.approx(1, abs=1e-5)

    found = similarity(base, base._replace(U=base.U.roll(4, dims=1)), 4)
    assert found["similarity_subspace"][0] == pytest.approx(0, abs=1e-5)
    assert found["similarity_subspace"][1] == pytest.approx(1, abs=1e-5)


def test_subspace_similarity_of_unrelated_matrices_is_chance_and_has_a_floor() -> None:
    d, k = 64, 48
    values = [
        similarity(svd(gaussian(d, d, seed=i)), svd(gaussian(d, d, seed=100 + i)), k)[
            "similarity_subspace"
        ][0]
        for i in range(10)
    ]
    assert sum(values) / 10 == pytest.approx(k / d, abs=0.01)
    assert min(values) >= (2 * k - d) / k


@pytest.mark.parametrize("shape", SHAPES)
def test_an_adapters_record_equals_the_dense_analysis(shape: tuple[int, int]) -> None:
    m, n = shape
    base = {NAME: gaussian(m, n)}
    A, B = gaussian(4, n, seed=1), gaussian(m, 4, seed=2)
    tuned = {NAME: base[NAME] + 0.5 * B @ A}
    config = SpectraConfig()
    small = spectrum(base[NAME], adapter(A, B, 0.5), config)
    dense = spectrum(base[NAME], tuned[NAME])
    assert (small.layer, small.module, small.shape) == (3, "q_proj", shape)
    assert small.top_k == min(shape) // 4
    assert len(small.singular_values) == 4
    assert small.singular_values == pytest.approx(dense.singular_values[:4], rel=1e-5)
    assert small.frobenius == pytest.approx(dense.frobenius, rel=1e-6)
    assert small.relative == pytest.approx(dense.frobenius / float(base[NAME].norm()), rel=1e-5)
    assert small.stable_rank == pytest.approx(dense.stable_rank, rel=1e-5)
    assert small.similarity_subspace == pytest.approx(dense.similarity_subspace, abs=1e-4)
    assert small.similarity_max == pytest.approx(dense.similarity_max, abs=1e-3)
    assert (small.intruders, small.intruder_energy) == pytest.approx(
        (dense.intruders, dense.intruder_energy), abs=1e-4
    )


def test_a_magnitude_changes_the_length_of_every_row() -> None:
    """DoRA: each row of W0 + s B A, made as long as its entry of m."""
    base = {NAME: gaussian(24, 16)}
    tuned = adapter(gaussian(4, 16, seed=1), gaussian(24, 4, seed=2), 0.5)
    m = torch.linspace(0.5, 4, 24)
    tuned.method, tuned.magnitude[NAME] = "dora", nn.Parameter(m)
    directed = base[NAME] + 0.5 * tuned.b[NAME].detach() @ tuned.a[NAME].detach()
    dense = {NAME: m[:, None] * directed / directed.norm(dim=1, keepdim=True)}
    found = spectrum(base[NAME], tuned, SpectraConfig())
    expected = spectrum(base[NAME], dense[NAME])
    assert found.frobenius == pytest.approx(expected.frobenius, rel=1e-5)
    assert found.singular_values == pytest.approx(expected.singular_values, rel=1e-4)
    assert found.similarity_max == pytest.approx(expected.similarity_max, abs=1e-3)
    assert len(found.singular_values) == 16  # of full rank, unlike s B A


def test_the_part_of_the_base_that_pissa_starts_from_is_no_change() -> None:
    base = {NAME: gaussian(24, 16)}
    trained = adapter(gaussian(4, 16, seed=1), gaussian(24, 4, seed=2), 0.5)
    start = (gaussian(4, 16, seed=3), gaussian(24, 4, seed=4))
    trained.initial_factors[NAME] = start
    moved = trained.b[NAME].detach() @ trained.a[NAME].detach() - start[1] @ start[0]
    found = spectrum(base[NAME], trained, SpectraConfig())
    assert found.frobenius == pytest.approx(float(0.5 * moved.norm()), rel=1e-5)
    # Rank 8: B A and B0 A0 together.
    assert sum(sigma > 1e-4 * found.singular_values[0] for sigma in found.singular_values) == 8
    trained.a[NAME].data.copy_(start[0])
    trained.b[NAME].data.copy_(start[1])
    fresh = spectrum(base[NAME], trained, SpectraConfig())
    assert fresh.frobenius == 0


def test_an_untrained_adapter_changed_nothing() -> None:
    m = spectrum(gaussian(24, 16), adapter(gaussian(8, 16), torch.zeros(24, 8), 2.0))
    assert (m.frobenius, m.relative, m.effective_rank, m.stable_rank) == (0, 0, 0, 0)
    assert set(m.singular_values) == {0.0}
    assert (m.intruders, m.intruder_energy) == (0, 0)
    assert m.similarity_index == pytest.approx((1, 1), abs=1e-5)


def test_half_precision_weights_are_analyzed_in_single() -> None:
    base = {NAME: gaussian(24, 16).bfloat16()}
    A, B = gaussian(2, 16, seed=1), gaussian(24, 2, seed=2)
    small = adapter(A, B, 1e-3)
    low = spectrum(base[NAME], small, SpectraConfig())
    double = {NAME: base[NAME].double()}
    high = spectrum(double[NAME], small)
    # In bfloat16 an update a thousandth of the weights would be rounded away.
    assert low.similarity_index == pytest.approx(high.similarity_index, abs=1e-4)
    assert 0 < low.relative < 0.01


def test_a_checkpoint_of_another_model_is_refused() -> None:
    with pytest.raises(UserError, match=r"expected .*the same architecture"):
        spectrum(gaussian(24, 16), gaussian(24, 8))


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
        orthogonal(SIZE, 1), torch.linspace(1, 0.1, SIZE, dtype=torch.float64), orthogonal(SIZE, 2)
    )


def product(parts: SVD) -> Tensor:
    return (parts.U * parts.S) @ parts.V.mT


def by_both_routes(base: SVD, *factors: tuple[float, Tensor, Tensor]) -> list[Intruders]:
    """Of dW = sum of value u v^T: by a full decomposition, and from the base's as an adapter."""
    values = torch.tensor([value for value, _, _ in factors], dtype=torch.float64)
    B = torch.stack([u for _, u, _ in factors], dim=1) * values
    A = torch.stack([v for _, _, v in factors])
    after = svd((product(base) + B @ A).float())  # float32, as users' weights are
    slow = intruder_dimensions(base.U.float(), after.U, after.S)
    leading = low_rank_leading_vectors(base, LowRankUpdate(A, B), 10)
    return [slow, intruders_among(leading.U, leading.S, 0.5)]


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
