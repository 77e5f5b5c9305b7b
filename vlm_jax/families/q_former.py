"""The EVA tower and the Q-Former, which InstructBLIP and MiniGPT-4 share: fields and letters."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import msgspec
import numpy as np

from vlm_jax.config import QFormerConfig, VitConfig, VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.families.base import Family, Row
from vlm_jax.families.decoders import decoder_letters
from vlm_jax.families.fields import (
    Count,
    Depth,
    Epsilon,
    activation,
    divide,
    one_of,
    read,
)
from vlm_jax.families.vit import Clip, vit, vit_letters, vit_of


class Eva(Clip, kw_only=True):
    """Fields of an EVA ViT-g/14, with transformers' defaults."""

    hidden_size: Count = 1408
    intermediate_size: Count = 6144
    num_hidden_layers: Depth = 39
    num_attention_heads: Count = 16
    patch_size: Count = 14
    hidden_act: str = "gelu"
    layer_norm_eps: Epsilon = 1e-6
    qkv_bias: bool = True


class Bert(msgspec.Struct, kw_only=True):
    """Fields of a Q-Former, with transformers' defaults."""

    vocab_size: Count = 30522
    hidden_size: Count = 768
    intermediate_size: Count = 3072
    num_hidden_layers: Depth = 12
    num_attention_heads: Count = 12
    max_position_embeddings: Count = 512
    layer_norm_eps: Epsilon = 1e-12
    hidden_act: str = "gelu"
    position_embedding_type: str = "absolute"
    cross_attention_frequency: Count = 2
    encoder_hidden_size: Count = 1408


def eva(fields: Mapping[str, Any], where: str, **values: Any) -> VitConfig:
    """Returns an EVA tower, all of whose features are read, the class token's too.

    Args:
        fields: the `vision_config`.
        where: what to call it in errors.
        values: of `VitConfig`.
    """
    tower = read(fields, Eva, where)
    values = (
        dict(biased="qkv" if tower.qkv_bias else "", post_norm_eps=tower.layer_norm_eps) | values
    )
    return vit(
        tower,
        where,
        keep_class_token=True,
        patch_bias=True,
        post_norm=True,
        fused_qkv=True,
        **{"biased": "qkv" if tower.qkv_bias else ""} | values,
    )


def q_former(
    fields: Mapping[str, Any], queries: int, vision: VitConfig, where: str, *, reads_text: bool
) -> QFormerConfig:
    """Returns a Q-Former.

    Args:
        fields: the `qformer_config`.
        queries: number of its queries.
        vision: the tower that it reads.
        where: what to call the fields in errors.
        reads_text: whether it reads the question too.

    Raises:
        ConfigError: it is one of another kind, or of another tower.
    """
    bert = read(fields, Bert, where)
    one_of(bert.position_embedding_type, ("absolute",), "position_embedding_type", where)
    if bert.encoder_hidden_size != vision.hidden_size:
        raise ConfigError(
            f"{where}: encoder_hidden_size {bert.encoder_hidden_size} must be the hidden_size of "
            f"the vision tower, {vision.hidden_size}."
        )
    return bert_config(
        bert,
        where,
        encoder_size=bert.encoder_hidden_size,
        num_queries=queries,
        cross_every=bert.cross_attention_frequency,
        vocab_size=bert.vocab_size if reads_text else 0,
        max_positions=bert.max_position_embeddings if reads_text else 0,
    )


def bert_config(bert: Bert, where: str, **values: Any) -> QFormerConfig:
    """Returns a Q-Former whose blocks are those of a BERT.

    Args:
        bert: says the blocks.
        where: what to call its fields in errors.
        values: of `QFormerConfig`, all that blocks do not say.

    Raises:
        ConfigError: a field is out of range.
    """
    divide(bert.hidden_size, bert.num_attention_heads, where)
    return QFormerConfig(
        hidden_size=bert.hidden_size,
        intermediate_size=bert.intermediate_size,
        num_layers=bert.num_hidden_layers,
        num_heads=bert.num_attention_heads,
        hidden_act=activation(bert.hidden_act, "hidden_act", where),
        layer_norm_eps=bert.layer_norm_eps,
        **values,
    )


