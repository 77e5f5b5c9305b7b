"""Kimi-VL: MoonViT against transformers' Kimi K2.5 tower, its tokenizer without its code."""

import base64
import json
import pathlib
import re
from typing import Any

import numpy as np
import PIL.Image
import pytest

from convert import export_hf, import_hf
from tests.families import parity, tiny_deepseek
from tests.families.tiny_deepseek import LATENT, TEXT
from tests.reference import picture
from tests.released import CONFIGS
from tests.tiny_weights import write_json
from vlm_jax.errors import CheckpointError, ConfigError
from vlm_jax.families import find, parse_config
from vlm_jax.families.kimi_vl import MoonPixels

SPECIALS = ["[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>",
            "<|im_middle|>", "<|media_start|>", "<|media_content|>", "<|media_end|>",
            "<|media_pad|>", "[PAD]"]  # fmt: skip
MERGED = ["th", "the", " the", "an", " an", "in", "er"]
LIMIT = 64

TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>{% endif %}"
    "<|im_{{ message['role'] }}|>{{ message['role'] }}<|im_middle|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}"
    "<|media_start|>image<|media_content|><|media_pad|><|media_end|>"
    "{% else %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}"
)


def kimi_vl(folder, *, dtype="float32", shards=1):
    """Writes a Kimi-VL folder with random tensors and a tokenizer of ranks."""
    folder.mkdir()
    tokens = [bytes([byte]) for byte in range(256)] + [token.encode() for token in MERGED]
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    (folder / "tiktoken.model").write_bytes(b"\n".join(lines) + b"\n")
    first = len(tokens)
    named = {str(first + i): {"content": text} for i, text in enumerate(SPECIALS)}
    words = {"added_tokens_decoder": named, "bos_token": "[BOS]", "eos_token": "[EOS]"}
    words |= {"pad_token": "[PAD]", "auto_map": {"AutoTokenizer": ["code.Never", None]}}
    write_json(folder, "tokenizer_config.json", words | {"chat_template": TEMPLATE})
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "in_token_limit": LIMIT}
    write_json(folder, "preprocessor_config.json", pixels)
    text = TEXT | LATENT | dict(
        vocab_size=first + 256, topk_method="noaux_tc", scoring_func="sigmoid", norm_topk_prob=True,
        routed_scaling_factor=2.446, n_group=1, topk_group=1, eos_token_id=first + 1,
    )  # fmt: skip
    vision = dict(hidden_size=48, num_attention_heads=4, num_hidden_layers=2, intermediate_size=40,
                  init_pos_emb_height=6, init_pos_emb_width=6)  # fmt: skip
    root = {"model_type": "kimi_vl", "text_config": text, "vision_config": vision}
    root["media_placeholder_token_id"] = first + SPECIALS.index("<|media_pad|>")
    write_json(folder, "config.json", root)
    buffers = {"language_model.model.layers.0.self_attn.rotary_emb.inv_freq": (4,)}
    tiny_deepseek.write_random(folder, dtype, shards, 0, buffers)
    return folder


