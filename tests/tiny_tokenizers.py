"""Tokenizers of tiny checkpoints, of the released kinds, and chat templates."""

from typing import Any

QWEN_SPECIALS = [
    f"<|{name}|>"
    for name in (
        "endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start",
        "box_end", "quad_start", "quad_end", "vision_start", "vision_end", "vision_pad",
        "image_pad", "video_pad",
    )
]  # fmt: skip

INTERNVL_SPECIALS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>",
]  # fmt: skip

TEXT_ONLY_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for item in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for item in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ item['text'] + ' ' }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in item %}{{ item['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# No system turn unless there is a system message.
QWEN3_VL_TEMPLATE = QWEN_TEMPLATE.replace(
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}",
    "",
)


def byte_symbols() -> list[str]:
    """The printable stand-ins of the 256 bytes in byte-level BPE."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


def qwen_tokenizer(template: str | None):
    from transformers import Qwen2Tokenizer

    merges: Any = [("t", "h"), ("th", "e"), ("a", "n"), ("i", "n"), ("e", "r")]
    symbols = [*byte_symbols(), *("".join(pair) for pair in merges)]
    tokenizer = Qwen2Tokenizer(
        vocab={symbol: index for index, symbol in enumerate(symbols)},
        merges=merges,
        eos_token="<|im_end|>",
        extra_special_tokens=QWEN_SPECIALS,
    )
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def llama_tokenizer(**options):
    from transformers import LlamaTokenizer

    merges: Any = [("t", "h"), ("th", "e"), ("a", "n"), ("i", "n"), ("e", "r")]
    symbols = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "\u2581"]
    symbols += [chr(c) for c in range(33, 127)] + ["".join(pair) for pair in merges]
    vocab = {symbol: index for index, symbol in enumerate(symbols)}
    return LlamaTokenizer(vocab=vocab, merges=merges, add_bos_token=True, **options)


def llava_tokenizer(template: str | None):
    image = {"image_token": "<image>"}
    tokenizer = llama_tokenizer(pad_token="<pad>", extra_special_tokens=image)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def instructblip_tokenizer(image: bool = True):
    """Vicuna's as InstructBLIP has it: what begins a sequence is what ends it."""
    end = "</s>"
    options = {"extra_special_tokens": {"image_token": "<image>"}} if image else {}
    return llama_tokenizer(
        bos_token=end, eos_token=end, unk_token=end, pad_token="[PAD]", **options
    )


def question_tokenizer():
    """A Q-Former's BERT, by characters."""
    from transformers import BertTokenizer

    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    inside = [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"]
    symbols = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *letters, *inside]
    vocab = {symbol: index for index, symbol in enumerate(symbols)}
    return BertTokenizer(vocab=vocab, bos_token="[DEC]")


INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% else %}{{ item['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def internvl_tokenizer():
    from transformers import Qwen2Tokenizer

    symbols = byte_symbols()
    tokenizer = Qwen2Tokenizer(
        vocab={symbol: index for index, symbol in enumerate(symbols)},
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=INTERNVL_SPECIALS,
    )
    tokenizer.chat_template = INTERNVL_TEMPLATE
    return tokenizer
