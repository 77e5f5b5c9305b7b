"""Solves for a projector that says what each patch shows in the words of a released decoder.

Training starts from there: a patch of a cup reads as the decoder's own embedding of " cup", one of
a kitchen's floor as that of " kitchen". Scenes are without priors, so that none is learned here.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vlm_jax import models
from vlm_jax.models.layers import ACTIVATIONS
from vlm_jax.testbed import pixels
from vlm_jax.testbed.architecture import get_family, model_config
from vlm_jax.testbed.recipe import Recipe
from vlm_jax.testbed.scenes import CLASSES, SCENE_TYPES, Scenes, draw_scenes

Params = dict[str, jax.Array]

_BATCH = 256
_RIDGE = 1e-6  # of the mean square of the hidden features


def align(recipe: Recipe, seed: int, params: Params, tokenizer) -> Params:
    """Returns the projector's second map that fits the embeddings of what patches show best.

    Least squares over the hidden features that its first map, as it was drawn, makes of them: one
    solution, no steps.

    Args:
        recipe: says how many scenes.
        seed: of the scenes.
        params: of the model; its tower is trained.
        tokenizer: of the decoder.
    """
    config = model_config(recipe.family)
    graphdef, _ = models.abstract(config)
    network = {k: v for k, v in params.items() if not k.startswith("labels/")}

    @jax.jit
    def hidden(network: Params, images) -> jax.Array:
        features = models.merge(graphdef, network).vision(images)
        flat = features.reshape(-1, features.shape[-1])
        first = flat @ network["projector/w1_fe"].T + network["projector/b1_f"]
        return ACTIVATIONS[config.projector_act](first)

    words_cd = word_embeddings(np.asarray(params["decoder/embed_vd"]), tokenizer)
    squares = products = 0.0
    for start in range(0, recipe.align_scenes, _BATCH):
        indices = np.arange(start, min(start + _BATCH, recipe.align_scenes))
        scenes = draw_scenes("uniform", "train", seed, indices, recipe.scenes)
        images, _ = pixels.cut_images(scenes.images, config)
        read = np.asarray(hidden(network, images), np.float64)
        read = np.concatenate([read, np.ones((len(read), 1))], axis=1)  # the bias
        shown = patch_words(scenes, get_family(recipe.family).cell)
        squares = squares + read.T @ read
        products = products + read.T @ shown.reshape(-1, shown.shape[-1])
    assert isinstance(squares, np.ndarray)
    ridge = _RIDGE * np.trace(squares) / len(squares)
    solved = np.linalg.solve(squares + ridge * np.eye(len(squares)), products @ words_cd)
    return {
        "projector/w2_df": jnp.asarray(solved[:-1].T, jnp.float32),
        "projector/b2_d": jnp.asarray(solved[-1], jnp.float32),
    }


def word_embeddings(embed_vd: Float[np.ndarray, "V D"], tokenizer) -> Float[np.ndarray, "C D"]:
    """Returns the embeddings of classes and scene types; of several tokens their mean."""
    encode = lambda word: tokenizer.encode(" " + word, add_special_tokens=False)
    return np.stack([embed_vd[encode(word)].mean(0) for word in (*CLASSES, *SCENE_TYPES)])


def patch_words(scenes: Scenes, cell: int) -> Float[np.ndarray, "n patches C"]:
    """Returns the shares of classes and scene types in each patch; they sum to 1.

    A patch with a cup and a fork is half of each; one that shows nothing is its scene's floor.
    """
    shown = scenes.patch_labels(cell)
    floor = np.eye(len(SCENE_TYPES), dtype=bool)[scenes.types][:, None] & ~shown.any(
        -1, keepdims=True
    )
    shares = np.concatenate([shown, floor], axis=-1).astype(np.float64)
    return shares / shares.sum(-1, keepdims=True)
