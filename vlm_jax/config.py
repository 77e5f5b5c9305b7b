"""Architectures as frozen dataclasses, read from a checkpoint's `config.json`, old or new layout.

Released folders omit whatever their transformers version had as a default, and the defaults differ
by `model_type` (a Qwen2.5-VL text config without `rms_norm_eps` means 1e-5, a Llama one 1e-6). The
tables below hold the defaults of transformers' config classes, so that a sparse folder means here
what it means there. A field without a safe default raises `ConfigError` with its name.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from vlm_jax.errors import ConfigError

FAMILIES = ("llava", "qwen2_5_vl")
_TEXT_TYPES = ("llama", "qwen2", "mistral", "qwen2_5_vl_text")
ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu")
_REQUIRED = object()

# Defaults of transformers' config classes, by model_type; `_REQUIRED` marks what we do not guess.
_TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": dict(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
        num_attention_heads=32, rms_norm_eps=1e-6, rope_theta=1e4, hidden_act="silu",
        eos_token_id=2,
    ),
    "mistral": dict(
        vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, rms_norm_eps=1e-6, rope_theta=1e4,
        hidden_act="silu", eos_token_id=2, sliding_window=4096, use_sliding_window=True,
    ),
    "qwen2": dict(
        vocab_size=151936, hidden_size=4096, intermediate_size=22016, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=32, rms_norm_eps=1e-6, rope_theta=1e4,
        hidden_act="silu", eos_token_id=None, attention_bias=True,
    ),
    "qwen2_5_vl_text": dict(
        vocab_size=152064, hidden_size=_REQUIRED, intermediate_size=_REQUIRED,
        num_hidden_layers=_REQUIRED, num_attention_heads=_REQUIRED, num_key_value_heads=_REQUIRED,
        rms_norm_eps=1e-5, rope_theta=1e6, hidden_act="silu", eos_token_id=151645,
        attention_bias=True,
    ),
}  # fmt: skip
_CLIP_DEFAULTS = dict(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
    num_channels=3, image_size=224, patch_size=32, hidden_act="quick_gelu", layer_norm_eps=1e-5,
)  # fmt: skip
# What LlavaConfig uses when `vision_config` is absent altogether: CLIP ViT-L/14 at 336 pixels.
_LLAVA_TOWER = dict(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
    image_size=336, patch_size=14,
)  # fmt: skip
_QWEN_VISION_DEFAULTS = dict(
    depth=32, hidden_size=_REQUIRED, hidden_act="silu", intermediate_size=3420, num_heads=16,
    in_channels=3, patch_size=14, spatial_merge_size=2, temporal_patch_size=2, window_size=112,
    out_hidden_size=3584, fullatt_block_indexes=(7, 15, 23, 31),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A Llama-like causal decoder.

    Attributes:
        vocab_size, hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim:
            V, D, F, L, N, K, H of the package's letter table.
        rms_norm_eps: epsilon inside every RMS norm.
        rope_theta: rotary base.
        rope_factor: positions are divided by it (`linear` rope scaling; 1 for none).
        mrope_section: how many of the H/2 frequencies follow time, height and width; None without
            m-rope.
        qkv_bias, o_bias: whether the attention projections have biases.
        tie_embeddings: whether the head is the transposed embedding table.
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
    qkv_bias: bool = False
    o_bias: bool = False
    tie_embeddings: bool = False
    max_positions: int = 2048


@dataclasses.dataclass(frozen=True)
class ClipVisionConfig:
    """A CLIP vision transformer with a class token and learned positions (square images)."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_channels: int
    image_size: int
    patch_size: int
    hidden_act: str
    layer_norm_eps: float
    feature_layers: tuple[int, ...] = (-2,)  # indices into [embeddings, layer 1, ..., layer L]
    keep_class_token: bool = False  # `vision_feature_select_strategy` "full"

    @property
    def num_patches(self) -> int:
        """Patches of one image, without the class token."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def tokens_per_image(self) -> int:
        """Image tokens that the decoder sees for one image."""
        return self.num_patches + self.keep_class_token


@dataclasses.dataclass(frozen=True)
class QwenVisionConfig:
    """The Qwen2.5-VL vision tower: windowed attention with a few full-attention layers."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_channels: int
    patch_size: int
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
class VLMConfig:
    """A whole vision-language model.

    Attributes:
        family: one of `FAMILIES`.
        decoder, vision: the two towers.
        projector_act: activation between the two linear maps of the projector.
        projector_bias: whether they have biases.
        image_token_id: the placeholder that image features replace.
        vision_start_id, vision_end_id: tokens around an image; None where a family has none.
        eos_ids: ids that end generation by config (generation_config.json may add to them).
    """

    family: str
    decoder: DecoderConfig
    vision: ClipVisionConfig | QwenVisionConfig
    image_token_id: int
    projector_act: str = "gelu"
    projector_bias: bool = True
    vision_start_id: int | None = None
    vision_end_id: int | None = None
    eos_ids: tuple[int, ...] = ()


