"""The cache of base decompositions: what it stores, and what it survives."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rankscope.models import svd_cache
from rankscope.models.svd_cache import SVD, SvdCache, evict_least_recent, read_svd, svd, svd_path


def cache_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors") if path.exists())


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_decompositions_are_computed_once_and_bounded() -> None:
    a, b = gaussian(16, 8, seed=1).float(), gaussian(16, 8, seed=2).float()
    cache = SvdCache()
    first = cache.of("a", a)
    assert cache.of("a", a) is first
    one = cache.num_bytes
    assert one == 4 * (16 * 8 + 8 + 8 * 8)
    tight, none = SvdCache(max_bytes=one), SvdCache(max_bytes=0)
    for cache, held in ((tight, one), (none, 0)):
        kept = cache.of("a", a)
        cache.of("b", b)
        assert cache.num_bytes == held
        assert (cache.of("a", a) is kept) == bool(held)
        torch.testing.assert_close(cache.of("a", a).S, first.S)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("large", [False, True])
def test_what_the_disk_keeps_is_what_memory_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool, dtype: torch.dtype
) -> None:
    """The second reader computes nothing, and nothing depends on whether a file was there."""
    if large:
        monkeypatch.setattr(svd_cache, "ROUNDED_FROM", 256)
    weight = gaussian(300, 260, seed=3).to(dtype)
    first = SvdCache(folder=tmp_path).of("a", weight)
    files = list(tmp_path.iterdir())
    assert len(files) == 1
    bytes_each, blocks = (2, 5 + 5) if large else (4, 0)
    expected = bytes_each * 260 * (300 + 260) + 4 * 260 * (1 + blocks)
    assert expected <= cache_bytes(tmp_path) <= expected + 500
    alone = SvdCache().of("a", weight)

    def refused(_: Tensor) -> SVD:
        raise AssertionError("computed what the disk has")

    with monkeypatch.context() as patched:
        patched.setattr(svd_cache, "svd", refused)
        second = SvdCache(folder=tmp_path).of("b", weight)
    for one, other, third in zip(first, second, alone, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, third)
    error = (first.U - svd(weight).U.float()).norm(dim=0).max()
    assert float(error) < (5e-5 if large else 1e-6)
    # Another matrix is not taken for this one, and neither is a damaged file.
    other_weight = weight.clone()
    other_weight[0, 0] += 1e-3
    assert read_svd(svd_path(tmp_path, other_weight), other_weight) is None
    files[0].write_bytes(b"junk")
    again = SvdCache(folder=tmp_path).of("a", weight)
    torch.testing.assert_close(again.S, first.S)
    assert read_svd(files[0], weight) is not None


def test_a_file_with_one_flipped_bit_or_of_another_matrix_is_not_used(tmp_path: Path) -> None:
    """A component of one vector, off by up to its whole size, shows in no product of the whole."""
    weight = gaussian(300, 260, seed=3).float()
    SvdCache(folder=tmp_path).of("a", weight)
    path = svd_path(tmp_path, weight)
    content = path.read_bytes()
    for place in (0.02, 0.3, 0.5, 0.999):
        spoiled = bytearray(content)
        spoiled[round(place * (len(content) - 1))] ^= 1
        path.write_bytes(spoiled)
        assert read_svd(path, weight) is None
    path.write_bytes(content)
    path = path.rename(svd_path(tmp_path, 2 * weight))
    assert read_svd(path, 2 * weight) is None


def test_the_cache_keeps_within_its_bound(tmp_path: Path) -> None:
    paths = []
    for i in range(4):
        paths.append(tmp_path / f"{i}.safetensors")
        paths[-1].write_bytes(bytes(100))
        os.utime(paths[-1], (i, i))
    os.utime(paths[0], (9, 9))  # used lately
    evict_least_recent(tmp_path, max_bytes=250)
    assert {p.name for p in tmp_path.iterdir()} == {"0.safetensors", "3.safetensors"}
    assert cache_bytes(tmp_path) == 200


def test_a_cache_of_another_user_is_read_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its times nor its files can be changed, and one of them not even be looked at."""
    weight = gaussian(260, 260, seed=3).float()
    first = SvdCache(folder=tmp_path).of("a", weight)
    (tmp_path / "broken.safetensors").symlink_to(tmp_path / "gone")

    def refused(*_: object, **__: object) -> None:
        raise PermissionError("not yours")

    with monkeypatch.context() as patched:
        patched.setattr(svd_cache.os, "utime", refused)
        patched.setattr(Path, "unlink", refused)
        again = SvdCache(folder=tmp_path).of("a", weight)
        evict_least_recent(tmp_path, max_bytes=0)
    assert torch.equal(again.U, first.U)
    assert cache_bytes(tmp_path) == svd_path(tmp_path, weight).stat().st_size
    (tmp_path / "file").write_text("not a folder", "utf-8")
    found = SvdCache(folder=tmp_path / "file").of("a", weight)
    assert torch.equal(found.U, first.U)
