"""Models that say how well texts fit an image, from HF folders: CLIP, SigLIP, BLIP.

A file `<model_type>.py` here, or another package's entry point `<model_type>` of the group
`vlm_jax.matchers`, is the model of that `model_type`: a subclass of `Matcher`, the only one of its
module.

    matcher = open_matcher("models/siglip-so400m-patch14-384")
    matcher(["A cat.", "A dog."], "photo.jpg")    # a number a text
"""

import os

from vlm_jax.foreign import read_json
from vlm_jax.hub import resolve
from vlm_jax.matching.base import Matcher, ModelType
from vlm_jax.plugins import Plugins

MATCHERS = Plugins[type[Matcher]](
    __name__, "vlm_jax.matchers", "matching model", but=("base", "dual", "words")
)

__all__ = ["MATCHERS", "Matcher", "open_matcher"]


def open_matcher(folder: str | os.PathLike[str]) -> Matcher:
    """Returns the model of a folder, or of the hub (`vlm_jax.hub.resolve`).

    Raises:
        CheckpointError: the folder's files are not what they should be.
        ConfigError: its model is none that is known, or a size is out of range.
    """
    path = resolve(folder)
    kind = read_json(path / "config.json", ModelType).model_type
    return MATCHERS.find(kind)(path)