class Reference(tiny_deepseek.Reference):
    """The tower of Kimi K2.5 on one frame, its projector written out, DeepSeek-V3's decoder."""

    head = "language_model.lm_head.weight"
    embedding = "language_model.model.embed_tokens.weight"

    @classmethod
    def from_folder(cls, folder, dtype="float32"):
        import torch
        from safetensors.numpy import load_file
        from transformers.models.kimi_k25 import configuration_kimi_k25 as configs
        from transformers.models.kimi_k25 import modeling_kimi_k25 as modeling

        folder = pathlib.Path(folder)
        config = json.loads((folder / "config.json").read_text())
        arrays, kind = load_file(folder / "model.safetensors"), getattr(torch, dtype)
        vision = configs.Kimi_K25VisionConfig(
            hidden_size=48, num_attention_heads=4, num_hidden_layers=2, intermediate_size=40,
            pos_emb_height=6, pos_emb_width=6,
        )  # fmt: skip
        vision._attn_implementation = "eager"
        tower = modeling.Kimi_K25VisionModel(vision).to(kind).eval()
        state = {n: torch.from_numpy(a).to(kind) for n, a in _tower_names(arrays).items()}
        tower.load_state_dict(state)
        words = {
            name.removeprefix("language_model."): array
            for name, array in arrays.items()
            if name.startswith("language_model.")
        }
        tensors = {name: torch.from_numpy(array).to(kind) for name, array in arrays.items()}
        text = tiny_deepseek.text_model(config["text_config"], words, kind)
        return cls(config, tensors, text, tower, config["media_placeholder_token_id"])

    def features(self, images):
        import torch

        made, t, functional = [], self.tensors, torch.nn.functional
        for image in images:
            pixels = torch.from_numpy(pixels_of(image)).to(self.tower.dtype)
            rows, cols = pixels.shape[1] // 14, pixels.shape[2] // 14
            cells = pixels.reshape(3, rows, 14, cols, 14).permute(1, 3, 0, 2, 4)
            grid = torch.tensor([[1, rows, cols]])
            x = self.tower(cells.reshape(-1, 3, 14, 14), grid_thw=grid).pooler_output
            norm, first = "multi_modal_projector.pre_norm.", "multi_modal_projector.linear_"
            x = functional.layer_norm(x, (48,), t[norm + "weight"], t[norm + "bias"], 1e-5)
            x = functional.linear(x.flatten(1), t[first + "1.weight"], t[first + "1.bias"])
            x = functional.gelu(x)
            made.append(functional.linear(x, t[first + "2.weight"], t[first + "2.bias"]))
        return torch.cat(made)


