"""The fused kernel, interpreted, against the whole map in NumPy; Mosaic's verdict on it."""

import functools
import importlib.util
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from vlm_jax.attention import NEVER, Segment, Visibility, attend, fused, pallas
from vlm_jax.attention.blockwise import Tap
from vlm_jax.attention.pallas import kernel_attention
from vlm_jax.attention.steering import (
    LogitGains,
    Projection,
    Reallocation,
    Rows,
    Steering,
    VisualGains,
)
from vlm_jax.batch import Kind
from vlm_jax.models.layers import rms_norm, rotate
from vlm_jax.parallel import make_mesh
from vlm_jax.planning.traffic import moved_bytes

BARS = {"float32": 3e-6, "bfloat16": 0.02}


def problem(seed, batch, length, keys, kv_heads, group, dim, width, causal, dtype):
    """Queries, a segment with an image, padding and (not causal) groups, and a tap for all."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    places = np.broadcast_to(np.arange(keys, dtype=np.int32), (batch, keys))
    lengths = rng.integers(1, keys + 1, (batch, 1))
    real = places < lengths
    kinds = np.where(places < 2, Kind.SYSTEM, np.where(places < keys / 2, Kind.IMAGE, Kind.TEXT))
    order = np.where(real, places, np.int32(NEVER))
    if causal:
        seen, mine = Visibility(jnp.asarray(order)), Visibility(jnp.asarray(places))
        read = real
    else:
        ints = lambda *shape: jnp.asarray(rng.integers(0, 3, shape), jnp.int32)
        seen = Visibility(jnp.asarray(order), ints(batch, keys))
        mine = Visibility(jnp.asarray(rng.integers(-1, keys, (batch, length)), jnp.int32),
                          ints(batch, length))  # fmt: skip
        read = np.ones((batch, length), bool)
    heads = kv_heads * group
    gain = lambda: jnp.asarray(rng.uniform(0.5, 2, (batch, heads)), jnp.float32)
    gained = jnp.asarray(rng.integers(0, 2, (batch, length)), bool)
    segment = Segment(
        draw(batch, kv_heads, keys, dim), draw(batch, kv_heads, keys, width), seen,
        jnp.asarray(kinds, jnp.int8),
    )  # fmt: skip
    tap = Tap(gained, gain(), gain(), masses=True, squares=True, own=True)
    return draw(batch, length, heads, dim), segment, mine, tap, read


def dense(q, segment, queries, tap):
    """Output, log-sum-exp, image mass, squares and own weight, through the map in float64."""
    wide = lambda a: np.asarray(a, np.float64)
    group = q.shape[2] // segment.k_bksh.shape[1]
    k, v = (np.repeat(wide(a), group, axis=1) for a in (segment.k_bksh, segment.v_bksh))
    logits = np.einsum("btnh,bnsh->bnts", wide(q), k) * q.shape[-1] ** -0.5
    kinds = np.asarray(segment.kinds_bs)[:, None, None]
    if tap is not None:
        gain = np.where(kinds == Kind.IMAGE, wide(tap.image_bn)[..., None, None], 1)
        gain = np.where(kinds == Kind.SYSTEM, wide(tap.system_bn)[..., None, None], gain)
        logits = np.where(np.asarray(tap.rows_bt)[:, None, :, None], logits * gain, logits)
    visible = np.asarray(queries.sees(segment.keys))[:, None]
    weights = np.where(visible, np.exp(logits), 0)
    total = weights.sum(-1, keepdims=True)
    weights = weights / np.where(total, total, 1)
    out = np.einsum("bnts,bnsh->btnh", weights, v)
    rows = lambda a: a.transpose(0, 2, 1)
    with np.errstate(divide="ignore"):
        lse = np.log(total[..., 0])
    own = np.diagonal(weights, axis1=2, axis2=3)
    image = np.where(kinds == Kind.IMAGE, weights, 0).sum(-1)
    return out, rows(lse), rows(image), rows((weights**2).sum(-1)), rows(own), rows(total[..., 0])


def check(dtype, causal, tapped, interpret: Any = True, **sizes):
    q, segment, queries, tap, read = problem(causal=causal, dtype=dtype, **sizes)
    tap = tap if tapped else None
    read_all = functools.partial(kernel_attention, causal=causal, interpret=interpret)
    found = jax.jit(read_all)(q, segment, queries, tap=tap)
    out, lse, *shares, total = dense(q, segment, queries, tap)
    bar = BARS[dtype]
    np.testing.assert_allclose(found.out_btnh[read], out[read], atol=bar)
    sees = read[..., None] & (total > 0)
    np.testing.assert_allclose(found.lse_btn[sees], lse[sees], atol=bar)
    blind = read[..., None] & (total == 0)
    assert (np.asarray(found.lse_btn)[blind] < -1e29).all(), "it weighs nothing in a merge"
    names = "image_btn", "squares_btn", "own_btn"
    for name, expected in zip(names, shares, strict=True):
        share = getattr(found, name)
        assert (share is not None) == (tapped and (name != "own_btn" or causal)), name
        if share is not None:
            np.testing.assert_allclose(share[sees], expected[sees], atol=bar)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)[:2])


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 128 queries and keys, so that few of both are several blocks."""
    monkeypatch.setattr(pallas, "_QUERIES", 128)
    monkeypatch.setattr(pallas, "_KEYS", 128)


