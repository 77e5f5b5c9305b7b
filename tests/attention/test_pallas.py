"""The fused kernel, interpreted, against the whole map in NumPy; Mosaic's verdict on it."""

import dataclasses
import functools
import importlib.util
import types
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from vlm_jax.attention import NEVER, Segment, Visibility, attend, fused, pallas
from vlm_jax.attention.blockwise import Tap
from vlm_jax.attention.causal_projection import LARGEST_SCALE, CausalProjection
from vlm_jax.attention.pallas import kernel_attention
from vlm_jax.attention.parts.base import Part, Values, part
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


def projection_of(seed, real, heads):
    """A projection of some heads, of all rows up to the one before the last; the same for all rows
    of the batch, or each its own."""
    rng = np.random.default_rng(seed + 1000)
    shape = 1 if seed % 2 else len(real), heads
    on, beta = rng.integers(0, 3, shape) > 0, rng.uniform(0, 0.6, shape)
    last = real.sum(1, keepdims=True) - 1
    counted = real & (np.arange(real.shape[1]) < last)
    return CausalProjection(
        *(jnp.asarray(a, jnp.float32) for a in (on, beta)), jnp.asarray(counted)
    )


def project(weights, v, how):
    """Each row as the last one of the projected map of the rows up to it: its output, and by how
    much zero trace has scaled it up."""
    out, scales = weights @ v, np.ones(weights.shape[:3])
    counted, on, beta = (np.asarray(a) for a in (how.rows_bt, how.on_bn, how.beta_bn))
    for b, n, i in np.ndindex(*scales.shape):
        of = lambda a, b=b, n=n: a[b % len(a), n]
        if not counted[b, i] or not of(on):
            continue
        some = np.flatnonzero(counted[b, : i + 1])
        seen = weights[b, n][np.ix_(some, some)]
        rest = seen - np.trace(seen) / len(some) * np.eye(len(some))
        norm = np.sqrt((rest**2).sum() + 1e-8)
        scale = scales[b, n, i] = min(np.sqrt((seen**2).sum()) / norm, LARGEST_SCALE)
        row = (1 - of(beta)) * scale * rest[-1] + of(beta) * scale * rest.mean()
        out[b, n, i] = row @ v[b, n, some]
    return out, scales


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
    out, scales = weights @ v, np.ones(weights.shape[:3])
    if tap is not None and tap.projection is not None:
        out, scales = project(weights, v, tap.projection)
    rows = lambda a: a.transpose(0, 2, 1)
    with np.errstate(divide="ignore"):
        lse = np.log(total[..., 0])
    own = np.diagonal(weights, axis1=2, axis2=3)
    image = np.where(kinds == Kind.IMAGE, weights, 0).sum(-1)
    shares = rows(image), rows((weights**2).sum(-1)), rows(own)
    return out.transpose(0, 2, 1, 3), rows(scales), rows(lse), *shares, rows(total[..., 0])


def check(dtype, causal, tapped, projected=False, interpret: Any = True, **sizes):
    q, segment, queries, tap, read = problem(causal=causal, dtype=dtype, **sizes)
    tap = tap if tapped else None
    read_all = jax.jit(functools.partial(kernel_attention, causal=causal, interpret=interpret))
    plain = found = read_all(q, segment, queries, tap=tap)
    assert not plain.projected
    if projected and tapped:
        how = projection_of(sizes["seed"], read, q.shape[2])
        asked = dataclasses.replace(tap, projection=how)
        found, tap = read_all(q, segment, queries, tap=asked), asked if causal else tap
        assert found.projected == causal
        changed = np.asarray(how.rows_bt)[..., None] & (np.asarray(how.on_bn) > 0)[:, None] & causal
        np.testing.assert_array_equal(found.out_btnh[~changed], plain.out_btnh[~changed])
        same = dataclasses.replace(found, out_btnh=plain.out_btnh, projected=False)
        jax.tree.map(np.testing.assert_array_equal, same, plain)
    out, scales, lse, *shares, total = dense(q, segment, queries, tap)
    bar = BARS[dtype]
    apart = np.abs(found.out_btnh - out)[read]
    assert (apart < bar * scales[read][..., None]).all(), apart.max()
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
    check("float32", causal, True, True, length=300 if causal else 40, **SIZES)


@pytest.mark.parametrize("causal", [True, False])
def test_a_simulated_tpu_reads_the_same(small_blocks, causal, capfd):
    """Two cores take blocks in any order; what nobody wrote is NaN; races are reported."""
    chip = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2, random_seed=1)
    check("float32", causal, True, True, chip, length=300 if causal else 40, **SIZES)
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
        projected=draw(st.booleans()),
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


