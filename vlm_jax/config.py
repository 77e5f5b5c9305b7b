"""Architectures as frozen dataclasses; a family makes them of a folder's `config.json`.

Nothing here knows a family by name: `vlm_jax.families` has one file for each.
"""

import dataclasses
from typing import Literal

ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu")


@dataclasses.dataclass(frozen=True)
class MLA:
    """Multi-head latent attention: keys and values of all heads are made of one latent a token.

    Attributes:
        rank: width of the latent.
        nope_dim, rope_dim: widths of the plain and of the rotated part of queries and keys.
        value_dim: width of a head's values.
        query_rank: width of the queries' own latent; None where they have none.
    """

    rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    query_rank: int | None = None


@dataclasses.dataclass(frozen=True)
class MoE:
    """A mixture of experts.

    Attributes:
        count, width: experts, and the width of each.
        chosen: experts of a token.
        shared_width: width of the expert that all tokens have; 0 for none.
        scoring: what makes scores of the router's logits.
        normalise: whether the weights of a token's experts are divided by their sum.
        scale: what they are multiplied by.
        bias: whether a learned bias takes part in the choice.
        groups, groups_kept: groups of experts, and how many of them a token chooses among.
    """

    count: int
    width: int
    chosen: int
    shared_width: int
    scoring: Literal["softmax", "sigmoid"]
    normalise: bool
    scale: float
    bias: bool
    groups: int = 1
    groups_kept: int = 1


