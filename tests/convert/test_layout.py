"""Rows of the checkpoint's order are einops, and to_disk undoes what reading does."""

import einops
import ml_dtypes
import numpy as np
import pytest

from convert import layout, table
from convert.table import Tensor

PATTERNS = (
    "d -> d",
    "v d -> v d",
    "v d -> d v",
    "(n h) d -> d n h",
    "d (n h) -> n h d",
    "(s n h) d -> d s n h",
    "(s n h) -> s n h",
    "d c t y x -> (c t y x) d",
)


@pytest.mark.parametrize("strip_bytes", [5000, 4 << 20])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_rows(pattern, dtype, strip_bytes, monkeypatch):
    monkeypatch.setattr(table, "STRIP_BYTES", strip_bytes)
    # Larger than a block in both directions, and no multiple of it.
    sizes = dict(n=19, h=17, d=301, v=263, s=3, c=3, t=2, y=7, x=7)
    left, right = pattern.split(" -> ")
    array = np.random.default_rng(0).standard_normal(layout.shape(left, sizes)).astype(dtype)
    tensor = Tensor("name", "path", pattern, sizes, alias=False)
    ours = np.empty(tensor.shape, dtype)
    rows = tensor.disk_rows(ours)
    layout.copy_rows(rows, layout.bits(array).reshape(rows.shape))
    used = {k: v for k, v in sizes.items() if k in pattern}
    expected = einops.rearrange(array.astype(np.float32), pattern, **used)
    assert ours.shape == layout.shape(right, sizes)
    np.testing.assert_array_equal(ours.astype(np.float32), expected)
    pieces = [piece.tobytes() for piece in tensor.to_disk(ours)]
    assert b"".join(pieces) == array.tobytes()
    if not rows.flags.c_contiguous:
        assert (len(pieces) > 1) == (strip_bytes == 5000)


def test_a_part_is_read_by_runs():
    sizes = dict(d=4, n=2, h=3)
    tensor = Tensor("name", "path", "d (n h) -> n h d", sizes, alias=False)
    array = np.empty((1, 3, 4), np.float32)
    share = tensor.on_disk(array, (slice(1, 2), slice(0, 3), slice(0, 4)))
    assert (share.starts.tolist(), share.length) == ([3, 9, 15, 21], 3)
    share = tensor.on_disk(np.empty((2, 3, 2)), (slice(0, 2), slice(0, 3), slice(2, 4)))
    assert (share.starts.tolist(), share.length) == ([12], 12)
    assert share.rows.shape == (2, 6)


def test_a_part_that_cannot_be_read_alone_is_read_with_more():
    part = lambda *bounds: tuple(slice(*one) for one in bounds)
    sizes = dict(d=8, f=4096, c=3, x=2)
    down = Tensor("name", "path", "d f -> d f", sizes, alias=False)
    half = part((0, 8), (0, 2048))
    assert down.readable(half, 2) == half, "gaps of a page are left out"
    assert down.readable(part((0, 8), (0, 2049)), 2) == part((0, 8), (0, 4096))
    assert down.readable(part((2, 4), (0, 2049)), 2) == part((2, 4), (0, 4096))
    mixed = Tensor("name", "path", "d c x -> d (c x)", sizes, alias=False)
    assert mixed.readable(part((0, 4), (0, 6)), 2) == part((0, 4), (0, 6))
    assert mixed.readable(part((0, 4), (0, 3)), 2) == part((0, 8), (0, 6))
    with pytest.raises(ValueError, match="cannot be read by itself"):
        mixed.on_disk(np.empty((4, 3)), part((0, 4), (0, 3)))
    expert = Tensor("name", "path", "d f -> d f", sizes, alias=False, expert=1)
    assert expert.readable(part((1, 2), (0, 8), (9, 4096)), 2) == part((1, 2), (0, 8), (0, 4096))
    assert expert.on_disk(np.empty((1, 8, 4096)), part((0, 1), (0, 8), (0, 4096))) is None


def test_a_pattern_that_is_no_matrix():
    with pytest.raises(ValueError, match=r"'a b c -> c b a' moves more than one block"):
        layout.disk_rows(np.zeros((2, 3, 4), np.uint16), "a b c -> c b a", dict(a=4, b=3, c=2))
