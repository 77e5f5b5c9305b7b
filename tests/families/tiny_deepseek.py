"""Tiny DeepSeek-VL2 folders, and a reference of torch's nearest classes by parts.

transformers has no DeepSeek-VL2: the tower is its SigLIP, the decoder its DeepSeek-V2, -V3 or -OCR2
(latent attention with a softmax or sigmoid router; plain attention with experts). What joins them
is written out here as the authors' code does it.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import PIL.ImageOps
from safetensors.numpy import load_file

from convert.table import bind
from tests.tiny_tokenizers import byte_symbols
from tests.tiny_weights import save_shards, write_json
from vlm_jax.families import parse_config

SPECIALS = ["<image>", "<|User|>", "<|Assistant|>"]
SIDE = 104  # 7 patches of 14 pixels and 6 more: the map is odd, and the last pixels are left out

TEXT: dict[str, Any] = dict(
    vocab_size=272, hidden_size=64, intermediate_size=112, moe_intermediate_size=40,
    num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, n_shared_experts=2,
    n_routed_experts=8, num_experts_per_tok=3, first_k_dense_replace=1, moe_layer_freq=1,
    max_position_embeddings=4096,
)  # fmt: skip
LATENT: dict[str, Any] = dict(
    kv_lora_rank=24, q_lora_rank=None, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12,
)  # fmt: skip

KINDS: dict[str, dict[str, Any]] = {
    "tiny": TEXT | dict(use_mla=False, kv_lora_rank=None, q_lora_rank=None, qk_nope_head_dim=0,
                        qk_rope_head_dim=0, v_head_dim=0, topk_method="greedy"),
    "small": TEXT | LATENT | dict(topk_method="greedy"),
    # With this epsilon a latent that is normed with it is far off; groups are only this test's.
    "base": TEXT | LATENT | dict(topk_method="noaux_tc", scoring_func="sigmoid",
                                 norm_topk_prob=True, routed_scaling_factor=2.0, n_group=2,
                                 topk_group=1, rms_norm_eps=1e-2, q_lora_rank=20),
}  # fmt: skip
"""Text configs that stand for the released Tiny, Small and 4.5B."""


def deepseek_vl2(
    folder: str | pathlib.Path, kind: str = "small", *, dtype: str = "float32", shards: int = 1,
    seed: int = 0, **text: Any,
) -> pathlib.Path:  # fmt: skip
    """Writes a DeepSeek-VL2 folder with random tensors, the tower's unread pooling head too."""
    folder = pathlib.Path(folder)
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    language = KINDS[kind] | dict(eos_token_id=tokenizer.eos_token_id) | text
    config = {
        "model_type": "deepseek_vl_v2",
        "candidate_resolutions": [
            [SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]
        ],
        "global_view_pos": "head",
        "tile_tag": "2D",
        "language_config": language,
        "projector_config": {
            "input_dim": 48, "n_embed": 64, "projector_type": "downsample_mlp_gelu",
            "downsample_ratio": 2,
        },
        "vision_config": {
            "layers": 2, "width": 48, "heads": 4, "mlp_ratio": 1.7, "image_size": SIDE,
            "patch_size": 14,
        },
    }  # fmt: skip
    write_json(folder, "config.json", config)
    write_json(folder, "processor_config.json", {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    write_random(folder, dtype, shards, seed, {"vision.attn_pool.latent": (1, 1, 48)})
    return folder


def write_random(
    folder: pathlib.Path, dtype: str, shards: int, seed: int, more: dict[str, tuple[int, ...]]
) -> None:
    """Writes random tensors of all names of the folder's config, and of some more."""
    import torch

    config = parse_config(json.loads((folder / "config.json").read_text()))
    shapes = {tensor.name: tensor.disk_shape for tensor in bind(config).parameters} | more
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in sorted(shapes.items()):
        noise = torch.randn(shape, generator=generator)
        if name.endswith("bias"):
            value = 0.2 * noise
        elif len(shape) == 1 and name not in ("image_newline", "view_seperator"):
            value = 1 + 0.2 * noise
        else:
            fan_in = noise[0].numel() if len(shape) > 1 else 1
            # Queries louder, so that attention has preferences; latents so quiet that the epsilon
            # of their norm matters; experts so clearly ranked that no rounding changes a choice.
            loud = 2.0 if re.search(r"\.q(_b)?_proj\.", name) else 1.0
            loud = 0.05 if "kv_a_proj" in name else loud
            loud = 3.0 if name.endswith("mlp.gate.weight") else loud
            value = loud * noise / fan_in**0.5
        tensors[name] = value.to(getattr(torch, dtype))
    save_shards(folder, tensors, shards)


def _tokenizer():
    from transformers import Qwen2Tokenizer

    return Qwen2Tokenizer(
        vocab={symbol: index for index, symbol in enumerate(byte_symbols())},
        merges=[],
        bos_token="<\uff5cbegin\u2581of\u2581sentence\uff5c>",
        eos_token="<\uff5cend\u2581of\u2581sentence\uff5c>",
        pad_token="<\uff5c\u2581pad\u2581\uff5c>",
        extra_special_tokens=SPECIALS,
    )


def text_model(fields: dict[str, Any], tensors: dict[str, np.ndarray], dtype: Any) -> Any:
    """Returns torch's model of a DeepSeek text config, without its head.

    Args:
        fields: the text config.
        tensors: by name, as in `model.layers.0.mlp.gate.weight`.
        dtype: of the model.
    """
    import torch
    import transformers
    from transformers.models.deepseek_ocr2 import configuration_deepseek_ocr2 as ocr2_config
    from transformers.models.deepseek_ocr2 import modeling_deepseek_ocr2 as ocr2

    fields = {name: value for name, value in fields.items() if name != "eos_token_id"}
    if not fields.get("use_mla", True):
        latent = (*LATENT, "use_mla", "scoring_func", "norm_topk_prob")
        plain = {name: value for name, value in fields.items() if name not in latent}
        plain["mlp_layer_types"] = ["dense", "sparse", "sparse"]
        config: Any = ocr2_config.DeepseekOcr2TextConfig(**plain)
        kind: Any = ocr2.DeepseekOcr2TextModel
    elif fields.get("scoring_func") == "sigmoid":
        config, kind = transformers.DeepseekV3Config(**fields), transformers.DeepseekV3Model
    else:
        config, kind = transformers.DeepseekV2Config(**fields), transformers.DeepseekV2Model
    config._experts_implementation = "eager"  # the grouped product refuses float64
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = kind(config)
    count = fields["n_routed_experts"]
    state = {}
    for name in model.state_dict():
        part = "model." + name.rsplit(".", 1)[0]
        of = lambda what: [tensors[f"{part}.{x}.{what}_proj.weight"] for x in range(count)]  # noqa: B023
        if name.endswith("experts.gate_up_proj"):
            found = np.concatenate([np.stack(of("gate")), np.stack(of("up"))], axis=1)
        elif name.endswith("experts.down_proj"):
            found = np.stack(of("down"))
        else:
            found = tensors["model." + name]
        state[name] = torch.from_numpy(np.array(found)).to(dtype)
    model = model.to_empty(device="cpu").to(dtype)
    model.load_state_dict(state)
    for module in model.modules():  # buffers that no checkpoint has
        if hasattr(module, "original_inv_freq"):
            made = module.rope_init_fn if hasattr(module, "rope_init_fn") else None
            made = made or module.compute_default_rope_parameters
            module.inv_freq = made(config)[0]
            module.original_inv_freq = module.inv_freq
    return model.eval()


@dataclasses.dataclass(frozen=True)
class Reference:
    """Both parts of a folder in torch, joined as the authors' code joins them."""

    config: dict[str, Any]
    tensors: dict[str, Any]
    text: Any
    tower: Any
    image_token_id: int
    head: ClassVar[str] = "language.lm_head.weight"
    embedding: ClassVar[str] = "language.model.embed_tokens.weight"

    @classmethod
    def from_folder(cls, folder: str | pathlib.Path, dtype: str = "float32") -> "Reference":
        """Loads a folder of one file."""
        import torch
        import transformers

        folder = pathlib.Path(folder)
        config = json.loads((folder / "config.json").read_text())
        arrays = load_file(folder / "model.safetensors")
        kind = getattr(torch, dtype)
        words = {n.removeprefix("language."): a for n, a in arrays.items() if "language." in n}
        siglip = transformers.SiglipVisionConfig(
            hidden_size=48, intermediate_size=int(48 * 1.7), num_hidden_layers=2,
            num_attention_heads=4, image_size=SIDE, patch_size=14, vision_use_head=False,
        )  # fmt: skip
        tower = transformers.SiglipVisionModel(siglip).to(kind).eval()
        tower.load_state_dict(
            {n: torch.from_numpy(a).to(kind) for n, a in _siglip_names(arrays).items()}
        )
        tensors = {name: torch.from_numpy(array).to(kind) for name, array in arrays.items()}
        token: Any = _tokenizer().convert_tokens_to_ids("<image>")
        return cls(
            config, tensors, text_model(config["language_config"], words, kind), tower, token
        )

    def features(self, images: Sequence[PIL.Image.Image]):
        """Returns the image tokens of one sample, in their order."""
        import torch

        made = []
        for image in images:
            shapes = self.config["candidate_resolutions"] if len(images) <= 2 else [[SIDE, SIDE]]
            wide, high = max(shapes, key=lambda size: _rank(size, *image.size))
            padded = PIL.ImageOps.pad(image, (wide, high), color=(127, 127, 127))
            views = [PIL.ImageOps.pad(image, (SIDE, SIDE), color=(127, 127, 127))]
            for top in range(0, high, SIDE):
                for left in range(0, wide, SIDE):
                    views.append(padded.crop((left, top, left + SIDE, top + SIDE)))
            levels = np.stack([np.asarray(view, np.float32) for view in views]) / 255
            pixels = torch.from_numpy((levels - 0.5) / 0.5).permute(0, 3, 1, 2)
            states = self.tower(pixels.to(self.tower.dtype)).last_hidden_state
            maps = self._projected(states)  # [views, 4, 4, D]
            made.append(self._ended(maps[0]))
            made.append(self.tensors["view_seperator"][None])
            rows, cols = high // SIDE, wide // SIDE
            local = maps[1:].reshape(rows, cols, 4, 4, -1).transpose(1, 2)
            made.append(self._ended(local.reshape(rows * 4, cols * 4, -1)))
        return torch.cat(made)

    def _projected(self, states):
        import torch

        x = states.reshape(len(states), 7, 7, -1).permute(0, 3, 1, 2)
        x = torch.nn.functional.pad(x, (0, 1, 0, 1))
        x = torch.nn.functional.unfold(x, kernel_size=2, stride=2).transpose(1, 2)
        linear, t = torch.nn.functional.linear, self.tensors
        x = linear(x, t["projector.layers.0.weight"], t["projector.layers.0.bias"])
        x = torch.nn.functional.gelu(x)
        x = linear(x, t["projector.layers.2.weight"], t["projector.layers.2.bias"])
        return x.reshape(len(states), 4, 4, -1)

    def _ended(self, rows):
        import torch

        newline = self.tensors["image_newline"].expand(len(rows), 1, -1)
        return torch.cat([rows, newline], dim=1).flatten(0, 1)

    def logits(self, ids: Sequence[int], images: Sequence[PIL.Image.Image]) -> np.ndarray:
        """Float32 logits [T, V] of one sample."""
        import torch

        with torch.no_grad():
            tokens = torch.tensor(np.asarray(ids)).long()
            x = self.tensors[self.embedding][tokens].clone()
            if images:
                x[tokens == self.image_token_id] = self.features(images)
            positions = torch.arange(len(tokens))[None]
            hidden = self.text(inputs_embeds=x[None], position_ids=positions).last_hidden_state[0]
            head = self.tensors[self.head]
            return torch.nn.functional.linear(hidden, head).float().numpy()

    def greedy(self, ids, images, count: int, stop_ids=()) -> list[int]:
        """Tokens that the largest logits give, a stop id included."""
        ids, made = list(ids), []
        while len(made) < count and not (made and made[-1] in stop_ids):
            made.append(int(self.logits(ids + made, images)[-1].argmax()))
        return made


def _rank(size: Sequence[int], width: int, height: int) -> tuple[int, int]:
    """The more of an image's pixels a resolution keeps the better, then the less it wastes."""
    scale = min(size[0] / width, size[1] / height)
    kept = min(int(width * scale) * int(height * scale), width * height)
    return kept, kept - size[0] * size[1]


def _siglip_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rules = (
        (r"^vision\.patch_embed\.proj", "embeddings.patch_embedding"),
        (r"^vision\.pos_embed", "embeddings.position_embedding.weight"),
        (r"^vision\.norm", "post_layernorm"),
        (r"^vision\.blocks", "encoder.layers"),
        (r"\.norm(\d)", r".layer_norm\1"),
        (r"attn\.proj", "self_attn.out_proj"),
    )
    found = {}
    for name, array in arrays.items():
        if not name.startswith("vision.") or "attn_pool" in name:
            continue
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if "attn.qkv" in name:
            for part, piece in zip("qkv", np.split(array, 3)):
                found[name.replace("attn.qkv", f"self_attn.{part}_proj")] = piece
        else:
            found[name] = array[0] if "position" in name else array
    return found
