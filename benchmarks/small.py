"""The small models that the rows run: random weights, a decoder of 12 layers of width 512."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vlm_jax
from vlm_jax.attention.steering import Steering
from vlm_jax.batch import Batch, Kind
from vlm_jax.config import VLMConfig
from vlm_jax.decoding import Generator
from vlm_jax.families import parse_config
from vlm_jax.models import Params, init
from vlm_jax.parallel import make_mesh, replicated
from vlm_jax.steering.methods.adhh import adhh
from vlm_jax.steering.methods.air import air
from vlm_jax.steering.methods.air_star import air_star
from vlm_jax.steering.methods.functional_heads import functional_heads

TEXT: dict[str, int] = dict(
    hidden_size=512,
    num_hidden_layers=12,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    intermediate_size=1536,
    vocab_size=32000,
)
"""220 MB of float32 weights a step: more than any cache holds."""

QUICK_TEXT: dict[str, int] = dict(
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=384,
    vocab_size=1000,
)
"""A model that shows whether a row runs at all."""

TOWER: dict[str, int] = dict(
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=1024,
    image_size=336,
)
"""576 image tokens, as LLaVA-1.5 has."""


def text_of(quick: bool, **changes: int) -> dict[str, int]:
    """The decoder's sizes; changes are for the full size only."""
    return dict(QUICK_TEXT) if quick else {**TEXT, **changes}


@dataclasses.dataclass(frozen=True)
class Bare:
    """A model without words and pixels: its prompts are token ids."""

    config: VLMConfig
    params: Params
    generator: Generator

    def put(self, tree: Any) -> Any:
        """Places arrays on the devices, as generation does."""
        return jax.device_put(tree, replicated(self.generator.mesh))


def bare(text: dict[str, int]) -> Bare:
    """A random decoder in float32; no image ever reaches its vision tower."""
    root = {
        "model_type": "llava",
        "image_token_index": 3,
        "text_config": {"model_type": "llama", **text},
        "vision_config": dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                              intermediate_size=64, image_size=28, patch_size=14),
    }  # fmt: skip
    config = parse_config(root)
    generator = Generator(config, make_mesh())
    params = jax.device_put(init(config, 0), replicated(generator.mesh))
    return Bare(config, params, generator)


def prompts(config: VLMConfig, rows: int, length: int, seed: int = 0) -> Batch:
    """Random prompts of one length: 16 system tokens, image tokens up to 3/5, text.

    Image tokens are embedded from the table: the tower's work is not part of a decoder's row.
    """
    rng = np.random.default_rng(seed)
    kinds = np.full((rows, length), Kind.TEXT, np.int8)
    kinds[:, : 3 * length // 5] = Kind.IMAGE
    kinds[:, : min(16, length // 4)] = Kind.SYSTEM
    places = np.arange(length, dtype=np.int32)
    return Batch(
        tokens_bt=rng.integers(4, config.decoder.vocab_size, (rows, length), dtype=np.int32),
        kinds_bt=kinds,
        positions_bt3=np.broadcast_to(places[None, :, None], (rows, length, 3)).copy(),
        slots_bt=np.zeros((rows, length), np.int32),
        lengths_b=np.full(rows, length, np.int32),
        next_position_b=np.full(rows, length, np.int32),
        images=None,
    )


def functional(config: VLMConfig, rows: str = "q") -> Steering:
    """Functional heads: every layer may hold heads of either class."""
    return functional_heads(
        config,
        reasoning_first_layer=0,
        reasoning_to=0.5,
        reasoning_gain=1.3,
        perception_last_layer=config.decoder.num_layers - 1,
        perception_from=0.6,
        perception_gain=1.2,
        rows=rows,
    )


def decode_methods(config: VLMConfig) -> dict[str, Steering]:
    """The methods whose decode rows are timed, in all heads: no fewer would be faster."""
    return {
        "functional heads": functional(config),
        "AIR": air(config, heads="all"),
        "AD-HH": adhh(config, heads="all"),
    }


def prefill_methods(config: VLMConfig) -> dict[str, Steering]:
    """The methods whose prompts are timed; AIR* scales logits and projects every row causally."""
    return {
        "functional heads": functional(config),
        "AIR": air(config, heads="all"),
        "AIR* (projection)": air_star(
            config,
            heads="all",
            rebalance_layers=(0, config.decoder.num_layers - 1),
            projection_layers=(0, config.decoder.num_layers - 1),
        ),
    }


def folder_model(
    folder: pathlib.Path, text: dict[str, int], vision: dict[str, int] | None = None
) -> vlm_jax.VLM:
    """Writes a LLaVA folder with random weights and loads it."""
    from tests import tiny

    tiny.llava(folder, text=dict(text), vision=dict(vision or {}))
    return vlm_jax.load(folder)


@contextlib.contextmanager
def scratch_model(text: dict[str, int], vision: dict[str, int]) -> Iterator[vlm_jax.VLM]:
    """Yields the model of such a folder, which is there meanwhile."""
    with tempfile.TemporaryDirectory() as scratch:
        yield folder_model(pathlib.Path(scratch) / "model", text, vision)


def weight_bytes(config: VLMConfig, params: Params) -> int:
    """Bytes of decoder weights that one decode step reads: layers, final norm and head.

    One row of the embedding table is read a sample; a tied table is the head, and counted.
    """
    tied = config.decoder.tie_embeddings
    return sum(
        array.nbytes
        for path, array in params.items()
        if path.startswith("decoder/") and (tied or not path.endswith("embed_vd"))
    )


def kv_bytes(config: VLMConfig, params: Params) -> int:
    """Bytes of keys and values of one token in all layers."""
    decoder = config.decoder
    width = jnp.dtype(params["decoder/embed_vd"].dtype).itemsize
    return 2 * decoder.num_layers * decoder.num_kv_heads * decoder.head_dim * width
