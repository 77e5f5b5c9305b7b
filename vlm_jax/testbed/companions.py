"""Writes what travels beside the weights: tokenizer, chat template and processor settings.

The tokenizer is a word list in the published file format: lower-cased words and punctuation marks.
"""

import json
import pathlib

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from vlm_jax.testbed.architecture import Family, hf_config

_CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
_CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


def chat_template(family: Family) -> str:
    """Returns the Jinja form of a chat: the user's images, then the user's words."""
    quote = lambda text: json.dumps(text, ensure_ascii=False)
    return (
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        f"{{{{ {quote(family.before)} }}}}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] if part['type'] == 'image' %}"
        f"{{{{ {quote(family.image + family.between)} }}}}"
        "{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'text' %}"
        "{{ part['text'] }}{% endfor %}{% endif %}"
        "{% else %}"
        f"{{{{ {quote(family.after + ' ')} + message['content'] + {quote(family.eos)} }}}}"
        "{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {quote(family.after)} }}}}{{% endif %}}"
    )


def make_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """Returns the family's word-level tokenizer."""
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


def _processor_files(family: Family) -> dict[str, dict]:
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
        "image_mean": _CLIP_MEAN,
        "image_std": _CLIP_STD,
    }
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": family.image,
        "num_additional_image_tokens": 1,
        "patch_size": family.patch,
        "vision_feature_select_strategy": "default",
    }
    return {"preprocessor_config.json": image, "processor_config.json": processor}


def write_companions(folder: str | pathlib.Path, family: Family) -> None:
    """Writes every file of a published model folder except its weights.

    Args:
        folder: an existing folder.
        family: whose files to write.
    """
    folder = pathlib.Path(folder)
    make_tokenizer(family).save_pretrained(folder)
    ids = {token: index for index, token in enumerate(family.tokens)}
    generation = {
        "bos_token_id": None if family.bos is None else ids[family.bos],
        "eos_token_id": ids[family.eos],
        "pad_token_id": ids[family.pad],
        "do_sample": False,
    }
    files = {
        "config.json": hf_config(family),
        "generation_config.json": generation,
        **_processor_files(family),
    }
    for name, content in files.items():
        text = json.dumps(content, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