SIZES = dict(seed=0, batch=2, keys=300, kv_heads=2, group=2, dim=16, width=8)


@pytest.mark.parametrize("causal", [True, False])
def test_a_kernel_reads_what_the_whole_map_gives(small_blocks, causal):
    check("float32", causal, True, length=300 if causal else 40, **SIZES)


@pytest.mark.parametrize("causal", [True, False])
def test_a_simulated_tpu_reads_the_same(small_blocks, causal, capfd):
    """Two cores take blocks in any order; what nobody wrote is NaN; races are reported."""
    chip = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2, random_seed=1)
    check("float32", causal, True, chip, length=300 if causal else 40, **SIZES)
    assert "RACE" not in capfd.readouterr().out


@st.composite
def shapes(draw):
    """Shapes of a problem, ragged and whole."""
    causal = draw(st.booleans())
    size = st.sampled_from([1, 7, 16, 64, 100, 128, 200, 257])
    length = draw(size)
    return dict(
        causal=causal, length=length, keys=length if causal else draw(size),
        dtype=draw(st.sampled_from(["float32", "bfloat16"])), tapped=draw(st.booleans()),
        batch=draw(st.integers(1, 4)), kv_heads=draw(st.integers(1, 2)),
        group=draw(st.sampled_from([1, 2, 7])), dim=draw(st.sampled_from([8, 64, 80])),
        width=draw(st.sampled_from([8, 64, 80])), seed=draw(st.integers(0, 99)),
    )  # fmt: skip


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(shape=shapes())
def test_any_shape_is_read(shape):
    check(**shape)


@pytest.fixture
def chosen(monkeypatch):
    """A machine whose fused kernel is ours, interpreted."""
    ours = functools.partial(kernel_attention, interpret=True)
    monkeypatch.setattr(fused, "kernel_attention", ours)
    return lambda kernel: monkeypatch.setattr(fused, "choice", lambda: kernel)


