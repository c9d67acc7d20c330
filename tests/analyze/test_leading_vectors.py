"""The fast route to a tuned matrix's leading vectors, against its full decomposition."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rankscope.analyze import leading_vectors as tuned
from rankscope.analyze import svd_cache as decomposition
from rankscope.analyze.gram import Step
from rankscope.analyze.intruders import intruder_dimensions, intruders_among
from rankscope.analyze.leading_vectors import Leading, of_adapter, of_matrix
from rankscope.analyze.low_rank_basis import low_rank_basis
from rankscope.analyze.spectra import similarity, similarity_of
from rankscope.analyze.subspace_iteration import NotConvergedError, leading_triples
from rankscope.analyze.svd_cache import (
    SVD,
    SvdCache,
    cache_bytes,
    make_room,
    packed,
    read_stored,
    stored_path,
    svd,
    unpacked,
)

SHAPES = [(400, 400), (500, 300), (300, 500), (310, 300)]
K = 24


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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
        patched.setattr(tuned.Core, "dense", refused)
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
    found = of_adapter(base, A, B, scaling, K)
    torch.testing.assert_close(found.S, full.S[:K], rtol=1e-7, atol=1e-7 * float(full.S[0]))
    assert found.residual <= 1e-8
    expected = similarity(base, full, K)
    alike = similarity_of(found.left[:K], found.right[:K], shape)
    for name in ("index", "max", "subspace"):
        assert getattr(alike, name) == pytest.approx(getattr(expected, name), abs=1e-4)
    direct = intruder_dimensions(base.U, full.U, full.S, 10)
    intruders = intruders_among(found.left[:, :10], found.S[:10], 0.5)
    assert intruders.positions == direct.positions
    assert intruders.max_cosine == pytest.approx(direct.max_cosine, abs=1e-5)
    assert intruders.energy == pytest.approx(direct.energy, abs=1e-6)


@pytest.mark.usefixtures("iterates_only")
@pytest.mark.parametrize("shape", [(300, 300), (400, 300), (300, 400)])
def test_a_new_direction_without_a_share_in_the_leading_vectors_is_found(
    shape: tuple[int, int],
) -> None:
    """dW = 50 u_250 v_280^T: orthogonal to all that an iteration from e_1.. would begin with."""
    base = svd(base_weight(shape, 0.5))
    A, B = base.V[:, 279:280].mT, base.U[:, 249:250]
    found = of_adapter(base, A, B, 50.0, 10)
    assert float(found.S[0]) == pytest.approx(50, rel=1e-3)
    assert float(found.left[249, 0].abs()) == pytest.approx(1, abs=1e-3)
    assert float(found.right[279, 0].abs()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("shape", [(40, 40), (60, 40), (40, 60)])
@pytest.mark.parametrize("rank", [1, 5, 30])
def test_the_core_is_the_tuned_matrix_in_the_bases_basis(shape: tuple[int, int], rank: int) -> None:
    m, n = shape
    weight = gaussian(m, n)
    A, B = gaussian(rank, n, seed=1), gaussian(m, rank, seed=2)
    core = low_rank_basis(svd(weight), A, B, 0.3)
    dense = core.dense()
    sigma = torch.linalg.svdvals(weight + 0.3 * B @ A)
    torch.testing.assert_close(torch.linalg.svdvals(dense), sigma)
    x, y = gaussian(dense.shape[1], 4, seed=4), gaussian(dense.shape[0], 4, seed=5)
    torch.testing.assert_close(core.apply(x), dense @ x)
    torch.testing.assert_close(core.adjoint(y), dense.mT @ y)
    # Inertia: an exact count, at any value between two singular values.
    for i in range(len(sigma) - 1):
        assert core.count_above(float(sigma[i] + sigma[i + 1]) / 2) == i + 1
    assert core.count_above(2 * float(sigma[0])) == 0


@pytest.mark.parametrize("shape", [(40, 40), (60, 40), (40, 60)])
@pytest.mark.parametrize("num_far", [0, 3])
def test_a_step_of_the_filter_is_what_the_dense_matrix_gives(
    shape: tuple[int, int], num_far: int
) -> None:
    """a (K^T K - sum of values v v^T - c) x - b y, of a core and of a dense matrix."""
    m, n = shape
    core = low_rank_basis(svd(gaussian(m, n)), gaussian(5, n, seed=1), gaussian(m, 5, seed=2), 0.3)
    dense = core.dense()
    square = dense.mT @ dense
    far = torch.linalg.qr(gaussian(len(square), num_far, seed=6)).Q
    values = torch.arange(1, num_far + 1, dtype=torch.float64)
    x, y = gaussian(len(square), 4, seed=4), gaussian(len(square), 4, seed=5)
    expected = 0.7 * (square - (far * values) @ far.mT - 1.3 * torch.eye(len(square)).double()) @ x
    for gram in (core.gram(), tuned.DenseMatrix(dense).gram()):
        deflated = gram.without(far, values) if num_far else gram
        torch.testing.assert_close(deflated.step(x, y, Step(0.7, 1.3)), expected)
        torch.testing.assert_close(deflated.step(x, y, Step(0.7, 1.3, 0.4)), expected - 0.4 * y)
    torch.testing.assert_close(x, gaussian(len(square), 4, seed=4))  # nothing in place


@pytest.mark.parametrize(("count", "rank"), [(10, 4), (38, 4), (40, 4), (60, 4), (10, 60)])
def test_an_iteration_begins_with_the_bases_vectors_and_the_new_directions(
    count: int, rank: int
) -> None:
    core = low_rank_basis(
        svd(gaussian(40, 40)), gaussian(rank, 40, seed=1), gaussian(40, rank), 0.3
    )
    start = core.start(count)
    width = start.shape[1]
    assert width == min(40, count + rank)
    torch.testing.assert_close(start.mT @ start, torch.eye(width, dtype=torch.float64))
    wanted = torch.cat([torch.eye(40, min(count, 40), dtype=torch.float64), core.Q], dim=1)
    if width == count + rank:
        torch.testing.assert_close(start @ (start.mT @ wanted), wanted)


def test_what_the_iteration_missed_is_noticed_and_computed_directly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Begun without the update's directions, it may converge to other vectors: the count tells."""
    weight = base_weight((300, 300), 0.5)
    base = svd(weight)
    A, B = base.V[:, 279:280].mT, base.U[:, 249:250]

    def blind(core: tuned.Core, count: int) -> Tensor:
        return torch.eye(len(core.S), count, dtype=core.Q.dtype)

    monkeypatch.setattr(tuned.Core, "start", blind)
    core = low_rank_basis(base, A, B, 50.0)
    passed_over = leading_triples(core, blind(core, 30), 10, 1e-8)
    assert float(passed_over.S[0]) < 49
    assert core.count_above(float(passed_over.S[9] + passed_over.next_value) / 2) == 11
    found = of_adapter(base, A, B, 50.0, 10)
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

    def blind(core: tuned.Core, count: int) -> Tensor:
        return torch.eye(len(core.S), count, dtype=core.Q.dtype)

    seen = of_adapter(base, A, B, 50.0, 11)
    assert 0 < seen.residual <= 1e-8  # iterated, and the count agrees
    monkeypatch.setattr(tuned.Core, "start", blind)
    core = low_rank_basis(base, A, B, 50.0)
    passed_over = leading_triples(core, blind(core, 30), 10, 1e-8)
    assert tuned.certified(passed_over)[0] == 8
    found = of_adapter(base, A, B, 50.0, 10)
    assert float(found.S[0]) == pytest.approx(50, rel=1e-2)
    assert found.residual == 0  # the direct route


