"""DeepSeek-VL2 (Tiny, Small, 4.5B active): SigLIP on tiles, latent attention, experts."""

import os
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, cast

import msgspec

from vlm_jax.config import AnyResConfig, VitConfig, VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.families.base import Family, Row
from vlm_jax.families.decoders import decoder_letters, decoder_rows
from vlm_jax.families.deepseek import DeepSeek, deepseek_decoder
from vlm_jax.families.fields import Count, Depth, Factor, Ids, Object, divide, ids, one_of, read
from vlm_jax.families.vit import timm_rows, vit_letters, vit_of
from vlm_jax.foreign import read_json


class _Text(DeepSeek, kw_only=True):
    eos_token_id: Ids = None  # the class's default is of another vocabulary than Tiny's


class _Vision(msgspec.Struct, kw_only=True):
    layers: Depth = 27
    width: Count = 1152
    heads: Count = 16
    mlp_ratio: Factor = 3.7362
    patch_size: Count = 14
    image_size: Count = 384


class _Projector(msgspec.Struct, kw_only=True):
    projector_type: str = "downsample_mlp_gelu"
    input_dim: Count = 1152
    n_embed: Count = 2048
    depth: Count = 2
    mlp_ratio: Count = 1
    downsample_ratio: Count = 2
    token_pooling: bool = False


_Size = tuple[Count, Count]


class _Root(msgspec.Struct, kw_only=True):
    language_config: Object = {}
    vision_config: Object = {}
    projector_config: Object = {}
    candidate_resolutions: Annotated[list[_Size], msgspec.Meta(min_length=1)]
    tile_tag: str = "2D"
    global_view_pos: str = "head"


class Pixels(msgspec.Struct):
    """What a folder's processor_config.json says of pixels."""

    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings, as transformers' image processors give theirs."""
        return msgspec.to_builtins(self)


def _tower(vision: _Vision, where: str) -> VitConfig:
    divide(vision.width, vision.heads, where)
    if vision.patch_size > vision.image_size:
        raise ConfigError(
            f"{where}: patch_size {vision.patch_size} is larger than image_size "
            f"{vision.image_size}."
        )
    return VitConfig(
        hidden_size=vision.width,
        intermediate_size=int(vision.width * vision.mlp_ratio),
        num_layers=vision.layers,
        num_heads=vision.heads,
        num_channels=3,
        patch_size=vision.patch_size,
        image_size=vision.image_size,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
        class_token=False,
        patch_bias=True,
        post_norm=True,
        post_norm_eps=1e-6,
        fused_qkv=True,
    )


MERGE = 2

_BLOCK = "vision.blocks.{i}."
_OURS = "vision/layers/{i}/"

# Images come first, numbered where there are several.
_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "{{ message['content'] if message['content'] is string else message['content'][0]['text'] }}"
    "{{ '\n\n' }}"
    "{% else %}"
    "{% set user = message['role'] == 'user' %}"
    "{{ '<|User|>: ' if user else '<|Assistant|>: ' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% set images = message['content'] | selectattr('type', 'equalto', 'image') | list %}"
    "{% for item in images %}"
    "{% if images | length > 1 %}{{ 'This is image_' + loop.index | string + ': ' }}{% endif %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for item in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ item['text'] | trim }}{% endfor %}"
    "{% endif %}"
    "{{ '\n\n' if user else eos_token }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>:' }}{% endif %}"
)


