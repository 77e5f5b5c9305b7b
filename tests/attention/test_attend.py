"""The blockwise form against the dense oracle, over shapes, segments, padding and packing."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.attention.dense import dense_attention
from vlm_jax.attention import NEVER, Segment, Visibility, attend, merge
from vlm_jax.attention.blockwise import segment_attention

BARS = {"float64": 1e-12, "float32": 2e-6}


@st.composite
def problems(draw):
    """Sizes of one attention problem, small and odd."""
    kv_heads = draw(st.integers(1, 3))
    return dict(
        batch=draw(st.integers(1, 3)),
        queries=draw(st.integers(1, 19)),
        keys=draw(st.lists(st.integers(1, 17), min_size=1, max_size=3)),
        kv_heads=kv_heads,
        heads=kv_heads * draw(st.integers(1, 3)),
        dim=draw(st.sampled_from([2, 5, 8])),
        ordered=draw(st.booleans()),
        grouped=draw(st.booleans()),
        block=draw(st.integers(4, 20)),
        seed=draw(st.integers(0, 1000)),
    )


def build(problem, dtype):
    """Random queries and segments (NumPy) with random orders, padding and groups."""
    rng = np.random.default_rng(problem["seed"])
    batch, kv_heads, dim = problem["batch"], problem["kv_heads"], problem["dim"]
    normal = lambda *shape: rng.normal(size=shape).astype(dtype)
    ints = lambda low, high, length: rng.integers(low, high, (batch, length), dtype=np.int32)

    def visibility(length, is_keys):
        order = group = None
        if problem["ordered"]:
            order = ints(0, 10, length)
            if is_keys:
                order = np.where(ints(0, 4, length) == 0, np.int32(NEVER), order)
        if problem["grouped"]:
            group = ints(-1, 2, length)
        return Visibility(order, group)

    queries = normal(batch, problem["queries"], problem["heads"], dim)
    segments = [
        Segment(
            normal(batch, kv_heads, length, dim),
            normal(batch, kv_heads, length, dim),
            visibility(length, True),
        )
        for length in problem["keys"]
    ]
    return queries, segments, visibility(problem["queries"], False)


def seen_by_numpy(segments, seen, shape):
    """Bool [B, T, S]: the two rules of visibility, spelled out."""
    mask = np.ones(shape, bool)
    start = 0
    for segment in segments:
        here = mask[:, :, start : start + segment.length]
        if seen.order is not None:
            here &= segment.keys.order[:, None] <= seen.order[:, :, None]
        if seen.group is not None:
            here &= segment.keys.group[:, None] == seen.group[:, :, None]
        start += segment.length
    return mask


def oracle(queries, segments, seen):
    """Attention in NumPy float64: output, log-sum-exp, and [B, T, 1] whether a query sees a key."""
    batch, length, heads, dim = queries.shape
    keys, values = (
        np.concatenate(parts, axis=2).astype(np.float64)
        for parts in ([s.k_bksh for s in segments], [s.v_bksh for s in segments])
    )
    group = heads // keys.shape[1]
    keys, values = keys.repeat(group, axis=1), values.repeat(group, axis=1)
    mask = seen_by_numpy(segments, seen, (batch, length, keys.shape[2]))
    logits = np.einsum("btnh,bnsh->btns", queries.astype(np.float64), keys) / np.sqrt(dim)
    top = np.where(mask[:, :, None], logits, -np.inf).max(-1, keepdims=True)
    weights = np.where(mask[:, :, None], np.exp(logits - top), 0)
    total = weights.sum(-1)
    with np.errstate(all="ignore"):
        out = np.einsum("btns,bnsh->btnh", weights, values) / total[..., None]
        lse = np.log(total) + top[..., 0]
    return out, lse, mask.any(-1)[..., None]


def read_by_segments(queries, segments, seen, block, scale=None):
    """The blockwise form with a block size of the test's choice."""
    reads = [segment_attention(queries, s, seen, block=block, scale=scale) for s in segments]
    return merge([read.out_btnh for read in reads], [read.lse_btn for read in reads])


@functools.partial(jax.jit, static_argnums=3)
def both(queries, segments, seen, block):
    """Outputs and log-sum-exps of the blockwise and of the dense form."""
    return read_by_segments(queries, segments, seen, block), dense_attention(
        queries, segments, seen
    )