def test_a_base_of_zeros_or_of_low_rank_is_decomposed_directly() -> None:
    A, B = gaussian(4, 300, seed=1), gaussian(300, 4, seed=2)
    for weight in (torch.zeros(300, 300).double(), gaussian(300, 2) @ gaussian(2, 300)):
        found = of_adapter(svd(weight), A, B, 1.0, 20)
        sigma = torch.linalg.svdvals(weight + B @ A)
        torch.testing.assert_close(found.S, sigma[:20], rtol=1e-6, atol=1e-6)


def test_a_start_that_cannot_converge_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankscope.analyze.subspace_iteration.MAX_SWEEPS", 1)
    weight = gaussian(300, 300)
    core = low_rank_basis(svd(weight), gaussian(4, 300, seed=1), gaussian(300, 4, seed=2), 0.5)
    with pytest.raises(NotConvergedError, match="after 1 sweeps"):
        leading_triples(core, core.start(40), 20, 1e-8)


def test_a_cluster_is_called_ill_conditioned() -> None:
    q = torch.linalg.qr(gaussian(40, 40)).Q
    s = torch.cat([torch.tensor([2.0, 1.5, 1.0, 1.0 + 1e-9]), torch.linspace(0.5, 0.1, 36)])
    weight = (q * s.double()) @ torch.linalg.qr(gaussian(40, 40, seed=1)).Q
    base = svd(weight)
    nothing: Leading = of_matrix(base, weight, 4)
    assert nothing.ill_conditioned == 2  # the third and the fourth, by each other
    assert of_matrix(base, weight, 2).ill_conditioned == 0
    # The k-th value and the next are one cluster: the last vector is not determined.
    assert of_matrix(base, weight, 3).ill_conditioned == 1


