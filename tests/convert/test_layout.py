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


def test_a_pattern_that_is_no_matrix():
    with pytest.raises(ValueError, match=r"'a b c -> c b a' moves more than one block"):
        layout.disk_rows(np.zeros((2, 3, 4), np.uint16), "a b c -> c b a", dict(a=4, b=3, c=2))
