"""What programs would be given: shapes of weights, prompts and images, with their shardings."""

import dataclasses
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vlm_jax.batch import Batch
from vlm_jax.config import AnyResConfig, VLMConfig
from vlm_jax.families import find
from vlm_jax.models import abstract
from vlm_jax.parallel import param_formats, param_shardings
from vlm_jax.processing.buckets import bucket
from vlm_jax.processing.cutters import Cutter
from vlm_jax.processing.samples import shapes

SYSTEM_TOKENS = 32
"""Tokens that a template puts before the first image, at most, of the families that there are."""


@dataclasses.dataclass(frozen=True)
class PromptSizes:
    """Static sizes of a batch of prompts, as the loop of answers buckets them.

    Attributes:
        image_tokens: of a prompt's images.
        length: tokens of a whole prompt.
        prefix, suffix: tokens of its two parts, where prompts share what comes before their text.
        groups: groups of patches of a prompt.
        words: of a question for a Q-Former that reads it.
    """

    image_tokens: int
    length: int
    prefix: int
    suffix: int
    groups: int
    words: int

    @classmethod
    def of(
        cls, config: VLMConfig, cut: Cutter, images: int, size: Sequence[int], text: int, room: int
    ) -> "PromptSizes":
        """Returns the sizes of prompts of some images and `text` tokens besides.

        Args:
            config: the architecture.
            cut: what cuts its images.
            images: of a prompt.
            size: width and height of each in pixels.
            text: tokens of a prompt that are no image's.
            room: tokens of an answer.
        """
        extent = cut.among(images).extent(*size) if images else None
        tokens = 0 if extent is None else extent.tokens * images
        limit = max(config.decoder.max_positions - room, 1)
        fit = lambda length: min(bucket(length), limit)
        former = config.qformer
        return cls(
            image_tokens=tokens,
            length=fit(tokens + text),
            prefix=fit(tokens + min(SYSTEM_TOKENS, text)),
            suffix=fit(text),
            groups=0 if extent is None else bucket(extent.groups * images, cut.group_multiple),
            words=0 if former is None else min(bucket(text), former.max_positions),
        )


def cutter(folder: pathlib.Path, config: VLMConfig) -> Cutter:
    """Returns what cuts a model's images, by the folder's image processor.

    Without one, images are of the tower's sizes, within the released models' limits of pixels.
    """
    family = find(config.family)
    named = ("preprocessor_config.json", "processor_config.json")
    if any((folder / name).is_file() for name in named):
        return family.cutter(config, family.image_processor(folder))
    vision, tiles = config.vision, config.tiles
    sizes = {"patch_size": vision.patch_size}
    for name in ("merge_size", "temporal_patch_size"):
        sizes[name] = getattr(vision, name, 1)
    released = types.SimpleNamespace(
        **sizes,
        size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384},
        image_grid_pinpoints=tiles.pinpoints if isinstance(tiles, AnyResConfig) else None,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        in_token_limit=4096,
        merge_kernel_size=(2, 2),
        pad_input=True,
    )
    return family.cutter(config, released)


def batch_shapes(rows: int, length: int, sizes: PromptSizes, cut: Cutter, images: bool) -> Batch:
    """Returns the shapes of a batch, with or without the images of its prompts."""
    return shapes(rows, length, sizes.groups if images else 0, sizes.words if images else 0, cut)


def param_shapes(config: VLMConfig, mesh: Mesh, dtype: str) -> dict[str, Any]:
    """Returns the shape, dtype, sharding and order of dims of every parameter."""
    found = abstract(config)[1]
    formats = param_formats(param_shardings(found, mesh))
    kind = jnp.dtype(dtype)
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, kind, sharding=formats[path])
        for path, leaf in found.items()
    }


def result_shapes(
    program: Any, args: Sequence[Any], static: Mapping[str, Any], config: VLMConfig, mesh: Mesh
) -> Any:
    """Returns what a program will return, as the partitioner lays it out; compiles nothing.

    Keys and values are split by rows and key heads, everything else by rows, where these divide.
    """
    data, model, heads = mesh.shape["data"], mesh.shape["model"], config.decoder.num_kv_heads

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        axes: list[str | None] = [None] * leaf.ndim
        if leaf.ndim and leaf.shape[0] % data == 0:
            axes[0] = "data"
        if leaf.ndim == 4 and leaf.shape[1] == heads and heads % model == 0:
            axes[1] = "model"
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding, weak_type=leaf.weak_type
        )

    return jax.tree.map(place, jax.eval_shape(lambda *a: program(*a, **static), *args))