class DeepSeekVL2(Family):
    """DeepSeek-VL2.

    Image tokens are those of both views, the ends of rows and the separator: the reference writes
    the placeholder for all of them.
    """

    name = "deepseek_vl2"
    model_types = ("deepseek_vl_v2",)
    line = "DeepSeek-VL2: SigLIP on tiles, a decoder of latent attention and experts"
    image_token = "<image>"
    rows = (
        Row("vision.patch_embed.proj.weight", "vision/patch_de", "d c y x -> d (c y x)"),
        Row("vision.patch_embed.proj.bias", "vision/patch_bias_d", "d -> d"),
        Row("vision.pos_embed", "vision/positions_pd", "a p d -> (a p) d"),
        *timm_rows(_BLOCK, _OURS),
        Row("vision.norm.weight", "vision/post_norm_scale_d", "d -> d"),
        Row("vision.norm.bias", "vision/post_norm_bias_d", "d -> d"),
        Row("projector.layers.0.weight", "projector/w1_fe", "f e -> f e"),
        Row("projector.layers.0.bias", "projector/b1_f", "f -> f"),
        Row("projector.layers.2.weight", "projector/w2_df", "d f -> d f"),
        Row("projector.layers.2.bias", "projector/b2_d", "d -> d"),
        Row("image_newline", "projector/newline_d", "d -> d"),
        Row("view_seperator", "projector/separator_d", "d -> d"),
        *decoder_rows("language.model.", "language.lm_head.weight"),
    )
    # The tower's pooling head is on disk, and nobody reads it.
    buffers = (r"^vision\.attn_pool\.", r"rotary_emb\.inv_freq$")

    def read(self, root: Mapping[str, Any], where: str) -> VLMConfig:
        """Reads `config.json`; see `Family.read`."""
        fields = read(root, _Root, where)
        one_of(fields.tile_tag, ("2D",), "tile_tag", where)
        one_of(fields.global_view_pos, ("head",), "global_view_pos", where)
        text = read(fields.language_config, _Text, f"{where}: language_config")
        language = deepseek_decoder(text, f"{where}: language_config", text.tie_word_embeddings)
        vision = _tower(
            read(fields.vision_config, _Vision, f"{where}: vision_config"),
            f"{where}: vision_config",
        )
        self._check_projector(fields, vision, language.hidden_size, where)
        return VLMConfig(
            family=self.name,
            decoder=language,
            vision=vision,
            image_token_id=None,
            eos_ids=ids(text.eos_token_id),
            tiles=AnyResConfig(tuple((high, wide) for wide, high in fields.candidate_resolutions)),
        )

    @staticmethod
    def _check_projector(fields: _Root, vision: VitConfig, width: int, where: str) -> None:
        named = f"{where}: projector_config"
        projector = read(fields.projector_config, _Projector, named)
        for name, choice in (
            ("projector_type", "downsample_mlp_gelu"),
            ("token_pooling", False),
            ("depth", 2),
            ("mlp_ratio", 1),
            ("downsample_ratio", MERGE),
            ("input_dim", vision.hidden_size),
            ("n_embed", width),
        ):
            one_of(getattr(projector, name), (choice,), name, named)
        for size in fields.candidate_resolutions:
            if any(side % vision.image_size for side in size):
                raise ConfigError(
                    f"{where}: candidate_resolutions {list(size)} is no multiple of the tower's "
                    f"image_size {vision.image_size}."
                )

    def tower(self, config, rngs):
        """Returns a SigLIP tower."""
        from vlm_jax.models.vit import Vit

        return Vit(vit_of(config), rngs)

    def connector(self, config, rngs):
        """Returns an unfolding of 2 x 2 patches with two linear maps and two learned tokens."""
        from vlm_jax.models.unfold import Unfold

        return Unfold(rngs, config.vision.hidden_size, MERGE, config.decoder.hidden_size)

    def image_processor(self, folder):
        """Returns mean and deviation of pixels; the rest is in config.json."""
        path = pathlib.Path(folder) / "processor_config.json"
        return read_json(path, Pixels) if os.path.lexists(path) else Pixels()

    def cutter(self, config, image_processor):
        """Returns a cutter into a whole view and tiles at a resolution that fits."""
        from vlm_jax.processing.cutters import ViewTiles

        tiles = cast(AnyResConfig, config.tiles)
        mean, std = image_processor.image_mean, image_processor.image_std
        return ViewTiles(vit_of(config), tiles, MERGE, mean, std)

    def template(self, found):
        """Returns the authors' conversation format where a folder ships no template."""
        return found or _TEMPLATE

    def image_text(self, config, image, token):
        """Returns the placeholder and a new line."""
        return image + "\n"

    def letters(self, config):
        """Returns letter lengths; see `Family.letters`."""
        vision, width = vit_of(config), config.decoder.hidden_size
        return {
            "decoder": decoder_letters(config),
            "vision": vit_letters(vision),
            "projector": dict(e=vision.hidden_size * MERGE**2, f=width, d=width),
        }


FAMILY = DeepSeekVL2()
