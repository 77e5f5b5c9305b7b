"""Each module alone against its torch counterpart, fed with the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.reference import FEATURES_BAR, IMAGES, LOGITS_BAR
from vlm_jax import models
from vlm_jax.attention import Segment, Visibility
from vlm_jax.batch import Kind


@pytest.fixture(scope="module")
def model(vlm):
    """Calls a method of the model under jit with its parameters."""
    graphdef, _ = models.abstract(vlm.config)

    def call(method, *args):
        return jax.device_get(
            jax.jit(lambda params, *a: method(models.merge(graphdef, params), *a))(
                vlm.params, *args
            )
        )

    return call


def _their_tower(reference, images):
    """Torch's features of one sample's images before the projector, windows in its order."""
    inputs, tower = reference.pixels(images), reference.model.model
    kept = []
    projector = tower.visual.merger if hasattr(tower, "visual") else tower.multi_modal_projector
    hook = projector.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    with torch.no_grad():
        pooled = tower.get_image_features(**inputs, return_dict=True).pooler_output
    hook.remove()
    width = kept[0].shape[-1]
    return kept[0].reshape(-1, width).numpy(), torch.cat(list(pooled)).numpy()


def test_vision_features(model, vlm, reference, read):
    images = jax.tree.map(jnp.asarray, read.batch.images)
    features = model(lambda m, i: m.vision(i), images)
    tokens = model(lambda m, i: m.image_features(i), images)
    for row in (0, 1, 3):
        theirs, projected = _their_tower(reference, IMAGES[row])
        if vlm.config.family == "llava":
            ours = features[row, : len(IMAGES[row])].reshape(theirs.shape)
        else:
            ours = features[row][read.batch.images.ids_bgu[row] >= 0]
        assert ours.shape == theirs.shape
        assert 0.3 < theirs.std() < 3
        np.testing.assert_allclose(ours, theirs, atol=FEATURES_BAR, rtol=0)
        picked = read.batch.slots_bt[row][read.batch.kinds_bt[row] == Kind.IMAGE]
        np.testing.assert_allclose(tokens[row, picked], projected, atol=FEATURES_BAR, rtol=0)


def test_projector(model, vlm, reference, rng):
    width = vlm.config.vision.hidden_size
    features = rng.normal(size=(2, 3, 8, width)).astype(np.float32)
    ours = model(lambda m, x: m.projector(x), features)
    torch_model = reference.model.model
    with torch.no_grad():
        if vlm.config.family == "llava":
            theirs = torch_model.multi_modal_projector(torch.from_numpy(features).flatten(1, 2))
        else:
            theirs = torch_model.visual.merger(torch.from_numpy(features).reshape(-1, width))
    np.testing.assert_allclose(ours, theirs.numpy().reshape(ours.shape), atol=FEATURES_BAR, rtol=0)


def test_decoder(model, vlm, reference, rng):
    """Random embeddings and, for m-rope, three unrelated position axes."""
    length, width = 21, vlm.config.decoder.hidden_size
    embeds = rng.normal(size=(2, length, width)).astype(np.float32)
    positions = np.broadcast_to(np.arange(length)[None, :, None], (2, length, 3)).astype(np.int32)
    if vlm.config.decoder.mrope_section is not None:
        positions = rng.integers(0, 40, (2, length, 3)).astype(np.int32)
    order = np.broadcast_to(np.arange(length, dtype=np.int32), (2, length))

    def decode(m, x, positions, order):
        seen = Visibility(order=order)
        hidden = m.decoder(x, positions, seen, lambda _, k, v: [Segment(k, v, seen)])
        return m.decoder.logits(hidden)

    ours = model(decode, embeds, positions, order)
    ids = torch.from_numpy(positions).long()
    ids = ids[..., 0] if vlm.config.family == "llava" else ids.permute(2, 0, 1)
    with torch.no_grad():
        hidden = reference.model.model.language_model(
            inputs_embeds=torch.from_numpy(embeds), position_ids=ids
        ).last_hidden_state
        theirs = reference.model.lm_head(hidden).numpy()
    np.testing.assert_allclose(ours, theirs, atol=LOGITS_BAR, rtol=0)
    np.testing.assert_array_equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.fixture
def rng():
    return np.random.default_rng(3)