def pixels_of(image: PIL.Image.Image) -> np.ndarray:
    """An image as the authors' processor makes it, [3, H, W]."""
    patches = (image.width // 14) * (image.height // 14)
    if patches > LIMIT:
        scale = (LIMIT / patches) ** 0.5
        size = int(image.width * scale), int(image.height * scale)
        image = image.resize(size, PIL.Image.Resampling.BICUBIC)
    padded = PIL.Image.new("RGB", (-(-image.width // 28) * 28, -(-image.height // 28) * 28))
    padded.paste(image, (0, 0))
    levels = (np.asarray(padded, np.float32) / 255 - np.float32(0.5)) / np.float32(0.5)
    return levels.transpose(2, 0, 1)


def _tower_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rules = (
        (r"^vision_tower\.", ""), (r"pos_emb\.weight", "pos_emb.position_embeddings"),
        (r"^encoder\.blocks", "layers"), (r"^encoder\.", ""), (r"\.norm1", ".norm2"),
        (r"\.norm0", ".norm1"), (r"\.wo\.", ".attn.proj."), (r"fc1", "fc2"), (r"fc0", "fc1"),
    )  # fmt: skip
    turned = np.array([*range(0, 12, 2), *range(1, 12, 2)])  # neighbours of a head apart
    found = {}
    for name, array in arrays.items():
        if not name.startswith("vision_tower."):
            continue
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if ".wqkv." not in name:
            found[name] = array
            continue
        for part, piece in zip("qkv", np.split(array, 3)):
            if part != "v":
                piece = piece.reshape(4, 12, -1)[:, turned].reshape(piece.shape)
            found[name.replace("wqkv", f"attn.{part}_proj")] = piece
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return kimi_vl(tmp_path_factory.mktemp("kimi") / "hf")


@pytest.fixture(scope="module")
def pair(folder):
    return parity.Pair.of(folder, Reference)


@pytest.mark.parametrize("check", parity.checks("logits", "kinds"))
def test_it_is_the_reference(pair, check):
    getattr(parity, f"check_{check}")(pair)


@pytest.mark.parametrize(
    ("width", "height", "grid", "tokens"),
    [
        (224, 224, (16, 16), 64), (640, 480, (36, 46), 414), (480, 640, (46, 36), 414),
        (500, 375, (28, 36), 252), (1024, 768, (56, 74), 1036), (1920, 1080, (48, 86), 1032),
        (4000, 3000, (56, 74), 1036), (2000, 500, (34, 130), 1105), (896, 896, (64, 64), 1024),
        (897, 897, (66, 66), 1089), (100, 30, (4, 8), 8), (14, 14, (2, 2), 1),
    ],
)  # fmt: skip
def test_token_counts_at_the_released_size(width, height, grid, tokens):
    config = parse_config(CONFIGS["Kimi-VL-A3B"])
    cut: Any = find("kimi_vl").cutter(
        config, MoonPixels(image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))
    )
    assert cut.resized(width, height) == (grid[1] * 14, grid[0] * 14)
    assert cut.extent(width, height).tokens == tokens
    regions_m4 = cut.regions(width, height)
    assert len(regions_m4) == tokens
    covered = np.clip(regions_m4[:, 2:], 0, 1) - regions_m4[:, :2]
    np.testing.assert_allclose(covered.prod(1).sum(), 1)
    with pytest.raises(ValueError, match="512"):
        cut.extent(7168, 100)


@pytest.mark.parametrize("size", [(60, 84), (112, 56), (200, 90), (30, 170)])
def test_pixels_are_pillows_bit_for_bit(pair, size):
    image = picture(*size)
    batch: Any = pair.vlm.processor.batch([[image]], ["What?"])
    pixels = pixels_of(image)
    rows, cols = pixels.shape[1] // 28, pixels.shape[2] // 28
    cells = pixels.reshape(3, rows, 2, 14, cols, 2, 14).transpose(1, 4, 2, 5, 0, 3, 6)
    flat = cells.reshape(-1, 588)
    found = np.asarray(batch.images.patches_bgue)[0].reshape(-1, 588)
    np.testing.assert_array_equal(found[: len(flat)], flat)
    assert not found[len(flat) :].any()


def test_words_of_a_file_of_ranks(pair):
    tokenizer, processor = pair.vlm.processor.tokenizer, pair.vlm.processor
    pieces = lambda text: [tokenizer.decode([i]) for i in tokenizer.encode(text)]
    assert pieces("in the 1234") == ["in", " the", " ", "1", "2", "3", "4"]
    assert pieces("other") == ["o", "the", "r"]
    assert pieces("\u4f60<|im_end|>")[-1] == "<|im_end|>"
    for text in ("Don't  stop\n\n\u4f60\u597d, \U0001f600!", "\u25c1think\u25b7 a\u0301 12"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    first = 256 + len(MERGED)
    assert set(processor.stop_ids) == {first + 1, first + 2}  # [EOS] and <|im_end|>
    begins = "<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>"
    asked = "<|im_user|>user<|im_middle|>{}What?<|im_end|><|im_assistant|>assistant<|im_middle|>"
    image = "<|media_start|>image<|media_content|><|media_pad|><|media_end|>"
    assert processor.template("What?", 1) == begins + asked.format(image)


def test_it_comes_back_in_equal_bytes(tmp_path):
    source = kimi_vl(tmp_path / "hf", dtype="bfloat16", shards=2)
    import_hf(source, tmp_path / "ours", progress=False)
    export_hf(tmp_path / "ours", tmp_path / "back", progress=False)
    names = sorted(path.name for path in source.iterdir())
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == names
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes(), name


def test_a_folder_without_words_says_so(tmp_path):
    folder = kimi_vl(tmp_path / "hf")
    (folder / "tiktoken.model").write_bytes(b"not a rank\n")
    with pytest.raises(CheckpointError, match="line 1 is no token and rank"):
        find("kimi_vl").tokenizer(folder)
    (folder / "tiktoken.model").write_bytes(b"YQ== 0\n")
    with pytest.raises(CheckpointError, match="each byte"):
        find("kimi_vl").tokenizer(folder)
    (folder / "tiktoken.model").unlink()
    with pytest.raises(CheckpointError, match=r"no tiktoken.model; its tokenizer's own code"):
        find("kimi_vl").tokenizer(folder)


@pytest.mark.parametrize(
    ("section", "changes", "said"),
    [
        ("text_config", "q_lora_rank", "q_lora_rank"),
        ("text_config", "n_group", "n_group"),
        ("text_config", "scoring_func", "scoring_func"),
        ("vision_config", dict(merge_kernel_size=[4, 4]), "merge_kernel_size must be"),
        ("vision_config", dict(init_pos_emb_height=7), "init_pos_emb_height 7 must be"),
    ],
)
def test_what_cannot_be_is_said(folder, section, changes, said):
    root = json.loads((folder / "config.json").read_text())
    if isinstance(changes, str):
        del root[section][changes]
    else:
        root[section].update(changes)
    with pytest.raises(ConfigError, match=said):
        parse_config(root)
