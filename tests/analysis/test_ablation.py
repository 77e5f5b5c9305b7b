"""Ablation of heads against zeroed weights, and its first order against finite differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.reference import IMAGES, PROMPTS
from vlm_jax.analysis import ablation
from vlm_jax.analysis.ablation import HeadAblation, Places
from vlm_jax.models import abstract, merge

ANSWERS = [[5, 6, 7, 8, 9], [9, 8, 7], [10, 11, 12, 13], [6, 5, 7]]


@pytest.fixture(scope="module")
def asked(llava_vlm):
    """A batch with answers, and four tokens of three of them."""
    batch, starts = llava_vlm.processor.batch_answers(IMAGES, PROMPTS, ANSWERS)
    sample_m, index_m = np.array([0, 0, 2, 3], np.int32), np.array([0, 3, 2, 1])
    target_m = np.array([ANSWERS[s][i] for s, i in zip(sample_m, index_m)], np.int32)
    return batch, Places(sample_m, (starts[sample_m] + index_m - 1).astype(np.int32), target_m)


@pytest.fixture(scope="module")
def heads(llava_vlm):
    return HeadAblation(llava_vlm.config, rows=16)


def probabilities(llava_vlm, params, asked):
    """P(token) of a plain teacher-forced pass."""
    batch, places = asked
    logits = np.asarray(llava_vlm.generator.logits(params, batch))
    rows = logits[places.sample_m, places.query_m]
    return np.asarray(jax.nn.softmax(rows, axis=-1))[np.arange(4), places.target_m]


@pytest.fixture(scope="module")
def drops(llava_vlm, heads, asked):
    return {s: heads.drops(llava_vlm.params, *asked, s) for s in ablation.SCOPES}


def without(params, layer, head):
    """Parameters with a head's rows of the output projection zeroed."""
    path = f"decoder/layers/{layer}/wo_nhd"
    return {**params, path: params[path].at[head].set(0)}


@pytest.mark.parametrize(("layer", "head"), [(0, 1), (1, 2), (2, 3)])
def test_all_rows_without_a_head_equal_zeroed_weights(llava_vlm, asked, drops, layer, head):
    whole = probabilities(llava_vlm, llava_vlm.params, asked)
    zeroed = probabilities(llava_vlm, without(llava_vlm.params, layer, head), asked)
    expected = whole - zeroed
    assert np.abs(expected).max() > 1e-5
    np.testing.assert_allclose(drops["all"][:, layer, head], expected, atol=3e-7, rtol=0)


def test_one_row_without_a_head_keeps_all_rows_before_it(llava_vlm, asked, drops):
    """Decoding by hand: vanilla prefill up to the row, and one step with zeroed weights."""
    batch, places = asked
    place = 1
    sample, query = int(places.sample_m[place]), int(places.query_m[place])
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[sample : sample + 1], batch)
    before = dataclasses.replace(
        one,
        tokens_bt=one.tokens_bt[:, :query],
        kinds_bt=one.kinds_bt[:, :query],
        positions_bt3=one.positions_bt3[:, :query],
        slots_bt=one.slots_bt[:, :query],
        lengths_b=jnp.asarray([query], jnp.int32),
        next_position_b=one.positions_bt3[:, query, 0],
    )
    graphdef = abstract(llava_vlm.config)[0]
    prefill = jax.jit(lambda params: merge(graphdef, params).prefill(before, 1)[1])
    step = jax.jit(
        lambda params, cache: merge(graphdef, params).step(one.tokens_bt[:, query], cache)[0]
    )
    cache = prefill(llava_vlm.params)
    p = lambda params: float(jax.nn.softmax(step(params, cache)[0])[places.target_m[place]])
    for layer, head in ((0, 1), (2, 3)):
        expected = p(llava_vlm.params) - p(without(llava_vlm.params, layer, head))
        assert abs(expected) > 1e-6
        assert drops["row"][place, layer, head] == pytest.approx(expected, abs=3e-7)


def test_the_scopes_differ_where_earlier_rows_matter(drops):
    """In the last layer no later row reads what a head wrote, so both are the same there."""
    row, everywhere = drops["row"], drops["all"]
    np.testing.assert_allclose(row[:, -1], everywhere[:, -1], atol=1e-6, rtol=0)
    assert np.abs(row[:, 0] - everywhere[:, 0]).max() > 1e-5


