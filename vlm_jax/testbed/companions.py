"""Writes what travels beside the weights: tokenizer, chat template and processor settings.

The tokenizer is a word list in the published file format: lower-cased words and punctuation marks;
where the decoder is a released model it is that model's.
"""

import json
import pathlib
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from vlm_jax.testbed import smollm2
from vlm_jax.testbed.architecture import Architecture, hf_config
from vlm_jax.testbed.pixels import CLIP_MEAN, CLIP_STD

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def chat_template(family: Architecture) -> str:
    """Returns the Jinja form of a chat: the user's images, then the user's words, and so on."""
    quote = lambda text: "{{ " + json.dumps(text, ensure_ascii=False) + " }}"
    words = "{{ words(message['content']) }}"
    before_system, after_system = family.system
    return (
        "{% macro words(content) %}{% if content is string %}{{ content }}{% else %}"
        "{% for part in content if part['type'] == 'text' %}"
        "{{ part['text'] }}{% endfor %}{% endif %}{% endmacro %}"
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        f"{quote(family.before)}"
        "{% if message['content'] is not string %}"
        "{% for part in message['content'] if part['type'] == 'image' %}"
        f"{quote(family.image + family.between)}"
        "{% endfor %}{% endif %}"
        f"{words}"
        "{% elif message['role'] == 'assistant' %}"
        f"{quote(family.after + family.gap)}{words}{quote(family.eos)}"
        "{% else %}"
        f"{quote(before_system)}{words}{quote(after_system)}"
        "{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{quote(family.after)}{{% endif %}}"
    )


def _word_list(family: Architecture) -> Tokenizer:
    ids = {token: index for index, token in enumerate(family.tokens)}
    words = Tokenizer(models.WordLevel(ids, unk_token=family.unknown))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    if family.bos is not None:
        words.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A",
            pair=f"{family.bos} $A {family.bos} $B",
            special_tokens=[(family.bos, ids[family.bos])],
        )
    return words


def _byte_pairs(family: Architecture) -> Tokenizer:
    """The released decoder's: byte-level pairs, single digits, no space before a text.

    The first tokens are the family's special ones, one of which renames a token that is not used.
    """
    tokens, special, merges = smollm2.vocabulary()
    renamed = dict(zip(tokens, family.specials))
    words = Tokenizer(
        models.BPE({renamed.get(token, token): i for i, token in enumerate(tokens)}, merges)
    )
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens([renamed.get(token, token) for token in special])
    return words


def make_tokenizer(family: Architecture) -> "PreTrainedTokenizerFast":
    """Returns the family's tokenizer."""
    from transformers import PreTrainedTokenizerFast

    words = _byte_pairs(family) if family.released else _word_list(family)
    named = {family.unknown, family.pad, family.bos, family.eos}
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token=family.unknown,
        pad_token=family.pad,
        bos_token=family.bos,
        eos_token=family.eos,
        additional_special_tokens=[token for token in family.specials if token not in named],
        clean_up_tokenization_spaces=False,
        model_max_length=256,
        padding_side="left",
        chat_template=chat_template(family),
    )


def _widen_tokenizer_config(path: pathlib.Path) -> None:
    """Names the class and special tokens so that transformers 4 reads the folder as well."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields.pop("backend", None)
    fields["additional_special_tokens"] = fields.pop("extra_special_tokens", [])
    fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _llava_files(family: Architecture) -> dict[str, dict]:
    size = {"height": family.image_size, "width": family.image_size}
    image = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": family.image_size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": size,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": family.image,
        "num_additional_image_tokens": 1,
        "patch_size": family.cell,
        "vision_feature_select_strategy": "default",
    }
    return {"preprocessor_config.json": image, "processor_config.json": processor}


def _qwen2_5_vl_files(family: Architecture) -> dict[str, dict]:
    vision = hf_config(family)["vision_config"]
    image = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        # One size fits the scenes; other images are brought to as many pixels.
        "min_pixels": family.image_size**2,
        "max_pixels": family.image_size**2,
        "patch_size": vision["patch_size"],
        "temporal_patch_size": vision["temporal_patch_size"],
        "merge_size": vision["spatial_merge_size"],
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }
    return {"preprocessor_config.json": image}


_PROCESSOR_FILES = {
    "llava": _llava_files,
    "qwen2_5_vl": _qwen2_5_vl_files,
    "smollm2": _llava_files,
}


def write_companions(folder: str | pathlib.Path, family: Architecture) -> None:
    """Writes every file of a published model folder except its weights.

    Args:
        folder: an existing folder.
        family: whose files to write.
    """
    folder = pathlib.Path(folder)
    make_tokenizer(family).save_pretrained(folder)
    _widen_tokenizer_config(folder / "tokenizer_config.json")
    ids = family.ids
    generation = {
        "bos_token_id": None if family.bos is None else ids[family.bos],
        "eos_token_id": ids[family.eos],
        "pad_token_id": ids[family.pad],
        "do_sample": False,
    }
    files = {
        "config.json": hf_config(family),
        "generation_config.json": generation,
        **_PROCESSOR_FILES[family.name](family),
    }
    for name, content in files.items():
        text = json.dumps(content, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