def test_steering_of_prompt_rows_goes_on_from_the_kernel(chosen):
    """Gains by prompt rows and a running projection: masses, squares and the diagonal."""
    q, segment, queries, _, real = problem(3, 2, 24, 24, 2, 2, 8, 8, True, "float32")
    lengths = real.sum(1)
    rows = Rows(
        jnp.asarray(real & (np.arange(24) >= 12)), jnp.asarray(real), jnp.asarray(lengths) - 1
    )
    leaf = lambda value: jnp.full((1, 4), value, jnp.float32)
    steering = Steering(
        logit_gains=LogitGains(leaf(1.3), leaf(0.7)),
        projection=Projection(leaf(1.0), leaf(0.1), zero_trace="running", prefill="causal"),
    )
    found = {}
    for kernel in (fused.TILES, fused.PALLAS):
        chosen(kernel)
        read = jax.jit(functools.partial(attend, causal=True, scale=0.3))
        found[kernel] = read(q, [segment], queries, steering=steering, rows=rows)
    ours, tiles = found[fused.PALLAS], found[fused.TILES]
    np.testing.assert_allclose(ours[0][real], tiles[0][real], atol=2e-5)
    for one, other in zip(jax.tree.leaves(ours[1:]), jax.tree.leaves(tiles[1:]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_kernel_is_chosen_on_tpus_alone(monkeypatch, caplog):
    """By the mesh in scope, without which the partitioner would have to split it."""
    assert fused.choice() == fused.TILES
    kinds = {"TPU v5 lite": "tpu", "cpu": "cpu", "NVIDIA H200": "gpu"}
    for kind, platform in kinds.items():
        assert fused.platform_of(types.SimpleNamespace(device_kind=kind)) == platform
    named = {} if jax.__version__ == "0.10.0" else {"platform": "tpu"}
    devices = jax.sharding.AbstractDevice("TPU v5 lite", None, **named)
    axes = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.sharding.AbstractMesh((2, 2), ("data", "model"), axes, abstract_device=devices)
    with jax.sharding.use_abstract_mesh(mesh):
        assert fused.choice() == fused.PALLAS
    wrong = lambda *args, **options: jax.tree.map(
        lambda leaf: 1.1 * leaf, kernel_attention(*args, **options, interpret=True)
    )
    monkeypatch.setattr(fused, "kernel_attention", wrong)
    assert "from the tiles' result" in fused.fault(fused.PALLAS)
    ours = functools.partial(kernel_attention, interpret=True)
    monkeypatch.setattr(fused, "kernel_attention", ours)
    assert jax.jit(lambda x: x + (fused.fault(fused.PALLAS) == ""))(1) == 2  # while it traces


def _on_a_mesh(data, model, kv_heads, group):
    """How far the kernel is from itself on one device, when rows and heads are split."""
    mesh = make_mesh(data, model, devices=jax.devices()[: data * model])
    q, segment, queries, tap, real = problem(5, 4, 24, 24, kv_heads, group, 8, 8, True, "float32")
    read = functools.partial(kernel_attention, causal=True, interpret=True)

    @jax.jit
    def split(q, segment, queries, tap):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return read(q, segment, queries, tap=tap)

    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    found = split(*jax.device_put((q, segment, queries, tap), everywhere))
    expected = read(q, segment, queries, tap=tap)
    apart = lambda one, other: float(np.abs(np.asarray(one - other)[real]).max())
    return max(jax.tree.leaves(jax.tree.map(apart, found, expected)))


@pytest.mark.slow
@pytest.mark.parametrize(("kv_heads", "group"), [(4, 2), (2, 8), (3, 1)])
def test_devices_share_rows_and_heads(eight, kv_heads, group):
    """Key heads that divide; that several devices share; that neither do."""
    assert eight(_on_a_mesh, 2, 4, kv_heads, group) < 1e-6


RELEASED = {
    "7B": (1500, 28, 4, 128, True), "LLaVA-1.5-7B": (2048, 32, 32, 128, True),
    "3B": (4096, 16, 2, 128, True), "windows": (64, 16, 16, 80, False),
    "CLIP": (577, 16, 16, 64, False),
}  # fmt: skip


on_tpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is missing: `make plan-env`"
)


@pytest.mark.plan
@on_tpu
def test_steering_copies_neither_queries_nor_outputs():
    """An edit of the last row adds its reading of keys and values, gains of heads of keys alone."""
    from vlm_jax.planning.topologies import topology

    batch, length, heads, kv_heads, dim, width = 8, 4096, 16, 4, 128, 1024
    mesh = make_mesh(1, 1, devices=topology("v5e:1x1").devices)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def shape(dtype, *dims) -> Any:
        return jax.ShapeDtypeStruct(dims, dtype, sharding=place)

    def layer(x_btd, angles, weights, keys, kinds, last_b, steering):
        wq_dnh, wo_nhd = weights
        order = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
        q_btnh = rotate(jnp.einsum("btd,dnh->btnh", x_btd, wq_dnh), angles)
        segment = Segment(keys, keys + 1, Visibility(order), kinds)
        rows = Rows(kinds == Kind.TEXT, kinds != Kind.PAD, last_b)
        options = {} if steering is None else {"steering": steering, "rows": rows}
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            found = attend(q_btnh, [segment], Visibility(order), causal=True, **options)
        out = (found if steering is None else found[0]).reshape(batch, length, -1)
        x_btd = x_btd + out @ wo_nhd.reshape(-1, width)
        return rms_norm(x_btd, jnp.ones(width, x_btd.dtype), 1e-6)

    half, leaf = jnp.bfloat16, shape(jnp.float32, 1, heads)
    methods = [
        None, Steering(reallocation=Reallocation(leaf, leaf, leaf)),
        Steering(visual_gains=VisualGains(leaf, leaf, leaf, leaf)),
    ]  # fmt: skip
    weights = shape(half, width, heads, dim), shape(half, heads, dim, width)
    keys = shape(half, batch, kv_heads, length, dim)
    given = (
        shape(half, batch, length, width), shape(jnp.float32, batch, length, dim // 2), weights,
        keys, shape(jnp.int8, batch, length), shape(jnp.int32, batch),
    )  # fmt: skip
    programs = (jax.jit(layer).lower(*given, method).compile().as_text() for method in methods)
    plain, edited, gained = (moved_bytes(text or "") for text in programs)
    of_keys, of_queries = 2 * keys.size, 2 * keys.size * heads // kv_heads
    assert edited - plain < 2 * of_keys + of_queries / 2
    if jax.__version_info__ >= (0, 11):  # before, XLA widens what gains read by itself
        assert gained - plain < of_keys + of_queries / 2


@pytest.mark.plan
@on_tpu
@pytest.mark.parametrize("chips", ["v5e:2x2", "v6e:2x2", "v5p:2x2x1"])
@pytest.mark.parametrize("model", RELEASED)
def test_mosaic_compiles_it(chips, model):
    """For released sizes, padded lengths and every result, on heads that are split or shared."""
    from vlm_jax.planning.topologies import topology

    length, heads, kv_heads, dim, causal = RELEASED[model]
    mesh = make_mesh(1, 4, devices=topology(chips).devices)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def shape(dtype, *dims) -> Any:
        return jax.ShapeDtypeStruct(dims, dtype, sharding=place)

    kind, batch = jnp.bfloat16, 2 if causal else 16
    seen = Visibility(shape(jnp.int32, batch, length), shape(jnp.int32, batch, length))
    keys = shape(kind, batch, kv_heads, length, dim)
    segment = Segment(keys, keys, seen, shape(jnp.int8, batch, length))
    gain = shape(jnp.float32, 1, heads)
    tap = Tap(shape(jnp.bool_, batch, length), gain, gain, masses=True, squares=True, own=True)

    def read(q, segment, seen, tap):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return [kernel_attention(q, segment, seen, causal=causal, tap=one, dtype=kind)
                    for one in (tap, None)]  # fmt: skip

    lowered = jax.jit(read).lower(shape(kind, batch, length, heads, dim), segment, seen, tap)
    compiled: Any = lowered.compile()
    assert compiled.as_text().count("tpu_custom_call") >= 2
    pairs = batch * heads // 4 * length * length // (2 if causal else 1)
    flops = compiled.cost_analysis()["flops"]
    assert 2 * 4 * dim * pairs <= flops < 4 * 4 * dim * pairs, "what is above the diagonal is not"