class _Fields:
    """A JSON object with its model type's defaults, and errors that name file and field."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any], where: str):
        self.values, self.defaults, self.where = values, defaults, where

    def get(self, name: str, fallback: Any = None) -> Any:
        # An explicit null overrides a default: that is how a folder switches a sliding window off.
        return self.values[name] if name in self.values else self.defaults.get(name, fallback)

    def need(self, name: str, kind: type = int) -> Any:
        value = self.get(name, _REQUIRED)
        if value is _REQUIRED or value is None:
            raise ConfigError(f"{self.where} has no field {name!r}, which this architecture needs.")
        # bool is an int to Python, and an integral float is a valid count in JSON.
        valid = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not valid or (kind is int and value != int(value)) or value <= 0:
            raise ConfigError(
                f"{self.where}: field {name!r} must be a positive {kind.__name__}, not {value!r}."
            )
        return kind(value)


def _rope(fields: _Fields) -> tuple[float, float, tuple[int, int, int] | None]:
    """Returns (theta, linear factor, m-rope section) from either generation of rope fields."""
    rope = {**(fields.get("rope_scaling") or {}), **(fields.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope", "linear"):
        raise ConfigError(
            f"{fields.where}: rope type {kind!r} is not supported (default, mrope and linear are)."
        )
    stated = {"rope_theta": rope.get("rope_theta") or fields.get("rope_theta")}
    stated["factor"] = rope.get("factor", 1.0) if kind == "linear" else 1.0
    stated = _Fields(stated, {}, f"{fields.where}: rope parameters")
    theta, factor = stated.need("rope_theta", float), stated.need("factor", float)
    section = rope.get("mrope_section")
    if section is not None and len(section) != 3:
        raise ConfigError(
            f"{fields.where}: mrope_section must have three entries, not {section!r}."
        )
    return theta, factor, tuple(section) if section is not None else None


def _decoder(fields: _Fields, model_type: str, tied: bool) -> DecoderConfig:
    heads, width = fields.need("num_attention_heads"), fields.need("hidden_size")
    if fields.get("hidden_act") != "silu":
        act = fields.get("hidden_act")
        raise ConfigError(f"{fields.where}: hidden_act must be 'silu', not {act!r}.")
    if fields.get("mlp_bias", False):
        raise ConfigError(f"{fields.where}: mlp_bias=true is not supported.")
    max_positions = fields.get("max_position_embeddings", 32768 if "qwen" in model_type else 2048)
    window = fields.get("sliding_window")
    slides = fields.get("use_sliding_window", model_type == "mistral") and window is not None
    if slides and window < max_positions:
        raise ConfigError(
            f"{fields.where}: sliding-window attention ({window}) is not supported; set "
            "use_sliding_window to false or sliding_window to null if the model is to run without."
        )
    theta, factor, section = _rope(fields)
    kv_heads = int(fields.get("num_key_value_heads") or heads)
    head_dim = int(fields.get("head_dim") or width // heads)
    if heads % kv_heads:
        raise ConfigError(
            f"{fields.where}: {heads} query heads do not divide over {kv_heads} key heads."
        )
    if section is not None and sum(section) != head_dim // 2:
        raise ConfigError(
            f"{fields.where}: mrope_section {section} must sum to head_dim / 2 = {head_dim // 2}."
        )
    bias = bool(fields.get("attention_bias", False))
    return DecoderConfig(
        vocab_size=fields.need("vocab_size"),
        hidden_size=width,
        intermediate_size=fields.need("intermediate_size"),
        num_layers=fields.need("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.need("rms_norm_eps", float),
        rope_theta=theta,
        rope_factor=factor,
        mrope_section=section,
        qkv_bias=bias,
        o_bias=bias and model_type == "llama",
        tie_embeddings=tied,
        max_positions=int(max_positions),
    )


def _clip(fields: _Fields, layers: tuple[int, ...], keep_class_token: bool) -> ClipVisionConfig:
    depth = fields.need("num_hidden_layers")
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise ConfigError(
                f"{fields.where}: vision_feature_layer {layer} is outside its {depth} layers."
            )
    config = ClipVisionConfig(
        hidden_size=fields.need("hidden_size"),
        intermediate_size=fields.need("intermediate_size"),
        num_layers=depth,
        num_heads=fields.need("num_attention_heads"),
        num_channels=fields.need("num_channels"),
        image_size=fields.need("image_size"),
        patch_size=fields.need("patch_size"),
        hidden_act=_activation(fields.get("hidden_act"), "hidden_act", fields.where),
        layer_norm_eps=fields.need("layer_norm_eps", float),
        feature_layers=layers,
        keep_class_token=keep_class_token,
    )
    if config.hidden_size % config.num_heads:
        raise ConfigError(
            f"{fields.where}: hidden_size {config.hidden_size} is not a multiple of "
            f"num_attention_heads {config.num_heads}."
        )
    return config


def _activation(name: Any, field: str, where: str) -> str:
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"{where}: {field} {name!r} is not supported ({', '.join(ACTIVATIONS)} are)."
        )
    return name


def _pair(value: Any) -> int:
    return value[0] if isinstance(value, (list, tuple)) else value


def _llava(root: Mapping[str, Any], where: str) -> VLMConfig:
    text = root.get("text_config") or {}
    text_type = text.get("model_type", "llama")
    if text_type not in _TEXT_TYPES[:3]:
        raise ConfigError(
            f"{where}: a LLaVA with a {text_type!r} text model is not supported "
            f"({', '.join(_TEXT_TYPES[:3])} are)."
        )
    vision = root.get("vision_config") or _LLAVA_TOWER
    if vision.get("model_type", "clip_vision_model") != "clip_vision_model":
        raise ConfigError(f"{where}: vision tower {vision['model_type']!r} is not supported.")
    strategy = root.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise ConfigError(
            f"{where}: vision_feature_select_strategy must be 'default' or "
            f"'full', not {strategy!r}."
        )
    layer = root.get("vision_feature_layer", -2)
    layers = tuple(layer) if isinstance(layer, (list, tuple)) else (layer,)
    tied = root.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    fields = _Fields(text, _TEXT_DEFAULTS[text_type], f"{where}: text_config")
    tower = _Fields(vision, _CLIP_DEFAULTS, f"{where}: vision_config")
    return VLMConfig(
        family="llava",
        decoder=_decoder(fields, text_type, bool(tied)),
        vision=_clip(tower, layers, strategy == "full"),
        projector_act=_activation(
            root.get("projector_hidden_act", "gelu"), "projector_hidden_act", where
        ),
        projector_bias=root.get("multimodal_projector_bias", True),
        image_token_id=int(root.get("image_token_id", root.get("image_token_index", 32000))),
        eos_ids=_ids(root.get("eos_token_id", fields.get("eos_token_id"))),
    )


def _qwen2_5_vl(root: Mapping[str, Any], where: str) -> VLMConfig:
    # Hub-era folders keep the text fields at the root, newer ones nest them.
    text = root.get("text_config") or root
    tied = root.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    fields = _Fields(text, _TEXT_DEFAULTS["qwen2_5_vl_text"], f"{where}: text_config")
    decoder = _decoder(fields, "qwen2_5_vl_text", bool(tied))
    if decoder.mrope_section is None:
        raise ConfigError(f"{where} has no field 'mrope_section' in its rope parameters.")
    vision = root.get("vision_config")
    if not vision:
        raise ConfigError(f"{where} has no field 'vision_config'.")
    tower = _Fields(vision, _QWEN_VISION_DEFAULTS, f"{where}: vision_config")
    if tower.need("out_hidden_size") != decoder.hidden_size:
        raise ConfigError(
            f"{where}: out_hidden_size {tower.need('out_hidden_size')} of vision_config must be "
            f"the hidden_size of the decoder, {decoder.hidden_size}."
        )
    return VLMConfig(
        family="qwen2_5_vl",
        decoder=decoder,
        vision=QwenVisionConfig(
            hidden_size=tower.need("hidden_size"),
            intermediate_size=tower.need("intermediate_size"),
            num_layers=tower.need("depth"),
            num_heads=tower.need("num_heads"),
            num_channels=int(vision.get("in_channels", vision.get("in_chans", 3))),
            patch_size=_pair(tower.get("patch_size")),
            temporal_patch_size=_pair(tower.get("temporal_patch_size")),
            merge_size=tower.need("spatial_merge_size"),
            window_size=tower.need("window_size"),
            full_attention_layers=tuple(tower.get("fullatt_block_indexes")),
            out_hidden_size=tower.need("out_hidden_size"),
        ),
        projector_act="gelu",
        projector_bias=True,
        image_token_id=int(root.get("image_token_id", 151655)),
        vision_start_id=int(root.get("vision_start_token_id", 151652)),
        vision_end_id=int(root.get("vision_end_token_id", 151653)),
        eos_ids=_ids(root.get("eos_token_id", fields.get("eos_token_id"))),
    )


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (int(value),)


def parse_config(root: Mapping[str, Any], where: str = "config.json") -> VLMConfig:
    """Reads a parsed `config.json` in any published layout.

    Args:
        root: the JSON object.
        where: what to call it in errors.

    Raises:
        ConfigError: the model type is unknown, or a field is missing or out of range.
    """
    readers = {"llava": _llava, "qwen2_5_vl": _qwen2_5_vl}
    model_type = root.get("model_type")
    if model_type not in readers:
        raise ConfigError(
            f"{where}: model_type {model_type!r} is not supported ({', '.join(FAMILIES)} are)."
        )
    for part in ("text_config", "vision_config"):
        if not isinstance(root.get(part, {}), Mapping | None):
            raise ConfigError(f"{where}: {part} must be a JSON object, not {root[part]!r}.")
    return readers[model_type](root, where)


def read_config(folder: str | pathlib.Path) -> VLMConfig:
    """Reads `folder/config.json`.

    Raises:
        ConfigError: the file is missing, is not JSON, or describes something we do not support.
    """
    path = pathlib.Path(folder) / "config.json"
    try:
        root = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: is {folder} a model folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(root, dict):
        raise ConfigError(f"{path} must hold a JSON object, not {type(root).__name__}.")
    return parse_config(root, str(path))