@part
class Squared(Part):
    """Changes rows before they are projected."""

    gain: Values

    follows = "reallocation"
    identity: ClassVar[dict[str, float]] = {"gain": 1}

    def prompt_rows(self, out_btnh, prompt, state):
        return self.gain[:, None, :, None] * out_btnh**2


@pytest.mark.parametrize("case", ["at once", "in two calls", "behind another's part"])
def test_steering_of_prompt_rows_goes_on_from_the_kernel(chosen, case):
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
        others=(Squared(leaf(1.0)),) if case == "behind another's part" else (),
    )

    def at_once():
        return attend(q, [segment], queries, causal=True, scale=0.3, steering=steering, rows=rows)

    def in_two_calls():
        cut, read = 10, functools.partial(attend, scale=0.3, steering=steering)
        first, rest = segment.slice(0, cut), segment.slice(cut, 24 - cut)
        some = Rows(rows.after_image_bt[:, :cut], rows.real_bt[:, :cut], None)
        others = Rows(rows.after_image_bt[:, cut:], rows.real_bt[:, cut:], rows.last_b - cut)
        seen = queries.slice(0, cut), queries.slice(cut, 24 - cut)
        head, state, _ = read(q[:, :cut], [first], seen[0], causal=True, rows=some)
        tail, *left = read(q[:, cut:], [first, rest], seen[1], rows=others, state=state)
        return jnp.concatenate([head, tail], axis=1), *left

    found = {}
    for kernel in (fused.TILES, fused.PALLAS):
        chosen(kernel)
        read = in_two_calls if case == "in two calls" else at_once
        found[kernel] = jax.jit(functools.partial(read))()  # of its own, traced anew
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


def _on_a_mesh(data, model, kv_heads, group, projected):
    """How far the kernel is from itself on one device, when rows and heads are split."""
    mesh = make_mesh(data, model, devices=jax.devices()[: data * model])
    q, segment, queries, tap, real = problem(5, 4, 24, 24, kv_heads, group, 8, 8, True, "float32")
    if projected:
        how = projection_of(4, real, kv_heads * group)
        tap = dataclasses.replace(tap, projection=how)
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
    apart = functools.partial(eight, _on_a_mesh, 2, 4, kv_heads, group)
    assert apart(False) < 1e-6
    assert apart(True) < 1e-6 * LARGEST_SCALE


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
    """An edit of the last row adds its reading of keys and values, gains of heads of keys alone;
    a projection of all rows no more than the former."""
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
        Steering(projection=Projection(leaf, leaf, prefill="causal")),
        Steering(visual_gains=VisualGains(leaf, leaf, leaf, leaf)),
    ]  # fmt: skip
    weights = shape(half, width, heads, dim), shape(half, heads, dim, width)
    keys = shape(half, batch, kv_heads, length, dim)
    given = (
        shape(half, batch, length, width), shape(jnp.float32, batch, length, dim // 2), weights,
        keys, shape(jnp.int8, batch, length), shape(jnp.int32, batch),
    )  # fmt: skip
    programs = (jax.jit(layer).lower(*given, method).compile().as_text() for method in methods)
    plain, edited, projected, gained = (moved_bytes(text or "") for text in programs)
    of_keys, of_queries = 2 * keys.size, 2 * keys.size * heads // kv_heads
    assert edited - plain < 2 * of_keys + of_queries / 2
    assert projected - plain < 2 * of_keys + of_queries / 2
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
    gained = shape(jnp.bool_, batch, length)
    tap = Tap(gained, gain, gain, masses=True, squares=True, own=True)
    taps = [None, tap]
    if causal:
        taps.append(dataclasses.replace(tap, projection=CausalProjection(gain, gain, gained)))

    def read(q, segment, seen, taps):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return [kernel_attention(q, segment, seen, causal=causal, tap=one, dtype=kind)
                    for one in taps]  # fmt: skip

    lowered = jax.jit(read).lower(shape(kind, batch, length, heads, dim), segment, seen, taps)
    compiled: Any = lowered.compile()
    assert compiled.as_text().count("tpu_custom_call") >= len(taps)
    pairs = batch * heads // 4 * length * length // (2 if causal else 1)
    flops = compiled.cost_analysis()["flops"]
    least = len(taps) * 4 * dim * pairs
    assert least <= flops < 2 * least, "what is above the diagonal is not"