@pytest.mark.parametrize("scope", ablation.SCOPES)
def test_slopes_equal_central_differences(llava_vlm, asked, scope):
    """In float64; the gate is before the output projection."""
    batch, places = asked
    step = 1e-4
    with jax.enable_x64(True):
        wide = {
            path: jnp.asarray(np.asarray(array, np.float64))
            for path, array in llava_vlm.params.items()
        }
        images = dataclasses.replace(
            batch.images, patches_bgue=batch.images.patches_bgue.astype(np.float64)
        )
        wide_batch = dataclasses.replace(batch, images=images)
        heads = HeadAblation(llava_vlm.config, rows=4)
        slopes = heads.first_order(wide, wide_batch, places, scope)
        read, rest = heads._read_once(wide, wide_batch)
        runs = ablation._Runs.one_each(places)
        graphdef = abstract(llava_vlm.config)[0]
        probe = jax.jit(
            lambda gain: ablation._PROBABILITY[scope](graphdef, wide, rest, read, runs, gain)
        )
        for layer, head in ((0, 2), (2, 1)):
            gain = np.ones((4, 3, 4))
            ends = []
            for sign in (1, -1):
                gain[:, layer, head] = 1 + sign * step
                ends.append(np.asarray(probe(gain))[:, 0])
            expected = (ends[0] - ends[1]) / (2 * step)
            np.testing.assert_allclose(slopes[:, layer, head], expected, atol=1e-8, rtol=0)
            assert np.abs(expected).max() > 1e-5


def test_branching_equals_a_run_a_head(llava_vlm, asked, drops):
    plain = HeadAblation(llava_vlm.config, rows=7, branch=False)
    found = plain.drops(llava_vlm.params, *asked, "row")
    assert np.abs(found).max() > 1e-5
    np.testing.assert_allclose(found, drops["row"], atol=3e-7, rtol=0)


def test_branching_follows_rotary_positions_of_images(qwen_vlm):
    """The other family: m-rope, biases of queries and keys, windows."""
    batch, starts = qwen_vlm.processor.batch_answers(IMAGES, PROMPTS, ANSWERS)
    places = Places(
        np.array([0, 3], np.int32),
        (starts[[0, 3]] + 1).astype(np.int32),
        np.array([7, 7], np.int32),
    )
    found, expected = (
        HeadAblation(qwen_vlm.config, rows=13, branch=branch).drops(
            qwen_vlm.params, batch, places, "row"
        )
        for branch in (True, False)
    )
    assert np.abs(expected).max() > 1e-5
    np.testing.assert_allclose(found, expected, atol=3e-7, rtol=0)


def test_a_head_becomes_its_mean_as_a_bias_makes_it(llava_vlm, asked, heads):
    """By hand: the head's output rows are zero, and a bias puts W_O(mean) in their place."""
    batch, places = asked
    outputs = heads.outputs(llava_vlm.params, batch, places)
    mean_lnh = outputs.mean(0)
    found = heads.drops(llava_vlm.params, batch, places, "row", mean_lnh)
    zeroed = heads.drops(llava_vlm.params, batch, places, "row")
    config = llava_vlm.config
    biased = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, o_bias=True))
    zero = {
        f"decoder/layers/{layer}/bo_d": jnp.zeros(config.decoder.hidden_size)
        for layer in range(config.decoder.num_layers)
    }
    params = {**llava_vlm.params, **zero}
    plain = HeadAblation(biased, rows=16)
    read, rest = plain._read_once(params, batch)
    runs = ablation._Runs.one_each(places)
    ones = jnp.ones((len(places.sample_m), *plain.shape))
    probe = jax.jit(
        lambda own: ablation._row_probability(abstract(biased)[0], own, rest, read, runs, ones)[
            :, 0
        ]
    )
    for layer, head in ((0, 1), (1, 2), (2, 3)):
        bias_d = np.einsum(
            "h,hd->d", mean_lnh[layer, head], params[f"decoder/layers/{layer}/wo_nhd"][head]
        )
        swapped = without(params, layer, head) | {
            f"decoder/layers/{layer}/bo_d": jnp.asarray(bias_d)
        }
        expected = probe(params) - probe(swapped)
        np.testing.assert_allclose(found[:, layer, head], expected, atol=3e-7, rtol=0)
    assert np.abs(found - zeroed).max() > 1e-5


def test_the_mean_of_one_row_is_that_row(llava_vlm, asked, heads):
    """A head that becomes what it is changes nothing."""
    batch, places = asked
    one = Places(places.sample_m[:1], places.query_m[:1], places.target_m[:1])
    own = heads.outputs(llava_vlm.params, batch, one)[0]
    found = heads.drops(llava_vlm.params, batch, one, "row", own)
    np.testing.assert_allclose(found, 0, atol=1e-7)
    with pytest.raises(ValueError, match="in scope 'row' alone"):
        heads.drops(llava_vlm.params, batch, one, "all", own)
