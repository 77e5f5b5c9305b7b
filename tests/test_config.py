"""Architectures out of every published layout, against transformers' own config classes."""

import copy
import dataclasses
import json

import pytest
import transformers

from tests.released import CONFIGS, PUBLISHED
from vlm_jax.config import ACTIVATIONS, VitConfig
from vlm_jax.errors import ConfigError
from vlm_jax.families import parse_config, read_config

LLAVA = CONFIGS["LLaVA-1.5-7B"]
QWEN = CONFIGS["Qwen2.5-VL-7B"]
TEXT_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "vocab_size", "rms_norm_eps", "rope_theta", "rope_scaling",
    "max_position_embeddings", "hidden_act", "sliding_window", "use_sliding_window",
    "max_window_layers", "attention_dropout", "initializer_range", "use_cache",
)  # fmt: skip


def nested(root: dict, *, rope: str, tied_in_text: bool = False) -> dict:
    """The flat Qwen layout as newer transformers write it."""
    text = {name: root[name] for name in TEXT_FIELDS if name in root}
    outer = {name: value for name, value in root.items() if name not in text}
    text["model_type"] = "qwen2_5_vl_text"
    if rope == "rope_parameters":
        text["rope_parameters"] = {
            "rope_theta": text.pop("rope_theta"),
            "rope_type": "default",
            "mrope_section": text.pop("rope_scaling")["mrope_section"],
        }
    if tied_in_text:
        text["tie_word_embeddings"] = outer.pop("tie_word_embeddings")
    return outer | {"text_config": text}


def changed(root: dict, **changes) -> dict:
    """A deep copy; a dotted name (with __) goes into a part, and None removes the field."""
    root = copy.deepcopy(root)
    for name, value in changes.items():
        *parts, last = name.split("__")
        target = root
        for part in parts:
            target = target[part]
        if value is None:
            target.pop(last, None)
        else:
            target[last] = value
    return root


def reference(root: dict, folder) -> dict:
    """What transformers reads out of the same file."""
    (folder / "config.json").write_text(json.dumps(root))
    config = transformers.AutoConfig.from_pretrained(folder)
    text, vision = config.text_config, config.vision_config
    rope = text.rope_parameters
    found = {
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_layers": text.num_hidden_layers,
        "num_heads": text.num_attention_heads,
        "num_kv_heads": text.num_key_value_heads or text.num_attention_heads,
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": rope["rope_theta"],
        "mrope_section": tuple(rope["mrope_section"]) if "mrope_section" in rope else None,
        # Only one of the two has the field in InstructBLIP (the decoder) and Qwen (the root).
        "tie_embeddings": (
            config if hasattr(config, "tie_word_embeddings") else text
        ).tie_word_embeddings,
    }
    if config.model_type in ("llava", "llava_next"):
        fields = {
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_layers": vision.num_hidden_layers,
            "num_heads": vision.num_attention_heads,
            "num_channels": vision.num_channels,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": vision.hidden_act,
            "layer_norm_eps": vision.layer_norm_eps,
            "keep_class_token": config.vision_feature_select_strategy == "full",
        }
        image = config.image_token_index
        act, bias = config.projector_hidden_act, config.multimodal_projector_bias
    elif config.model_type == "instructblip":
        fields = {
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_layers": vision.num_hidden_layers,
            "num_heads": vision.num_attention_heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": vision.hidden_act,
            "layer_norm_eps": vision.layer_norm_eps,
            "post_norm_eps": vision.layer_norm_eps,
        }
        image, act, bias = config.image_token_index, "gelu", True
    elif config.model_type == "internvl":
        fields = {
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_layers": vision.num_hidden_layers,
            "num_heads": vision.num_attention_heads,
            "image_size": vision.image_size[0],
            "patch_size": vision.patch_size[0],
            "hidden_act": vision.hidden_act,
            "layer_norm_eps": vision.layer_norm_eps,
            "biased": "qkv" if vision.attention_bias else "",
        }
        image, act, bias = config.image_token_id, config.projector_hidden_act, True
    elif config.model_type == "qwen3_vl":
        fields = {
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_layers": vision.depth,
            "num_heads": vision.num_heads,
            "num_channels": vision.in_channels,
            "patch_size": vision.patch_size,
            "temporal_patch_size": vision.temporal_patch_size,
            "merge_size": vision.spatial_merge_size,
            "position_side": vision.num_position_embeddings**0.5,
            "deep_layers": tuple(vision.deepstack_visual_indexes),
            "out_hidden_size": vision.out_hidden_size,
            "hidden_act": vision.hidden_act,
        }
        image, act, bias = config.image_token_id, "gelu", True
    else:
        fields = {
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_layers": vision.depth,
            "num_heads": vision.num_heads,
            "num_channels": vision.in_channels,
            "patch_size": vision.patch_size,
            "temporal_patch_size": vision.temporal_patch_size,
            "merge_size": vision.spatial_merge_size,
            "window_size": vision.window_size,
            "full_attention_layers": tuple(vision.fullatt_block_indexes),
            "out_hidden_size": vision.out_hidden_size,
        }
        image, act, bias = config.image_token_id, "gelu", True
    return {"decoder": found, "vision": fields, "image": image, "act": act, "bias": bias}