def check(found, expected, valid, bar):
    """Compares where a query sees something."""
    assert np.isfinite(found).all()
    np.testing.assert_allclose(
        np.where(valid, found, 0), np.where(valid, expected, 0), atol=bar, rtol=0
    )


@pytest.mark.parametrize("dtype", BARS)
@settings(max_examples=6, deadline=None)
@given(problem=problems())
def test_both_forms_equal_the_definition(dtype, problem):
    queries, segments, seen = build(problem, dtype)
    expected, expected_lse, valid = oracle(queries, segments, seen)
    with jax.enable_x64(dtype == "float64"):
        for out, lse in jax.device_get(both(queries, segments, seen, problem["block"])):
            assert out.dtype == lse.dtype == dtype
            check(out, expected, valid[..., None], BARS[dtype])
            check(lse, expected_lse, valid, 2 * BARS[dtype])


@pytest.mark.parametrize("keys", [[1], [37], [29, 8]])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_decode_row_equals_the_definition(keys, grouped, problem):
    queries, segments, seen = build(
        problem | dict(keys=keys, queries=1, grouped=grouped), "float32"
    )
    expected, _, valid = oracle(queries, segments, seen)
    check(jax.jit(attend)(queries, segments, seen), expected, valid[..., None], BARS["float32"])


@pytest.fixture
def problem():
    """Grouped queries over two segments, with order and padding, longer than several blocks."""
    return dict(
        batch=2, queries=37, keys=[29, 8], kv_heads=2, heads=6, dim=8, ordered=True,
        grouped=False, seed=5,
    )  # fmt: skip


def cut(segment, start, stop):
    """A segment's keys from `start` to `stop`, in NumPy."""
    return Segment(
        segment.k_bksh[:, :, start:stop],
        segment.v_bksh[:, :, start:stop],
        Visibility(segment.keys.order[:, start:stop]),
    )


@pytest.mark.parametrize("cuts", [[10], [1, 2, 36]])
def test_merge_is_exact_however_the_keys_are_split(problem, cuts):
    queries, (segment,), seen = build(problem | dict(keys=[37]), "float64")
    whole, whole_lse, valid = oracle(queries, [segment], seen)
    edges = [0, *cuts, 37]
    parts = [cut(segment, a, b) for a, b in itertools.pairwise(edges)]
    with jax.enable_x64(True):
        (out, lse), _ = jax.device_get(both(queries, parts, seen, 512))
    check(out, whole, valid[..., None], BARS["float64"])
    check(lse, whole_lse, valid, BARS["float64"])


def whole_map(queries, segments, seen):
    return dense_attention(queries, segments, seen)[0]


@pytest.mark.parametrize("read", [attend, whole_map])
def test_a_fully_masked_segment_weighs_nothing(problem, read):
    queries, segments, _ = build(problem, "float32")
    seen = Visibility(order=np.full((2, 37), 20, np.int32))
    hidden = Segment(
        1e3 * segments[1].k_bksh,
        np.full_like(segments[1].v_bksh, 1e6),
        Visibility(order=np.full((2, 8), NEVER, np.int32)),
    )
    read = jax.jit(read)
    expected, _, _ = oracle(queries, segments, seen)
    for order in ([*segments, hidden], [hidden, *segments]):
        check(read(queries, order, seen), expected, True, BARS["float32"])


@pytest.mark.parametrize("read", [attend, whole_map])
def test_a_query_that_sees_nothing_stays_finite(problem, read):
    queries, segments, _ = build(problem, "float32")
    nothing = Visibility(order=np.full((2, 37), -1, np.int32))
    assert np.isfinite(jax.jit(read)(queries, segments, nothing)).all()


@pytest.mark.parametrize("block", [16, 37])
def test_skipping_tiles_above_the_diagonal_changes_nothing(block, problem):
    queries, (segment,), _ = build(problem | dict(keys=[37]), "float32")
    places = np.broadcast_to(np.arange(37, dtype=np.int32), (2, 37))
    order = np.where(places >= np.array([[37], [30]]), np.int32(NEVER), places)
    keys = Segment(segment.k_bksh, segment.v_bksh, Visibility(order=order))
    seen = Visibility(order=places)
    read = jax.jit(segment_attention, static_argnames=("causal", "block"))
    skipped = read(queries, keys, seen, causal=True, block=block).out_btnh
    full = read(queries, keys, seen, causal=False, block=block).out_btnh
    check(skipped, full, True, 1e-6)
    check(skipped, oracle(queries, [keys], seen)[0], True, BARS["float32"])


