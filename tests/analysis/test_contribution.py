"""Contribution maps against gradients of weights, differences, and their own sums."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.reference import IMAGES, PROMPTS
from vlm_jax.analysis.ablation import HeadAblation, Places
from vlm_jax.analysis.contribution import Contributions, contributions
from vlm_jax.models import abstract, merge

ANSWERS = [[5, 6, 7, 8, 9], [9, 8, 7]]


@pytest.fixture(scope="module")
def asked(llava_vlm):
    """Parameters and a batch in float64, and two tokens."""
    batch, starts = llava_vlm.processor.batch_answers(IMAGES[:2], PROMPTS[:2], ANSWERS)
    index_m = np.array([3, 1])
    places = Places(
        np.array([0, 1], np.int32),
        (starts[:2] + index_m - 1).astype(np.int32),
        np.array([ANSWERS[0][3], ANSWERS[1][1]], np.int32),
    )
    wide = {path: np.asarray(array, np.float64) for path, array in llava_vlm.params.items()}
    patches = batch.images.patches_bgue.astype(np.float64)
    images = dataclasses.replace(batch.images, patches_bgue=patches)
    return wide, dataclasses.replace(batch, images=images), places


@pytest.fixture(scope="module")
def found(llava_vlm, asked):
    with jax.enable_x64(True):
        return contributions(HeadAblation(llava_vlm.config, rows=2), *asked)


def losses(llava_vlm, asked, params):
    """-log P of each token, by a plain forward pass."""
    _, batch, places = asked
    model = merge(abstract(llava_vlm.config)[0], params)
    logits_btv = model.forward(jax.tree.map(jnp.asarray, batch))
    rows = jax.nn.log_softmax(logits_btv[places.sample_m, places.query_m], axis=-1)
    return -rows[np.arange(2), places.target_m]


def test_gates_answer_as_the_heads_parts_of_the_output_do(llava_vlm, asked, found):
    """S = <dLoss/dY, O_n>, the output's cotangent read off the gradient of its projection."""
    with jax.enable_x64(True):
        params = {path: jnp.asarray(array) for path, array in asked[0].items()}
        layers = llava_vlm.config.decoder.num_layers
        paths = [f"decoder/layers/{layer}/wo_nhd" for layer in range(layers)]
        projections = {path: params[path] for path in paths}
        of = lambda own: losses(llava_vlm, asked, {**params, **own})
        slopes = jax.jit(jax.jacrev(of))(projections)
        for token in range(2):
            for layer, path in enumerate(paths):
                parts_n = np.einsum("nhd,nhd->n", slopes[path][token], params[path])
                ours_n = found.signed_mln[token, layer]
                np.testing.assert_allclose(ours_n, parts_n, atol=1e-12, rtol=0)
                # Euler's identity, as the projection has no bias.
                whole = float(np.sum(slopes[path][token] * params[path]))
                assert ours_n.sum() == pytest.approx(whole, abs=1e-12)
        assert np.abs(found.signed_mln).max() > 1e-3


def test_gates_answer_as_differences_do(llava_vlm, asked, found):
    """A gate of 1 + e is a projection whose rows of that head are 1 + e times as large."""
    step = 1e-5
    with jax.enable_x64(True):
        params = {path: jnp.asarray(array) for path, array in asked[0].items()}
        of = jax.jit(lambda own: losses(llava_vlm, asked, {**params, **own}))
        for layer, head in ((0, 1), (2, 3)):
            path = f"decoder/layers/{layer}/wo_nhd"
            ends = [of({path: params[path].at[head].multiply(1 + sign * step)}) for sign in (1, -1)]
            slope_m = np.asarray(ends[0] - ends[1]) / (2 * step)
            np.testing.assert_allclose(found.signed_mln[:, layer, head], slope_m, atol=1e-8, rtol=0)


def test_shares_sum_to_one(found):
    np.testing.assert_allclose(found.by_layer().sum(1), 1, atol=1e-12)
    assert found.overall().sum() == pytest.approx(1, abs=1e-12)
    assert (found.absolute_ln >= np.abs(found.signed_ln) - 1e-15).all()
    first = found.ranking()[0]
    assert found.absolute_ln[first] == found.absolute_ln.max()


def test_a_layer_that_does_nothing_has_no_shares():
    silent = Contributions(np.array([[[1.0, -3.0], [0.0, 0.0]]]))
    assert silent.by_layer().tolist() == [[0.25, 0.75], [0, 0]]
