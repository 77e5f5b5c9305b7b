"""Erased tokens against attention that masks their keys densely, and what imbalance makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vlm_jax
from tests.reference import IMAGES, PROMPTS
from vlm_jax.analysis.ablation import Places
from vlm_jax.analysis.erasure import TokenErasure
from vlm_jax.attention import Segment, Visibility
from vlm_jax.models import abstract, merge
from vlm_jax.models.cache import prompt_order
from vlm_jax.models.hooks import Hooks

ANSWER = [5, 6, 7]


def log_probabilities(model, batch, query_q, erased) -> jax.Array:
    """Of the answer's tokens; attention has its weights [T, T] made, the erased column at 0."""
    network = merge(abstract(model.config)[0], model.params)
    places = jnp.arange(batch.tokens_bt.shape[1], dtype=jnp.int32)[None]
    order = prompt_order(batch)
    seen_ts = (order[0] <= places[0][:, None]) & (places[0] != erased)

    def attend(q_btnh, segments, queries, causal, scale=None):
        k_ksh, v_ksh = segments[0].k_bksh[0], segments[0].values_bksh[0]
        group = q_btnh.shape[2] // len(k_ksh)
        k_nsh, v_nsh = (jnp.repeat(a, group, axis=0) for a in (k_ksh, v_ksh))
        logits_nts = jnp.einsum("tnh,nsh->nts", q_btnh[0], k_nsh) / np.sqrt(q_btnh.shape[-1])
        weights_nts = jax.nn.softmax(jnp.where(seen_ts, logits_nts, -1e9), axis=-1)
        return jnp.einsum("nts,nsh->tnh", weights_nts, v_nsh)[None].astype(q_btnh.dtype)

    hidden_btd = network.decoder(
        network.embed(batch),
        batch.positions_bt3,
        Visibility(order=places),
        lambda layer, k, v: [Segment(k, v, Visibility(order=order))],
        causal=True,
        hooks=Hooks(attend),
    )
    logits_qv = jax.nn.log_softmax(network.decoder.logits(hidden_btd[:, query_q])[0], axis=-1)
    return logits_qv[np.arange(len(ANSWER)), np.array(ANSWER)]


def test_drops_are_those_of_dense_masks(qwen_vlm):
    batch, starts_b = qwen_vlm.processor.batch_answers(IMAGES[:1], PROMPTS[:1], [ANSWER])
    query_q = (starts_b[0] - 1 + np.arange(3)).astype(np.int32)
    places = Places(np.zeros(3, np.int32), query_q, np.array(ANSWER, np.int32))
    drop_sq = TokenErasure(qwen_vlm.config, rows=16)(qwen_vlm.params, batch, places)
    batch = jax.tree.map(jnp.asarray, batch)
    dense = jax.jit(lambda erased: log_probabilities(qwen_vlm, batch, query_q, erased))
    for erased in (1, int(query_q[0]), int(query_q[1])):
        np.testing.assert_allclose(drop_sq[erased], dense(-1) - dense(erased), atol=2e-5)
    assert abs(drop_sq[query_q[1], 0]) < 1e-6  # the row before does not see it
    assert np.abs(drop_sq[: query_q[0]]).max() > 1e-3


@pytest.mark.slow
def test_imbalance_against_what_is_lost(qwen_vlm):
    found = vlm_jax.explain(
        qwen_vlm,
        "masses",
        IMAGES[0][0],
        PROMPTS[0],
        max_new_tokens=3,
        heads=((1, 0),),
        contribution="erasure",
    )
    (answer,) = found.answers  # pyright: ignore[reportAttributeAccessIssue]
    tai_s = answer.imbalance_hs[0, :-1]
    assert (tai_s > 0).all()
    assert tai_s.max() > 2 * tai_s.min()
    assert "no row sees it" in found.tables()[1].notes[0]