def test_a_zero_update_is_the_base_itself() -> None:
    base = svd(gaussian(300, 300))
    found = of_adapter(base, torch.zeros(4, 300), torch.zeros(300, 4), 1.0, 10)
    torch.testing.assert_close(found.S, base.S[:10])
    eye = torch.eye(300, 10, dtype=torch.float64)
    torch.testing.assert_close(found.left.abs(), eye, atol=1e-7, rtol=0)


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
    monkeypatch.setattr(tuned, "ITERATED_FROM", 256)
    monkeypatch.setattr(tuned, "ITERATED_SHARE", 10)

    def refused(_: Tensor) -> SVD:
        raise AssertionError("fell back to the direct route")

    monkeypatch.setattr(tuned, "svd", refused)
    found = of_matrix(base, after, 20)
    torch.testing.assert_close(found.S, full.S[:20], rtol=1e-6, atol=0)
    expected = (base.U.mT @ full.U[:, :20]).abs()
    torch.testing.assert_close(found.left.abs(), expected, atol=1e-4, rtol=0)
    assert float(found.left[249, 0].abs()) > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("large", [False, True])
def test_what_the_disk_keeps_is_what_memory_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool, dtype: torch.dtype
) -> None:
    """The second reader computes nothing, and nothing depends on whether a file was there."""
    if large:
        monkeypatch.setattr(decomposition, "ROUNDED_FROM", 256)
    weight = base_weight((300, 260), 0.5).to(dtype)
    first = SvdCache(folder=tmp_path).of("a", weight)
    files = list(tmp_path.iterdir())
    assert len(files) == 1
    bytes_each, blocks = (2, 5 + 5) if large else (4, 0)
    expected = bytes_each * 260 * (300 + 260) + 4 * 260 * (1 + blocks)
    assert expected <= cache_bytes(tmp_path) <= expected + 400
    alone = SvdCache().of("a", weight)

    def refused(_: Tensor) -> SVD:
        raise AssertionError("computed what the disk has")

    with monkeypatch.context() as patched:
        patched.setattr(decomposition, "svd", refused)
        second = SvdCache(folder=tmp_path).of("b", weight)
    for one, other, third in zip(first, second, alone, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, third)
    error = (first.U - svd(weight).U.float()).norm(dim=0).max()
    assert float(error) < (5e-5 if large else 1e-6)
    # Another matrix is not taken for this one, and neither is a damaged file.
    other_weight = weight.clone()
    other_weight[0, 0] += 1e-3
    assert read_stored(stored_path(tmp_path, other_weight), other_weight) is None
    content = bytearray(files[0].read_bytes())
    content[600:6000] = b"\x3c" * 5400
    files[0].write_bytes(content)
    assert read_stored(files[0], weight) is None
    files[0].write_bytes(b"junk")
    again = SvdCache(folder=tmp_path).of("a", weight)
    torch.testing.assert_close(again.S, first.S)
    assert read_stored(files[0], weight) is not None


