"""Decode rows that share keys unevenly, against copies of the keys for each row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.attention import Segment, Visibility
from vlm_jax.attention.row import row_attention
from vlm_jax.attention.segment import NEVER, Fold
from vlm_jax.decoding.call import shared_rows


def test_rows_have_places_of_their_own():
    fold = Fold.of(jnp.array([1, 0, 1]), keys=2, width=2)
    np.testing.assert_array_equal(fold.places_ab, [[2, 0, 3]])
    rows = np.asarray(fold.rows_ap[0])
    assert (rows[0], rows[2], rows[3]) == (1, 0, 2)


@pytest.mark.parametrize("replicas", [1, 2])
def test_folded_rows_read_what_copies_read(replicas):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    owners = np.array([2, 0, 2, 2, 1, 0, 0, 2])
    width = shared_rows(owners, replicas)
    assert width == 4
    orders = np.where(np.arange(7) < np.array([[7], [4], [5]]), np.arange(7), NEVER)
    shared = Segment(draw(3, 2, 7, 4), draw(3, 2, 7, 4), Visibility(jnp.asarray(orders)))
    places = Visibility(jnp.broadcast_to(jnp.arange(8, 11), (8, 3)))
    own = Segment(draw(8, 2, 3, 4), draw(8, 2, 3, 4), places)
    queries, q_b1nh = Visibility(jnp.full((8, 1), 9)), draw(8, 1, 6, 4)

    @jax.jit
    def read(owner_b):
        folded = shared.folded(owner_b, Fold.of(owner_b, 3, width, replicas))
        copied = jax.tree.map(lambda leaf: leaf[owner_b], shared)
        return [row_attention(q_b1nh, [one, own], queries) for one in (folded, copied)]

    found, expected = read(jnp.asarray(owners))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    other, _ = read(jnp.asarray(np.roll(owners, 1)))
    assert np.abs(np.asarray(other - found)).max() > 0.1, "the owner matters"


def test_room_for_rows_has_few_values():
    assert [shared_rows([0] * n + list(range(1, 33 - n)), 1) for n in (1, 2, 4, 5, 16, 17, 32)] == [
        1, 4, 4, 16, 16, 32, 32
    ]  # fmt: skip
    assert shared_rows([0, 0, 1, 1], 2) == 2, "at most the rows of a replica"
