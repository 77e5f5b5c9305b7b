"""Rows of attention against dense maps of every layer, and what is summed up from them."""

import jax
import numpy as np
import pytest

from tests.reference import IMAGES, PROMPTS
from vlm_jax.analysis.rows import (
    KINDS,
    RowReader,
    block_cosines,
    block_divergences,
    dominance,
    imbalance,
    leaned_on,
)
from vlm_jax.attention import Segment, Visibility, attend
from vlm_jax.batch import Kind
from vlm_jax.models import abstract, merge
from vlm_jax.models.cache import prompt_order
from vlm_jax.models.hooks import Hooks

HEADS = ((2, 1), (0, 3), (2, 0))


@pytest.fixture(scope="module")
def asked(qwen_vlm):
    """A sequence, the rows that chose its answer, and dense weights [L, N, T, T] of all of it."""
    batch, starts_b = qwen_vlm.processor.batch_answers(IMAGES[:1], PROMPTS[:1], [[5, 6, 7, 8, 9]])
    batch = jax.tree.map(jax.numpy.asarray, batch)
    query_q = starts_b[0] - 1 + np.arange(5)
    keys = Visibility(order=prompt_order(batch))
    places = np.arange(batch.tokens_bt.shape[1], dtype=np.int32)[None]

    @jax.jit
    def watched(params):
        """Queries and keys of every layer."""
        network, layers = merge(abstract(qwen_vlm.config)[0], params), []

        def watch(q_btnh, segments, queries, causal):
            layers.append((q_btnh[0], segments[0].k_bksh[0]))
            return attend(q_btnh, segments, queries, causal=causal)

        network.decoder(
            network.embed(batch),
            batch.positions_bt3,
            Visibility(order=jax.numpy.asarray(places)),
            lambda layer, k, v: [Segment(k, v, keys)],
            causal=True,
            hooks=Hooks(watch),
        )
        return layers

    dense = []
    for layer in watched(qwen_vlm.params):
        q_tnh, k_ksh = (np.asarray(a, np.float64) for a in layer)
        k_nsh = np.repeat(k_ksh, q_tnh.shape[1] // k_ksh.shape[0], axis=0)
        logits_nts = np.einsum("tnh,nsh->nts", q_tnh, k_nsh) / np.sqrt(q_tnh.shape[-1])
        logits_nts[:, np.triu(np.ones(logits_nts.shape[1:], bool), 1)] = -np.inf
        weights_nts = np.exp(logits_nts - logits_nts.max(-1, keepdims=True))
        dense.append(weights_nts / weights_nts.sum(-1, keepdims=True))
    return batch, query_q, np.stack(dense)


@pytest.fixture(scope="module")
def found(qwen_vlm, asked):
    batch, query_q, _ = asked
    return RowReader(qwen_vlm.config, rows=2)(qwen_vlm.params, batch, query_q, HEADS)


def test_rows_are_those_of_dense_maps(asked, found):
    batch, query_q, dense_lnts = asked
    kinds_s = np.asarray(batch.kinds_bt[0])
    for n, query in enumerate(query_q):
        row_lns = dense_lnts[:, :, query]
        for kind, name in zip((Kind.IMAGE, Kind.TEXT, Kind.SYSTEM), KINDS):
            mass_ln = row_lns[..., kinds_s == kind].sum(-1)
            np.testing.assert_allclose(
                found.masses_qlnc[n, ..., KINDS.index(name)], mass_ln, atol=2e-6
            )
        part_lns = row_lns[..., : query + 1]
        entropy_ln = -np.sum(part_lns * np.log(part_lns), axis=-1)
        np.testing.assert_allclose(found.entropy_qln[n], entropy_ln, atol=2e-5)
        np.testing.assert_allclose(found.variance_qln[n], part_lns.var(-1), atol=1e-6)
        for h, (layer, head) in enumerate(HEADS):
            np.testing.assert_allclose(found.weights_qhs[n, h], row_lns[layer, head], atol=2e-6)


def test_masses_are_those_of_decode_steps(qwen_vlm, asked, found):
    """`vlm.attention` reads an answer step by step, through the cache."""
    (seen,) = qwen_vlm.attention(IMAGES[:1], PROMPTS[:1], max_new_tokens=3)
    batch, starts_b = qwen_vlm.processor.batch_answers(IMAGES[:1], PROMPTS[:1], [seen.tokens])
    query_q = starts_b[0] - 1 + np.arange(len(seen.tokens))
    rows = RowReader(qwen_vlm.config, rows=2)(qwen_vlm.params, batch, query_q)
    for n, name in enumerate(KINDS):
        np.testing.assert_allclose(rows.masses_qlnc[..., n], getattr(seen, name), atol=1e-5)
    assert rows.weights_qhs.shape[1] == len(rows.value_norms_hs) == 0


def test_text_dominates_where_it_has_more_mass():
    masses = np.zeros((2, 1, 2, 3))
    masses[:, 0, 0] = [[0.2, 0.5, 0.3], [0.1, 0.4, 0.5]]
    masses[:, 0, 1] = [0, 0.5, 0.5]
    np.testing.assert_allclose(dominance(masses), [[3.0, np.inf]])


def test_imbalance_is_a_ratio_of_shares(asked, found):
    _, query_q, dense_lnts = asked
    layer, head = HEADS[0]
    even = imbalance(found.weights_qhs, np.ones(found.value_norms_hs.shape), query_q)
    received = dense_lnts[layer, head][query_q].sum(0)
    seen = (np.arange(len(received)) <= query_q[:, None]).sum(0)
    known = seen > 0
    expected = received[known] / received.sum() / (seen[known] / seen.sum())
    np.testing.assert_allclose(even[0, known], expected, rtol=1e-4, atol=1e-5)
    assert np.isnan(even[0, ~known]).all()
    assert (found.value_norms_hs >= 0).all()
    halved = found.value_norms_hs.copy()
    halved[:, 3] /= 2
    one, other = (imbalance(found.weights_qhs, n, query_q) for n in (found.value_norms_hs, halved))
    assert (other[:, 3] > one[:, 3]).all()


def test_cosines_are_those_of_flattened_blocks():
    one, other = np.random.default_rng(0).random((2, 5, 3, 5))
    norm = np.linalg.norm
    cosine = lambda a, b: a.ravel() @ b.ravel() / norm(a) / norm(b)
    expected = [cosine(one[:, h], other[:, h]) for h in range(3)]
    np.testing.assert_allclose(block_cosines(one, other), expected)


def test_divergences_are_those_of_rows_that_sum_to_one():
    one, other = np.random.default_rng(1).random((2, 4, 3, 6))
    one[..., 0] = 0  # a key that only one of them sees
    entropy = lambda p: -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), -1)
    p, q = (a / a.sum(-1, keepdims=True) for a in (one, other))
    expected = np.mean(entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2, axis=0)
    np.testing.assert_allclose(block_divergences(one, other), expected)
    np.testing.assert_allclose(block_divergences(3 * one, one), 0, atol=1e-12)
    apart = np.eye(2)[:, None]
    np.testing.assert_allclose(block_divergences(apart, apart[::-1]), np.log(2))


def test_leaning_is_the_mean_over_rows_that_see_a_token():
    drop_sq = np.array([[2.0, -4.0], [0.0, 3.0], [0.5, 7.0]])
    np.testing.assert_allclose(leaned_on(drop_sq, np.array([0, 1])), [3.0, 3.0, 0.0])
