"""Neighbouring rows that share the keys of a segment, against rows with copies of their own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax.attention import NEVER, Segment, Visibility, attend
from vlm_jax.attention.blockwise import Tap
from vlm_jax.attention.fused import read_segments
from vlm_jax.batch import Kind

CLOSE = dict(atol=1e-12, rtol=0)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Queries behind prefixes that `sharing` neighbours share, and their own keys."""

    q_btnh: np.ndarray
    shared: Segment
    own: Segment
    queries: Visibility

    @classmethod
    def of(cls, seed, prefixes, sharing, length, kv_heads, group, places=7, latent=False):
        rng = np.random.default_rng(seed)
        draw = lambda *shape: jnp.asarray(rng.standard_normal(shape))
        rows, width = prefixes * sharing, 4
        ends = rng.integers(1, places + 1, (prefixes, 1))
        order = np.where(np.arange(places) < ends, np.arange(places), NEVER).astype(np.int32)
        kinds = rng.integers(Kind.SYSTEM, Kind.TEXT + 1, (prefixes, places)).astype(np.int8)
        values = lambda *shape: None if latent else draw(*shape)
        shared = Segment(
            draw(prefixes, kv_heads, places, width),
            values(prefixes, kv_heads, places, 3),
            Visibility(order=jnp.asarray(order)),
            jnp.asarray(kinds),
        )
        behind = jnp.broadcast_to(places + jnp.arange(length, dtype=jnp.int32), (rows, length))
        own = Segment(
            draw(rows, kv_heads, length, width),
            values(rows, kv_heads, length, 3),
            Visibility(order=behind),
            jnp.full((rows, length), Kind.TEXT, jnp.int8),
        )
        q_btnh = draw(rows, length, kv_heads * group, width)
        return cls(q_btnh, shared.shared_by(rows), own, Visibility(order=behind))

    @property
    def copied(self) -> Segment:
        return self.shared.apart(len(self.q_btnh))


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 99),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 3),
    st.booleans(),
)
def test_they_read_what_each_reads_alone(seed, prefixes, sharing, length, kv_heads, group, latent):
    with jax.enable_x64(True):
        one = Problem.of(seed, prefixes, sharing, length, kv_heads, group, latent=latent)
        assert one.shared.k_bksh.shape[0] == prefixes
        found = attend(one.q_btnh, [one.shared, one.own], one.queries)
        expected = attend(one.q_btnh, [one.copied, one.own], one.queries)
        np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize("gains", [1, 6], ids=["gains of all rows", "gains of each row"])
def test_what_is_done_in_tiles_is_done_to_each_row(gains):
    with jax.enable_x64(True):
        one = Problem.of(3, 2, 3, 4, 2, 2)
        rng = np.random.default_rng(0)
        factor = lambda: jnp.asarray(rng.uniform(0.5, 2.0, (gains, 4)))
        acts_bt = jnp.asarray(rng.random((6, 4)) < 0.5)
        tap = Tap(acts_bt, factor(), factor(), masses=True, squares=True)
        read = lambda segment: read_segments(
            one.q_btnh, [segment, one.own], one.queries, causal=False, tap=tap
        )
        for ours, theirs in zip(
            jax.tree.leaves(read(one.shared)), jax.tree.leaves(read(one.copied))
        ):
            np.testing.assert_allclose(ours, theirs, **CLOSE)
        plain = read_segments(one.q_btnh, [one.shared], one.queries, causal=False)[0]
        moved = np.abs(read(one.shared)[0].out_btnh - plain.out_btnh).max(axis=(2, 3)) > 1e-3
        assert moved.any()
        assert not (moved & ~np.asarray(acts_bt)).any()
