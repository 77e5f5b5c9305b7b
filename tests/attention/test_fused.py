"""The route through a fused kernel, with the portable implementation in the kernel's place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.attention import NEVER, Segment, Visibility, attend, fused
from vlm_jax.attention.blockwise import Tap, segment_attention
from vlm_jax.attention.steering import Reallocation, Rows, Steering
from vlm_jax.batch import Kind

LENGTHS = (5, 9, 1)


@pytest.fixture
def kernel(monkeypatch):
    """A machine whose fused kernel is the portable implementation; counts its calls."""
    calls = []
    by_kernel = fused.by_kernel

    def counted(*args):
        calls.append(args[0].dtype)
        return by_kernel(*args)

    monkeypatch.setattr(fused, "by_kernel", counted)
    monkeypatch.setattr(fused, "choice", lambda: "xla")
    return calls


def traced(function, **static):
    """The function as one program of its own: what another test traced is not found again."""
    return jax.jit(lambda *args, **arrays: function(*args, **arrays, **static))


def prompt(dtype, heads=6, kv_heads=2, dim=8):
    """Queries, keys and values of three prompts, padded on the right, with an image in front."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    places = np.broadcast_to(np.arange(max(LENGTHS), dtype=np.int32), (3, max(LENGTHS)))
    real = places < np.array(LENGTHS)[:, None]
    kinds = np.where(places < 3, Kind.IMAGE, Kind.TEXT).astype(np.int8)
    kinds = np.where(real, kinds, Kind.PAD).astype(np.int8)
    keys = Visibility(order=jnp.asarray(np.where(real, places, NEVER)))
    k_bksh, v_bksh = (draw(3, kv_heads, max(LENGTHS), dim) for _ in range(2))
    segment = Segment(k_bksh, v_bksh, keys, jnp.asarray(kinds))
    seen = Visibility(order=jnp.asarray(places))
    return draw(3, max(LENGTHS), heads, dim), segment, seen, real


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize(("dtype", "bar"), [(jnp.float32, 2e-6), (jnp.bfloat16, 0.02)])
def test_a_kernel_reads_what_the_tiles_read(dtype, bar, scale):
    q, segment, seen, real = prompt(dtype)
    found = traced(fused.by_kernel, scale=scale, kernel="xla")(q, segment)
    expected = traced(segment_attention, causal=True, scale=scale)(q, segment, seen)
    assert found.out_btnh.dtype == found.lse_btn.dtype == jnp.float32
    np.testing.assert_allclose(found.out_btnh[real], expected.out_btnh[real], atol=bar)
    np.testing.assert_allclose(found.lse_btn[real], expected.lse_btn[real], atol=bar)
    assert np.isfinite(found.out_btnh).all()


def test_attention_of_prompts_goes_through_the_kernel(kernel):
    # In heads of its own: the jaxpr of unsteered attention is kept by its shapes.
    q, segment, seen, real = prompt(jnp.bfloat16, heads=10)
    found = traced(attend, causal=True)(q, [segment], seen)
    assert kernel == [jnp.bfloat16]
    tiles = traced(segment_attention, causal=True)(q, segment, seen).out_btnh
    np.testing.assert_allclose(found[real].astype(np.float32), tiles[real], atol=0.03)


def test_steering_of_the_last_row_goes_on_from_the_kernel(kernel):
    q, segment, seen, real = prompt(jnp.bfloat16)
    leaf = lambda value: jnp.full((1, 6), value)
    steering = Steering(reallocation=Reallocation(leaf(2.0), leaf(0.2), leaf(0.01)))
    rows = Rows(
        jnp.asarray(real & (np.arange(max(LENGTHS)) > 2)),
        jnp.asarray(real),
        jnp.asarray(LENGTHS) - 1,
    )
    read = traced(attend, causal=True)
    ask = lambda q: read(q, [segment], seen, steering=steering, rows=rows)
    out, _, readings = ask(q)
    assert kernel == [jnp.bfloat16]
    assert readings.fired_bn.sum() == 12  # the sample of one token is all image
    expected, _, _ = ask(q.astype(jnp.float32))
    assert len(kernel) == 1  # float32 is read in tiles
    np.testing.assert_allclose(out[real].astype(np.float32), expected[real], atol=0.03)


@pytest.mark.parametrize("why", ["float32", "not causal", "two segments", "packed", "tap", "head"])
def test_what_the_kernel_cannot_do_is_read_in_tiles(kernel, why):
    q, segment, seen, _ = prompt(
        jnp.float32 if why == "float32" else jnp.bfloat16, dim=12 if why == "head" else 8
    )
    segments, tap = [segment], None
    if why == "two segments":
        segments = [segment.slice(0, 4), segment.slice(4, max(LENGTHS) - 4)]
    if why == "packed":
        seen = Visibility(seen.order, jnp.zeros_like(seen.order))
    if why == "tap":
        tap = Tap(squares=True)
    read = traced(fused.read_segments, causal=why != "not causal", tap=tap)
    reads = read(q, segments, seen)
    assert len(reads) == len(segments)
    assert not kernel


def test_a_kernel_is_tried_before_it_is_chosen(monkeypatch):
    assert fused.choice() == fused.TILES  # on the CPU
    assert fused.fault("xla") == ""
    assert jax.jit(lambda x: x + (fused.fault("xla") == ""))(1) == 2  # while something is traced
    assert "does not run here" in fused.fault("cudnn")
    right = fused.by_kernel
    wrong = lambda *args: jax.tree.map(lambda leaf: 1.1 * leaf, right(*args))
    monkeypatch.setattr(fused, "by_kernel", wrong)
    assert "from the tiles' result" in fused.fault("xla")