def ours(root: dict, like: dict) -> dict:
    """The same fields of our reading."""
    config = parse_config(root)
    pick = lambda part, fields: {name: getattr(part, name) for name in fields}
    return {
        "decoder": pick(config.decoder, like["decoder"]),
        "vision": pick(config.vision, like["vision"]),
        "image": config.image_token_id,
        "act": config.projector_act,
        "bias": config.projector_bias,
    }


LAYOUTS = PUBLISHED | {
    "llava, nothing but types": {"model_type": "llava", "text_config": {"model_type": "llama"}},
    "llava, no text_config": {"model_type": "llava"},
    "llava, default CLIP": {
        "model_type": "llava",
        "text_config": {"model_type": "llama"},
        "vision_config": {"model_type": "clip_vision_model"},
    },
    "llava, bare mistral": {
        "model_type": "llava",
        "text_config": {"model_type": "mistral", "sliding_window": None},
    },
    "llava, bare qwen2": {"model_type": "llava", "text_config": {"model_type": "qwen2"}},
    "llava, full strategy, several layers": changed(
        LLAVA, vision_feature_select_strategy="full", vision_feature_layer=[-2, -5]
    ),
    "llava, no projector bias": changed(LLAVA, multimodal_projector_bias=False),
    "llava, tied": changed(LLAVA, tie_word_embeddings=True),
    "qwen, nested, rope_scaling": nested(QWEN, rope="rope_scaling"),
    "qwen, nested, rope_parameters": nested(QWEN, rope="rope_parameters"),
    "qwen, tied in text_config": nested(
        CONFIGS["Qwen2.5-VL-3B"], rope="rope_parameters", tied_in_text=True
    ),
    "qwen, tied at the root": nested(CONFIGS["Qwen2.5-VL-3B"], rope="rope_scaling"),
    "qwen, no epsilon": changed(QWEN, rms_norm_eps=None),
    "qwen, no theta": changed(QWEN, rope_theta=None),
    "qwen, in_channels": changed(QWEN, vision_config__in_chans=None, vision_config__in_channels=3),
    "qwen, sparse vision": changed(
        QWEN, vision_config__depth=None, vision_config__window_size=None,
        vision_config__fullatt_block_indexes=None, vision_config__num_heads=None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_means_what_it_means_to_the_reference(name, tmp_path):
    expected = reference(LAYOUTS[name], tmp_path)
    assert ours(LAYOUTS[name], expected) == expected


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_text_default_is_the_references(kind):
    theirs = transformers.CONFIG_MAPPING[kind]()
    text = {"model_type": kind} | ({"sliding_window": None} if kind == "mistral" else {})
    decoder = parse_config({"model_type": "llava", "text_config": text}).decoder
    assert decoder.rms_norm_eps == theirs.rms_norm_eps
    assert decoder.rope_theta == theirs.rope_parameters["rope_theta"]
    assert decoder.vocab_size == theirs.vocab_size
    assert decoder.num_kv_heads == (theirs.num_key_value_heads or theirs.num_attention_heads)
    # Qwen2 has biases without saying so.
    assert decoder.qkv_bias == (kind == "qwen2")
    assert not decoder.o_bias


def test_an_epsilon_that_is_not_written_depends_on_the_family():
    qwen = parse_config(changed(QWEN, rms_norm_eps=None)).decoder
    llava = parse_config(changed(LLAVA, text_config__rms_norm_eps=None)).decoder
    assert (qwen.rms_norm_eps, llava.rms_norm_eps) == (1e-5, 1e-6)


@pytest.mark.parametrize(
    ("layer", "expected"), [(-2, (-2,)), (-1, (-1,)), (5, (5,)), ([-2, 3], (-2, 3)), (None, (-2,))]
)
def test_feature_layers(layer, expected):
    vision = parse_config(changed(LLAVA, vision_feature_layer=layer)).vision
    assert isinstance(vision, VitConfig)
    assert vision.feature_layers == expected
    assert vision.tokens_per_image == 576


def test_linear_rope_scaling_in_both_spellings():
    for key in ("type", "rope_type"):
        root = changed(LLAVA, text_config__rope_scaling={key: "linear", "factor": 4.0})
        assert parse_config(root).decoder.rope_factor == 4.0
    new = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e4}
    decoder = parse_config(changed(LLAVA, text_config__rope_parameters=new)).decoder
    assert (decoder.rope_factor, decoder.rope_theta) == (4.0, 5e4)


def test_tokens_and_windows_of_qwen():
    config = parse_config(QWEN)
    assert (config.image_token_id, config.vision_start_id, config.vision_end_id) == (
        151655, 151652, 151653,
    )  # fmt: skip
    assert config.eos_ids == (151645,)
    assert config.vision.window_units == 4
    assert parse_config(changed(QWEN, eos_token_id=[1, 2])).eos_ids == (1, 2)


def test_configs_are_frozen_and_hashable():
    config = parse_config(QWEN)
    assert hash(config) == hash(parse_config(QWEN))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.family = "llava"


def test_every_activation_that_is_read_exists():
    from vlm_jax.models.layers import ACTIVATIONS as MADE

    assert set(MADE) == set(ACTIVATIONS)


DEEP: list = []
for _ in range(50):
    DEEP = [DEEP]

BAD = {
    "SigLIP without its first patch": (
        changed(LLAVA, vision_config__model_type="siglip_vision_model"),
        "vision_feature_select_strategy must be 'full'",
    ),
    "tiles of SigLIP": (
        changed(CONFIGS["LLaVA-NeXT-7B-vicuna"], vision_config__model_type="siglip_vision_model"),
        "tiles of a SigLIP tower",
    ),
    "InternViT-6B": (
        changed(CONFIGS["InternVL3.5-8B"], vision_config__norm_type="rms_norm"),
        "norm_type must be 'layer_norm', not 'rms_norm'",
    ),
    "normed queries in the tower": (
        changed(CONFIGS["InternVL3.5-8B"], vision_config__use_qk_norm=True),
        "use_qk_norm must be False",
    ),
    "an original layout that says little": (
        {"model_type": "internvl_chat", "llm_config": {}, "vision_config": {}},
        "required field `downsample_ratio`",
    ),
    "experts": (
        changed(CONFIGS["InternVL3.5-8B"], text_config__model_type="qwen3_moe"),
        "'qwen3_moe' text model is not supported",
    ),
    "tiles that do not fit": (
        changed(CONFIGS["LLaVA-NeXT-7B-vicuna"], image_grid_pinpoints=[[336, 700]]),
        "image_grid_pinpoints .336, 700. must be multiples of image_size 336",
    ),
    "tiles without pairs": (
        changed(CONFIGS["LLaVA-NeXT-7B-vicuna"], image_grid_pinpoints=[336]),
        "image_grid_pinpoints",
    ),
    "tiles with the class token": (
        changed(CONFIGS["LLaVA-NeXT-7B-vicuna"], vision_feature_select_strategy="full"),
        "must be 'default' for tiles",
    ),
    "unknown architecture": ({"model_type": "blip"}, "model_type 'blip' is not supported"),
    "no model type": ({}, "model_type None"),
    "unknown text model": (changed(LLAVA, text_config__model_type="gpt2"), "'gpt2' text model"),
    "unknown tower": (
        changed(LLAVA, vision_config__model_type="dinov2"),
        "vision tower 'dinov2'",
    ),
    "unknown strategy": (
        changed(LLAVA, vision_feature_select_strategy="best"),
        "vision_feature_select_strategy.*'best'",
    ),
    "feature layer outside": (changed(LLAVA, vision_feature_layer=-30), "vision_feature_layer -30"),
    "no width": (changed(QWEN, hidden_size=None), "required field `hidden_size`"),
    "no vision": (changed(QWEN, vision_config=None), "required field `vision_config`"),
    "no tower width": (
        changed(QWEN, vision_config__hidden_size=None),
        "vision_config: .*required field `hidden_size`",
    ),
    "no m-rope": (changed(QWEN, rope_scaling=None), "mrope_section"),
    "m-rope of two parts": (
        changed(QWEN, rope_scaling={"type": "mrope", "mrope_section": [32, 32]}),
        "length 3|>= 3 - at `..mrope_section",
    ),
    "m-rope of another head": (
        changed(QWEN, rope_scaling={"type": "mrope", "mrope_section": [1, 2, 3]}),
        "must sum to head_dim / 2 = 64",
    ),
    "unknown rope": (
        changed(LLAVA, text_config__rope_scaling={"type": "yarn", "factor": 2.0}),
        "rope type 'yarn'",
    ),
    "heads that do not divide": (changed(QWEN, num_key_value_heads=5), "do not divide over 5"),
    "width that is no multiple of heads": (
        changed(LLAVA, vision_config__num_attention_heads=7),
        "not a multiple of",
    ),
    "width as text": (changed(QWEN, hidden_size="wide"), "`int`, got `str` - at `..hidden_size`"),
    "negative layers": (changed(QWEN, num_hidden_layers=-1), ">= 1 - at `..num_hidden_layers`"),
    "other activation": (changed(QWEN, hidden_act="gelu"), "hidden_act must be 'silu'"),
    "sliding window": (
        changed(QWEN, use_sliding_window=True),
        "sliding-window attention .32768. is not supported",
    ),
    "unknown CLIP activation": (
        changed(LLAVA, vision_config__hidden_act="swiglu"),
        "vision_config.*hidden_act 'swiglu'",
    ),
    "unknown projector activation": (
        changed(LLAVA, projector_hidden_act="swiglu"),
        "projector_hidden_act 'swiglu'",
    ),
    "epsilon that is no number": (
        changed(QWEN, rms_norm_eps=float("nan")),
        "> 0.0 - at `..rms_norm_eps`",
    ),
    "epsilon without end": (
        changed(QWEN, rms_norm_eps=float("inf")),
        "<= 1.0 - at `..rms_norm_eps`",
    ),
    "theta without end": (changed(QWEN, rope_theta=float("inf")), "at `..rope_theta`"),
    "part of a key head": (
        changed(QWEN, num_key_value_heads=2.5),
        "`int . null`, got `float` - at `..num_key_value_heads`",
    ),
    "no key heads": (changed(QWEN, num_key_value_heads=0), ">= 1 - at `..num_key_value_heads`"),
    "no positions": (
        changed(QWEN, max_position_embeddings=0),
        ">= 1 - at `..max_position_embeddings`",
    ),
    "negative m-rope": (
        changed(QWEN, rope_scaling={"type": "mrope", "mrope_section": [-2, 33, 33]}),
        ">= 0 - at `..mrope_section",
    ),
    "parts of m-rope": (
        changed(QWEN, rope_scaling={"type": "mrope", "mrope_section": [1.5, 31.5, 31]}),
        "`int`, got `float` - at `..mrope_section",
    ),
    "full layer outside": (
        changed(QWEN, vision_config__fullatt_block_indexes=[99]),
        "fullatt_block_indexes 99 is outside its 32 layers",
    ),
    "negative full layer": (
        changed(QWEN, vision_config__fullatt_block_indexes=[-1]),
        ">= 0 - at `..fullatt_block_indexes",
    ),
    "full layer as text": (
        changed(QWEN, vision_config__fullatt_block_indexes=["a"]),
        "at `..fullatt_block_indexes",
    ),
    "part of a feature layer": (
        changed(LLAVA, vision_feature_layer=1.5),
        "got `float` - at `..vision_feature_layer`",
    ),
    "linear rope without a factor": (
        changed(LLAVA, text_config__rope_scaling={"type": "linear"}),
        "'linear' needs a factor",
    ),
    "a billion layers": (
        changed(QWEN, num_hidden_layers=10**9),
        "<= 1024 - at `..num_hidden_layers`",
    ),
    "numbers of thousands of digits": (changed(QWEN, hidden_size=10**400), "hidden_size"),
    "a list for an object": (changed(QWEN, vision_config=[1]), "vision_config"),
    "a number for rope": (changed(QWEN, rope_scaling=3), "rope_scaling"),
    "original layout": (
        changed(LLAVA, mm_vision_tower="openai/clip-vit-large-patch14-336"),
        "llava-hf conversion",
    ),
    "theta as text": (
        changed(LLAVA, text_config__rope_parameters={"rope_theta": "big"}),
        "rope_theta",
    ),
    "deep nesting": (changed(LLAVA, text_config__rope_scaling={"type": DEEP}), "type"),
    "other output width": (
        changed(QWEN, vision_config__out_hidden_size=100),
        "out_hidden_size 100.*3584",
    ),
    "text_config that is a list": (changed(LLAVA, text_config=[1]), "text_config"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_config_is_one_clear_error(name):
    root, message = BAD[name]
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(root, "somewhere/config.json")
    assert "somewhere/config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b"{", "not valid JSON"), (b"[1]", "must hold a JSON object"),
     (b"\xff\xfe\x00", "not UTF-8"), (b"[" * 100_000, "nested too deeply")],
)  # fmt: skip
def test_a_bad_file_is_one_clear_error(content, message, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path)