def q_former_of(config: VLMConfig) -> QFormerConfig:
    """Returns the Q-Former of a model that has one."""
    return cast(QFormerConfig, config.qformer)


def reads_image(config: VLMConfig, layer: int) -> bool:
    """Whether the queries read the image in a layer of the Q-Former."""
    return layer % q_former_of(config).cross_every == 0


def attention_rows(name: str, path: str, inner: str, letter: str, when: Any = None) -> list[Row]:
    """Returns the rows of an attention of a BERT.

    Args:
        name, path: what its names and our paths begin with.
        inner: what its maps of queries, keys and values begin with, behind that.
        letter: width of what it reads, "d" or "e".
        when: as of `Row`.
    """
    wide = f"(n h) {letter} -> {letter} n h"
    out = name + "output."
    return [
        Row(name + inner + "query.weight", path + "wq_dnh", "(n h) d -> d n h", when),
        Row(name + inner + "query.bias", path + "bq_nh", "(n h) -> n h", when),
        Row(name + inner + "key.weight", path + f"wk_{letter}nh", wide, when),
        Row(name + inner + "key.bias", path + "bk_nh", "(n h) -> n h", when),
        Row(name + inner + "value.weight", path + f"wv_{letter}nh", wide, when),
        Row(name + inner + "value.bias", path + "bv_nh", "(n h) -> n h", when),
        Row(out + "dense.weight", path + "wo_nhd", "d (n h) -> n h d", when),
        Row(out + "dense.bias", path + "bo_d", "d -> d", when),
        Row(out + "LayerNorm.weight", path + "norm_scale_d", "d -> d", when),
        Row(out + "LayerNorm.bias", path + "norm_bias_d", "d -> d", when),
    ]


def mlp_rows(first: str, second: str, path: str) -> list[Row]:
    """Returns the rows of an MLP of a BERT, by what the names of its two parts begin with."""
    return [
        Row(first + "dense.weight", path + "w_up_fd", "f d -> f d"),
        Row(first + "dense.bias", path + "b_up_f", "f -> f"),
        Row(second + "dense.weight", path + "w_down_df", "d f -> d f"),
        Row(second + "dense.bias", path + "b_down_d", "d -> d"),
        Row(second + "LayerNorm.weight", path + "norm_scale_d", "d -> d"),
        Row(second + "LayerNorm.bias", path + "norm_bias_d", "d -> d"),
    ]


class QFormerFamily(Family):
    """What families of an EVA tower, a Q-Former and one linear map share."""

    def tower(self, config, rngs):
        """Returns an EVA tower."""
        from vlm_jax.models.vit import Vit

        return Vit(vit_of(config), rngs)

    def connector(self, config, rngs):
        """Returns one linear map."""
        from vlm_jax.models.projector import LinearProjector

        return LinearProjector(rngs, q_former_of(config).hidden_size, config.decoder.hidden_size)

    def image_grid(self, config):
        """Returns one row of the queries."""
        return 1, q_former_of(config).num_queries

    def cutter(self, config, image_processor):
        """Returns a cutter of square images, whose tokens are the queries."""
        from vlm_jax.processing.cutters import Square

        return Square(vit_of(config), image_processor, slots=q_former_of(config).num_queries)

    def layout(self, config, rows, cols):
        """Returns one group, row by row, whose tokens are the queries."""
        from vlm_jax.processing.cutters import row_major

        slots = np.arange(q_former_of(config).num_queries, dtype=np.int32)
        return dataclasses.replace(row_major(rows, cols), slots_m=slots)

    def letters(self, config: VLMConfig) -> dict[str, dict[str, int]]:
        """Returns letter lengths of a model with a Q-Former; see `Family.letters`."""
        former = q_former_of(config)
        return {
            "decoder": decoder_letters(config),
            "vision": vit_letters(vit_of(config)),
            "qformer": dict(
                a=1,
                q=former.num_queries,
                p=former.max_positions,
                v=former.vocab_size,
                d=former.hidden_size,
                e=former.encoder_size,
                n=former.num_heads,
                h=former.hidden_size // former.num_heads,
                f=former.intermediate_size,
            ),
            "projector": dict(e=former.hidden_size, d=config.decoder.hidden_size),
        }