def test_packed_groups_read_as_if_alone(problem):
    queries, (segment,), _ = build(problem | dict(ordered=False, keys=[37]), "float32")
    seen = Visibility(group=np.where(np.arange(37) < 20, 0, -1)[None].astype(np.int32).repeat(2, 0))
    packed = jax.jit(attend)(queries, [Segment(segment.k_bksh, segment.v_bksh, seen)], seen)
    for places in (slice(0, 20), slice(20, 37)):
        alone = [Segment(segment.k_bksh[:, :, places], segment.v_bksh[:, :, places])]
        expected, _, _ = oracle(queries[:, places], alone, Visibility())
        check(packed[:, places], expected, True, BARS["float32"])


def test_a_slice_and_a_write_touch_only_their_places(problem):
    _, (segment, _), _ = build(problem, "float32")
    segment = jax.tree.map(jnp.asarray, segment)
    new = jnp.ones((2, 2, 3, 8))
    written = segment.write(new, 2 * new, jnp.int32(5))
    np.testing.assert_array_equal(written.k_bksh[:, :, 5:8], new)
    np.testing.assert_array_equal(written.v_bksh[:, :, 5:8], 2 * new)
    kept = np.r_[0:5, 8:29]
    np.testing.assert_array_equal(written.k_bksh[:, :, kept], segment.k_bksh[:, :, kept])
    part = segment.slice(jnp.int32(4), 6)
    np.testing.assert_array_equal(part.v_bksh, segment.v_bksh[:, :, 4:10])
    np.testing.assert_array_equal(part.keys.order, segment.keys.order[:, 4:10])


def test_gradients_are_finite_and_equal(problem):
    queries, segments, _ = build(problem, "float32")
    # Some queries see nothing, some keys are never seen: the places where a NaN would be born.
    order = np.arange(-2, 35, dtype=np.int32)
    seen = Visibility(order=np.broadcast_to(order, (2, 37)))
    valid = seen_by_numpy(segments, seen, (2, 37, 37)).any(-1)[..., None, None]
    target = np.sin(np.arange(queries.size, dtype=np.float32)).reshape(queries.shape)

    def loss(arrays, read):
        q, kv = arrays
        parts = [Segment(k, v, s.keys) for (k, v), s in zip(kv, segments)]
        return jnp.sum(jnp.where(valid, read(q, parts) * target, 0))

    arrays = queries, [(s.k_bksh, s.v_bksh) for s in segments]
    seen = jax.tree.map(jnp.asarray, seen)
    segments = [Segment(s.k_bksh, s.v_bksh, jax.tree.map(jnp.asarray, s.keys)) for s in segments]
    tiled = lambda q, parts: read_by_segments(q, parts, seen, 16, 0.3)[0]
    dense = lambda q, parts: dense_attention(q, parts, seen, 0.3)[0]
    found, expected = (
        jax.device_get(jax.jit(jax.grad(functools.partial(loss, read=read)))(arrays))
        for read in (tiled, dense)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert np.abs(b).max() > 0.1
        check(a, b, True, 1e-5)


def test_bfloat16_sums_in_float32(problem):
    queries, segments, seen = build(problem, "float32")
    narrow = lambda tree: jax.tree.map(
        lambda a: jnp.asarray(a, jnp.bfloat16 if a.dtype == np.float32 else a.dtype), tree
    )
    (out, lse), _ = both(narrow(queries), narrow(segments), narrow(seen), 8)
    assert out.dtype == lse.dtype == jnp.float32
    expected, expected_lse, valid = oracle(
        *jax.tree.map(lambda a: np.asarray(a, np.float64), narrow((queries, segments))), seen
    )
    check(out, expected, valid[..., None], 0.02)
    check(lse, expected_lse, valid, 1e-5)
    read = jax.jit(attend)(narrow(queries), narrow(segments), narrow(seen))
    assert read.dtype == jnp.bfloat16
