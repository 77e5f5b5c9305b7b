"""Base class of matching models, and the reader of their weights."""

import pathlib
import re
from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from typing import Any

import einops
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import safetensors
from flax import nnx
from jaxtyping import Array, Float, Int

from vlm_jax.config import VitConfig
from vlm_jax.errors import CheckpointError
from vlm_jax.families.base import Row
from vlm_jax.foreign import open_regular, plain_name, read_json
from vlm_jax.models.network import split
from vlm_jax.processing.cutters.square import Square
from vlm_jax.processing.folder import read_image_processor, read_tokenizer
from vlm_jax.processing.images import (
    MAX_IMAGE_PIXELS,
    ImageSource,
    check_pixels,
    describe,
    image_key,
    load_image,
)
from vlm_jax.processing.reader import refusals

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class ModelType(msgspec.Struct):
    """The field of `config.json` that says what a model is."""

    model_type: str


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


class Matcher:
    """How well texts fit an image, by a model of a folder.

    Args:
        folder: an HF folder: config.json, safetensors, tokenizer and image processor.

    Raises:
        CheckpointError: a file is missing, broken or of another model.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.tokenizer = read_tokenizer(folder)
        self.image_processor = read_image_processor(folder)
        self._last: tuple[Hashable, Any] = (None, None)

    def __call__(self, texts: Sequence[str], image: ImageSource) -> list[float]:
        """Returns a number for each text, the larger the better it fits."""
        raise NotImplementedError

    def once(self, image: ImageSource, make: Callable[[], Any]) -> Any:
        """Returns what is made of an image; of the image before, it is there already."""
        key = image_key(image, "The image")
        if key != self._last[0]:
            self._last = key, make()
        return self._last[1]

    def patches(self, image: ImageSource, tower: VitConfig) -> Float[Array, "1 1 P E"]:
        """Returns the normalised patches of an image, row by row.

        Args:
            image: as the processor takes it.
            tower: what sees them.

        Raises:
            PromptError: the image cannot be read, or would be too large on its way.
            CheckpointError: the image processor makes images of another size.
        """
        loaded, cut = load_image(image, "The image"), Square(tower, self.image_processor)
        name = f"The image ({describe(image)})"
        check_pixels(name, "becomes", *cut.resized(*loaded.size), MAX_IMAGE_PIXELS)
        with refusals("The image", image, *loaded.size):
            return jnp.asarray(cut(loaded).patches_pe)[None, None]

    def checked(self, ids: Int[np.ndarray, "B T"], vocab: int) -> Int[np.ndarray, "B T"]:
        """Returns ids of words, which the model must have.

        Raises:
            CheckpointError: the tokenizer makes one that is not below `vocab`.
        """
        if ids.size and ids.max() >= vocab:
            raise CheckpointError(
                f"{self.folder}: the tokenizer makes a token {ids.max()}, but config.json has a "
                f"vocab_size of {vocab}; they are of different models."
            )
        return ids


def few_rows(count: int) -> int:
    """Returns the rows that so many texts are padded to: of few sizes, each compiled once."""
    return max(4, 1 << (count - 1).bit_length())


def unit(features: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
    """Returns features of length 1, whose products are cosines."""
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def read_params(
    folder: pathlib.Path,
    make: Callable[[], nnx.Module],
    rows: Sequence[Row],
    parts: Mapping[str, tuple[int, int]],
    config: Any = None,
) -> tuple[nnx.GraphDef, dict[str, jax.Array]]:
    """Returns a model's definition and its float32 parameters by path.

    Args:
        folder: holds the safetensors.
        make: makes the model; called for shapes alone.
        rows: names on disk and our paths.
        parts: what paths begin with -> its layers and its heads.
        config: what the rows' `when` is asked about.

    Raises:
        CheckpointError: a tensor is missing, of another shape or not finite, naming it.
    """
    graphdef, shapes = split(nnx.eval_shape(make))  # type: ignore[arg-type]
    stored, params = dict(read_tensors(folder)), {}
    for row in rows:
        layers, heads = parts.get(row.path.split("/")[0], (0, 0))
        sizes = {"n": heads, "s": 3}
        grouped = {
            name: sizes[name] for name in "ns" if re.search(rf"\([^)]*\b{name}\b", row.pattern)
        }
        for layer in range(layers) if "{i}" in row.path else [0]:
            if row.when is not None and not row.when(config, layer):
                continue
            name, path = (text.replace("{i}", str(layer)) for text in (row.name, row.path))
            if name not in stored:
                raise CheckpointError(f"{folder} lacks the tensor {name}.")
            try:
                array = einops.rearrange(stored[name], row.pattern, **grouped)
            except einops.EinopsError:
                array = stored[name]
            if array.shape != shapes[path].shape:
                raise CheckpointError(
                    f"{folder}: the tensor {name} of shape {stored[name].shape} does not fit "
                    "config.json."
                )
            if not np.isfinite(array).all():
                raise CheckpointError(f"{folder}: the tensor {name} is not finite.")
            params[path] = jnp.asarray(array)
    assert params.keys() == shapes.keys(), params.keys() ^ shapes.keys()
    return graphdef, params


def read_tensors(
    folder: pathlib.Path, names: Container[str] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors of a folder with their names, one at a time, as float32.

    Args:
        folder: holds the safetensors.
        names: of those that are wanted; all by default.

    Raises:
        CheckpointError: there are none, or a file is missing or broken.
    """
    files = [SINGLE]
    if not (folder / SINGLE).exists():
        if not (folder / INDEX).exists():
            raise CheckpointError(f"{folder} has no {SINGLE}.")
        named = read_json(folder / INDEX, _Index).weight_map.values()
        files = [
            plain_name(one, str(folder / INDEX), ".safetensors") for one in dict.fromkeys(named)
        ]
    for name in files:
        with open_regular(folder / name):
            pass
        try:
            with safetensors.safe_open(folder / name, "flax") as file:
                for key in file.keys():  # noqa: SIM118 (a file is no mapping)
                    if names is None or key in names:
                        yield key, np.asarray(file.get_tensor(key), np.float32)
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"{folder / name} cannot be read: {error}.") from None
