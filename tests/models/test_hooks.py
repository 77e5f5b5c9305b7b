"""Hooks: what they keep equals the reference's, what they change is what was asked, or nothing."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.reference import IMAGES, PROMPTS
from vlm_jax.attention import Segment, Visibility
from vlm_jax.models import Hooks, Watch, Watched, abstract, merge
from vlm_jax.models.layers import rms_norm

PROMPT = 0


@pytest.fixture(scope="module")
def batch(llava_vlm):
    return llava_vlm.processor.batch([IMAGES[PROMPT]], [PROMPTS[PROMPT]])


def run(vlm, hooks: Callable[[], Hooks] | None, x_btd, params=None):
    """Hidden states of the decoder over some embeddings, and what the hooks kept."""
    made = None if hooks is None else hooks()
    places = jnp.broadcast_to(jnp.arange(x_btd.shape[1], dtype=jnp.int32), x_btd.shape[:2])
    hidden = merge(abstract(vlm.config)[0], params or vlm.params).decoder(
        x_btd,
        jnp.broadcast_to(places[..., None], (*places.shape, 3)),
        Visibility(order=places),
        lambda layer, k, v: [Segment(k, v, Visibility(order=places))],
        causal=True,
        hooks=made,
    )
    return hidden, Watched() if made is None else made.watched()


@pytest.fixture(scope="module")
def x_btd(llava_vlm):
    width = llava_vlm.config.decoder.hidden_size
    return jnp.asarray(np.random.default_rng(0).standard_normal((2, 7, width)), jnp.float32)


def test_hooks_that_do_nothing_compile_to_nothing(llava_vlm, x_btd):
    lower = lambda hooks: (
        jax.jit(lambda params, x: run(llava_vlm, hooks, x, params)[0])
        .lower(llava_vlm.params, x_btd)
        .as_text()
    )
    vanilla = lower(None)
    assert lower(Hooks) == vanilla
    assert lower(lambda: Hooks(residual=lambda layer, x: x)) == vanilla
    assert lower(lambda: Hooks(residual=lambda layer, x: 2 * x)) != vanilla


def test_what_is_watched_is_the_reference_s(llava_vlm, llava_reference, batch):
    """Hidden states and weights in the last row of a prompt, and of the token after it."""
    vlm, depth = llava_vlm, llava_vlm.config.decoder.num_layers
    watch = Watch(hidden=tuple(range(depth)), weights=(1, depth - 1), masses=True)
    graphdef = abstract(vlm.config)[0]

    @jax.jit
    def read(params, batch):
        model = merge(graphdef, params)
        _, cache, first = model.prefill(batch, 4, watch=watch)
        _, _, then = model.step(jnp.full(batch.size, 7, jnp.int32), cache, watch=watch)
        return first, then

    length = int(batch.lengths_b[0])
    ids = [*np.asarray(batch.tokens_bt)[0, :length].tolist(), 7]
    import torch

    llava_reference._forget()
    llava_reference.model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = llava_reference.model(
            **llava_reference.inputs(ids, IMAGES[PROMPT]),
            output_hidden_states=True,
            output_attentions=True,
        )
    llava_reference.model.set_attn_implementation("sdpa")
    for row, watched in ((length - 1, read(vlm.params, batch)[0]),
                         (length, read(vlm.params, batch)[1])):  # fmt: skip
        hidden = np.stack([level[0, row].numpy() for level in expected.hidden_states[:depth]])
        np.testing.assert_allclose(watched.hidden_bjd[0], hidden, atol=2e-5)
        # Padding between the prompt and the slots of new tokens has weight 0.
        padded = batch.tokens_bt.shape[1]
        weights = np.asarray(watched.weights_bjs[0])
        own = [*range(length), padded][: row + 1]
        for found, layer in zip(weights, watch.weights):
            wanted = expected.attentions[layer][0, :, row, : row + 1].max(0).values.numpy()
            np.testing.assert_allclose(found[own], wanted, atol=2e-6)
            assert np.delete(found, own).max(initial=0.0) == 0
        masses = watched.readings
        total = masses.image_bn + masses.text_bn + masses.system_bn
        np.testing.assert_allclose(total[0], 1, atol=1e-6)


def test_a_residual_hook_changes_what_later_layers_read(llava_vlm, x_btd):
    """Put after the last layer, a change is read by the final norm alone."""
    vlm, depth = llava_vlm, llava_vlm.config.decoder.num_layers
    shift = lambda layer, x: x + 1.0 if layer == depth - 1 else x
    levels = Watch(hidden=(depth - 1, depth))
    (_, before), (hidden, after) = (
        run(vlm, lambda residual=residual: Hooks(residual=residual, watch=levels), x_btd)
        for residual in (None, shift)
    )
    np.testing.assert_array_equal(before.hidden_bjd[:, 0], after.hidden_bjd[:, 0])
    np.testing.assert_allclose(before.hidden_bjd[:, 1] + 1, after.hidden_bjd[:, 1], atol=1e-6)
    normed = rms_norm(
        after.hidden_bjd[:, 1], vlm.params["decoder/final_norm_d"], vlm.config.decoder.rms_norm_eps
    )
    np.testing.assert_allclose(hidden[:, -1], normed, atol=1e-6)
