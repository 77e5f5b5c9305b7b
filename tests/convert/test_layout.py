"""Rearranging is einops, contiguous, and undone by the pattern read backwards."""

import einops
import ml_dtypes
import numpy as np
import pytest

from convert import layout

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


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_rearrange(pattern, dtype):
    # Larger than a block in both directions, and no multiple of it.
    sizes = dict(n=19, h=17, d=301, v=263, s=3, c=3, t=2, y=7, x=7)
    left, right = pattern.split(" -> ")
    shape = layout.shape(left, sizes)
    array = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    out = layout.rearrange(array, pattern, sizes)
    used = {k: v for k, v in sizes.items() if k in pattern}
    expected = einops.rearrange(array.astype(np.float32), pattern, **used)
    assert out.shape == layout.shape(right, sizes)
    assert out.dtype == dtype
    assert out.flags.c_contiguous
    np.testing.assert_array_equal(out.astype(np.float32), expected)
    back = layout.rearrange(out, f"{right} -> {left}", sizes)
    assert back.tobytes() == array.tobytes()