def test_rounded_vectors_keep_what_is_measured_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 bits: singular values to 1e-5, the same intruders, similarity to 1e-3."""
    monkeypatch.setattr(decomposition, "ROUNDED_FROM", 256)
    weight = gaussian(400, 400, seed=3).float() / 20
    A, B = gaussian(8, 400, seed=1).float() / 20, 1.9 * gaussian(400, 8, seed=2).float() / 20
    exact, full = svd(weight), svd(weight + B @ A)
    rounded = SvdCache().of("W", weight)
    assert not torch.equal(rounded.U, exact.U)
    found = of_adapter(rounded, A, B, 1.0, 100)
    assert float(((found.S - full.S[:100]) / full.S[:100]).abs().max()) < 1e-5
    alike = similarity_of(found.left[:100], found.right[:100], (400, 400)).max
    assert alike == pytest.approx(similarity(exact, full, 100).max, abs=1e-3)
    intruders = intruders_among(found.left[:, :10], found.S[:10], 0.5)
    direct = intruder_dimensions(exact.U, full.U, full.S, 10)
    assert 0 < intruders.count < 10
    assert intruders.positions == direct.positions


def test_vectors_in_sixteen_bits() -> None:
    """Spread out or in one entry alone: the error is a share of the vector's length."""
    spread = torch.linalg.qr(gaussian(500, 8)).Q.float()
    assert float((unpacked(*packed(spread)) - spread).norm(dim=0).max()) < 5e-5
    narrow = torch.full((500, 1), 1e-3)
    narrow[70] = 1
    error = unpacked(*packed(narrow)) - narrow
    assert 0 < float(error.norm()) < 1.3e-4
    assert float(error[:64].abs().max()) < 1e-7  # another block, with a scale of its own
    assert torch.equal(unpacked(*packed(torch.zeros(3, 2))), torch.zeros(3, 2))


def test_the_cache_keeps_within_its_bound(tmp_path: Path) -> None:
    paths = []
    for i in range(4):
        paths.append(tmp_path / f"{i}.safetensors")
        paths[-1].write_bytes(bytes(100))
        os.utime(paths[-1], (i, i))
    os.utime(paths[0], (9, 9))  # used lately
    make_room(tmp_path, most=250)
    assert {p.name for p in tmp_path.iterdir()} == {"0.safetensors", "3.safetensors"}
    assert cache_bytes(tmp_path) == 200


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", "utf-8")
    weight = base_weight((260, 260), 0.5).float()
    found = SvdCache(folder=tmp_path / "file").of("a", weight)
    torch.testing.assert_close(found.S, svd(weight).S)


def test_a_cache_of_another_user_is_read_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its times nor its files can be changed, and one of them not even be looked at."""
    weight = base_weight((260, 260), 0.5).float()
    first = SvdCache(folder=tmp_path).of("a", weight)
    (tmp_path / "broken.safetensors").symlink_to(tmp_path / "gone")

    def refused(*_: object, **__: object) -> None:
        raise PermissionError("not yours")

    with monkeypatch.context() as patched:
        patched.setattr(decomposition.os, "utime", refused)
        patched.setattr(Path, "unlink", refused)
        again = SvdCache(folder=tmp_path).of("a", weight)
        make_room(tmp_path, most=0)
    assert torch.equal(again.U, first.U)
    assert cache_bytes(tmp_path) == stored_path(tmp_path, weight).stat().st_size