@dataclasses.dataclass(frozen=True)
class LayerConfig:
    """What a layer of a decoder is made of.

    Attributes:
        attention: latent attention; None for grouped-query attention.
        mlp: a mixture of experts; None for a dense MLP.
    """

    attention: MLA | None = None
    mlp: MoE | None = None


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A causal decoder: Llama's parts, or DeepSeek's.

    Attributes:
        vocab_size, hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim:
            V, D, F, L, N, K, H of the package's letter table. F is that of dense layers, H that of
            queries and keys.
        rms_norm_eps: epsilon inside every RMS norm.
        rope_theta: rotary base.
        rope_factor: positions are divided by it (`linear` rope scaling; 1 for none).
        mrope_section: how many of the H/2 frequencies follow time, height and width; None without
            m-rope.
        mrope_interleaved: whether those of the three take turns, or are three runs.
        qkv_bias, o_bias: whether the attention projections have biases.
        qk_norm: whether each head's queries and keys are RMS-normed before they are rotated, with
            gains that the heads of a layer share.
        tie_embeddings: whether the head is the transposed embedding table.
        layers: what each layer is made of; empty where all are grouped-query and dense.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_factor: float = 1.0
    mrope_section: tuple[int, int, int] | None = None
    mrope_interleaved: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    max_positions: int = 2048
    layers: tuple[LayerConfig, ...] = ()

    def layer(self, index: int) -> LayerConfig:
        """Returns what a layer is made of."""
        return self.layers[index] if self.layers else LayerConfig()

    @property
    def latent(self) -> MLA | None:
        """The latent attention of the layers; all have the same, or none."""
        return self.layer(0).attention

    @property
    def rope_dim(self) -> int:
        """How many dims of a query or key are rotated."""
        return self.head_dim if self.latent is None else self.latent.rope_dim

    @property
    def row_dim(self) -> int:
        """Width of what a head gives in decode rows: of latents where the cache holds these."""
        return self.head_dim if self.latent is None else self.latent.rank + self.latent.rope_dim

    @property
    def value_dim(self) -> int:
        """Width of a head's values."""
        return self.head_dim if self.latent is None else self.latent.value_dim

    @property
    def rope_axes(self) -> tuple[int, ...] | None:
        """The position that each frequency follows: 0 time, 1 height, 2 width; None without m-rope.

        Sections (2, 1, 1) are 0 0 1 2 (Qwen2-VL, arXiv 2409.12191, section 2.1), and 0 1 2 0
        interleaved (Qwen3-VL): height and width take every third frequency until each has as many
        as its section says, time takes the rest.
        """
        if self.mrope_section is None:
            return None
        if not self.mrope_interleaved:
            return tuple(
                axis for axis, count in enumerate(self.mrope_section) for _ in range(count)
            )
        turns = ((i % 3, i // 3) for i in range(sum(self.mrope_section)))
        return tuple(axis if turn < self.mrope_section[axis] else 0 for axis, turn in turns)


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """What every vision transformer has; each kind of tower adds its own."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_channels: int
    patch_size: int


@dataclasses.dataclass(frozen=True)
class VitConfig(TowerConfig):
    """Pre-norm blocks over a square grid of patches with learned positions.

    CLIP, SigLIP, EVA and InternViT are this with other values.

    Attributes:
        image_size: side of an image, or of a tile.
        hidden_act, layer_norm_eps: of the blocks.
        class_token: whether a learned token comes before the patches.
        keep_class_token: whether it is among the features.
        patch_bias: whether the map of patches has a bias.
        pre_norm: whether the embeddings are normed before the first block.
        post_norm: whether a norm follows the last block in checkpoints.
        post_norm_eps: its epsilon, if features go through it; None if not.
        fused_qkv: whether checkpoints hold queries, keys and values as one matrix.
        biased: which of "q", "k" and "v" have biases.
        layer_scale: whether what a block adds is scaled channel by channel.
        feature_layers: indices into [embeddings, layer 1, ..., layer L]; features of several layers
            are joined.
        merge_size: side in patches of the block that becomes one image token.
    """

    image_size: int
    hidden_act: str
    layer_norm_eps: float
    class_token: bool = True
    keep_class_token: bool = False
    patch_bias: bool = False
    pre_norm: bool = False
    post_norm: bool = False
    post_norm_eps: float | None = None
    fused_qkv: bool = False
    biased: str = "qkv"
    layer_scale: bool = False
    feature_layers: tuple[int, ...] = (-1,)
    merge_size: int = 1

    @property
    def num_patches(self) -> int:
        """Patches of one image, without the class token."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def tokens_per_image(self) -> int:
        """Image tokens that the decoder sees for one image, or one tile."""
        return self.num_patches // self.merge_size**2 + self.keep_class_token


@dataclasses.dataclass(frozen=True)
class QwenVisionConfig(TowerConfig):
    """A vision tower of windowed attention with a few full-attention layers."""

    temporal_patch_size: int
    merge_size: int
    window_size: int  # pixels
    full_attention_layers: tuple[int, ...]
    out_hidden_size: int
    rope_theta: float = 1e4
    rms_norm_eps: float = 1e-6

    @property
    def window_units(self) -> int:
        """Merge units along a side of a window (a unit is merge_size x merge_size patches)."""
        return self.window_size // self.patch_size // self.merge_size


@dataclasses.dataclass(frozen=True)
class NativeVitConfig(TowerConfig):
    """A vision transformer of images at their own resolution, full attention within each.

    Qwen3-VL's tower and MoonViT are this with other values.

    Attributes:
        position_side: rows and columns of the table of learned positions.
        position_kernel: how it is resampled to the grid of an image.
        rope_neighbours: whether dims that turn together are neighbours, columns and rows in turns;
            otherwise they are half a head apart, rows first.
        deep_layers: layers whose outputs also reach the decoder (DeepStack).
        post_norm: whether a norm follows the last layer.
    """

    temporal_patch_size: int
    merge_size: int
    position_side: int
    out_hidden_size: int
    hidden_act: str
    deep_layers: tuple[int, ...] = ()
    position_kernel: Literal["bilinear", "bicubic"] = "bilinear"
    rope_neighbours: bool = False
    post_norm: bool = False
    rope_theta: float = 1e4
    layer_norm_eps: float = 1e-6


@dataclasses.dataclass(frozen=True)
class QFormerConfig:
    """A Q-Former: learned queries that read an image, and the question too where it has words.

    Attributes:
        hidden_size, intermediate_size, num_layers, num_heads: D, F, L and N of its blocks.
        encoder_size: width of the features that it reads.
        num_queries: queries, each of which becomes an image token.
        cross_every: every so many layers, from the first on, the queries read the image.
        hidden_act, layer_norm_eps: of the blocks.
        vocab_size, max_positions: of the words of the question; 0 where it reads none.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    encoder_size: int
    num_queries: int
    cross_every: int
    hidden_act: str
    layer_norm_eps: float
    vocab_size: int = 0
    max_positions: int = 0

    @property
    def reads_text(self) -> bool:
        """Whether features belong to an image and a question, not to the image alone."""
        return self.vocab_size > 0


@dataclasses.dataclass(frozen=True)
class AnyResConfig:
    """Images read whole and in tiles at a resolution that fits them.

    Attributes:
        pinpoints: heights and widths to choose from, in this order.
    """

    pinpoints: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class DynamicTilesConfig:
    """Images cut into a grid of square tiles of about their shape.

    Attributes:
        fewest, most: tiles of a grid.
        thumbnail: whether the whole image follows as one more tile where there are several.
    """

    fewest: int = 1
    most: int = 12
    thumbnail: bool = True


@dataclasses.dataclass(frozen=True)
class VLMConfig:
    """A whole vision-language model.

    Attributes:
        family: name of a family in `vlm_jax.families`.
        decoder, vision: the decoder and the vision tower.
        projector_act: activation between the two linear maps of the connector.
        projector_bias: whether they have biases.
        image_token_id: the placeholder that image features replace; None where the tokenizer says
            which id it is.
        vision_start_id, vision_end_id: tokens around an image; None where a family has none.
        eos_ids: ids that end generation by config (generation_config.json may add to them).
        tiles: how images are cut into tiles; None where they are not.
        qformer: what turns an image's features into few tokens; None where nothing does.
    """

    family: str
    decoder: DecoderConfig
    vision: TowerConfig
    image_token_id: int | None
    projector_act: str = "gelu"
    projector_bias: bool = True
    vision_start_id: int | None = None
    vision_end_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    tiles: AnyResConfig | DynamicTilesConfig | None = None
    qformer: QFormerConfig | None = None
