"""MiniGPT-4 and Shikra: released in parts, joined by scripts/, and equal to torch's parts."""

import dataclasses
import json
import pathlib
import runpy
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import vlm_jax
from convert import export_hf, import_hf
from tests.families import parity
from tests.families.test_instructblip import IMAGES, PROMPTS
from tests.reference import picture
from tests.tiny_configs import blip_preprocessor, clip_preprocessor
from tests.tiny_tokenizers import llama_tokenizer
from vlm_jax.errors import CheckpointError, ConfigError
from vlm_jax.families import parse_config
from vlm_jax.families.shikra import SYSTEM

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


def run(script: str, monkeypatch, *args) -> None:
    """Runs a script of scripts/ as its docstring says."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    runpy.run_path(str(SCRIPTS / script))["main"](*map(str, args))


def fill(module: torch.nn.Module, seed: int) -> Any:
    """Draws every parameter, norms and biases too."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            parameter.data = 0.2 * noise
        elif parameter.ndim == 1 and "class_embedding" not in name:
            parameter.data = 1 + 0.2 * noise
        else:
            parameter.data = noise / parameter[0].numel() ** 0.5
    return module.eval()


def settings_of(preprocessor: dict) -> dict:
    """The settings of a preprocessor_config.json, without the names of classes."""
    return {k: v for k, v in preprocessor.items() if not k.endswith(("_type", "_class"))}


def llama(vocab: int) -> transformers.LlamaForCausalLM:
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=112, num_hidden_layers=3, num_attention_heads=4,
        vocab_size=vocab, max_position_embeddings=512, rms_norm_eps=1e-6,
    )  # fmt: skip
    return fill(transformers.LlamaForCausalLM(config), 3)


@dataclasses.dataclass(frozen=True)
class Parts:
    """Torch's parts, joined: features in the place of the image tokens' embeddings."""

    features: Any
    language: Any
    image_id: int
    dtype: torch.dtype

    def embed(self, ids, images):
        tokens = torch.tensor(ids)[None]
        embeds = self.language.get_input_embeddings()(tokens).clone()
        embeds[tokens == self.image_id] = self.features(images, self.dtype).reshape(
            -1, embeds.shape[-1]
        )
        return embeds

    def logits(self, ids, images) -> np.ndarray:
        with torch.no_grad():
            return self.language(inputs_embeds=self.embed(ids, images)).logits[0].float().numpy()

    def greedy(self, ids, images, count, stop_ids=(), **options) -> list[int]:
        with torch.no_grad():
            return self.language.generate(
                inputs_embeds=self.embed(ids, images),
                max_new_tokens=count,
                do_sample=False,
                eos_token_id=list(stop_ids),
            )[0].tolist()


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as context:
        yield context


@pytest.fixture(scope="module")
def minigpt4(tmp_path_factory, patch):
    """The folder that the script makes, and the parts in torch."""
    work = tmp_path_factory.mktemp("minigpt4")
    vision = transformers.Blip2VisionConfig(
        hidden_size=176, intermediate_size=80, num_hidden_layers=3, num_attention_heads=2,
        image_size=56, patch_size=14, layer_norm_eps=1e-6,
    )  # fmt: skip
    tower = fill(transformers.Blip2VisionModel(vision), 1)
    tower.post_layernorm.eps = 1e-5
    for layer in tower.encoder.layers:
        layer.self_attn.qkv.bias.data[176:352] = 0
    settings = transformers.Blip2QFormerConfig(
        hidden_size=128, intermediate_size=56, num_hidden_layers=4, num_attention_heads=2,
        encoder_hidden_size=176, use_qformer_text_input=False,
    )  # fmt: skip
    former = fill(transformers.Blip2QFormerModel(settings), 2)
    queries = 1.5 * torch.randn(1, 5, 128, generator=torch.Generator().manual_seed(4))
    projection, language = fill(torch.nn.Linear(128, 64), 5), llama(384)

    rules = (
        ("embeddings.class_embedding", "cls_token"),
        ("embeddings.position_embedding", "pos_embed"),
        ("embeddings.patch_embedding", "patch_embed.proj"),
        ("encoder.layers", "blocks"),
        ("self_attn.projection", "attn.proj"),
        ("self_attn.qkv", "attn.qkv"),
        ("layer_norm", "norm"),
        ("post_layernorm", "ln_vision"),
    )
    eva = {}
    for name, value in tower.state_dict().items():
        for old, new in rules:
            name = name.replace(old, new)
        if name.endswith("qkv.bias"):
            at = name.removesuffix("qkv.bias")
            eva |= {at + "q_bias": value[:176].clone(), at + "v_bias": value[352:].clone()}
        else:
            eva[name] = value
    norm = {n: eva.pop(n) for n in ("ln_vision.weight", "ln_vision.bias")}
    last = {n.replace("blocks.2.", "blocks.3."): v for n, v in eva.items() if "blocks.2." in n}
    torch.save(eva | last | {"head.weight": torch.ones(3, 3)}, work / "eva_vit_g.pth")
    bert = {"Qformer.bert.embeddings.LayerNorm." + n: former.layernorm.state_dict()[n]
            for n in ("weight", "bias")}  # fmt: skip
    for name, value in former.encoder.state_dict().items():
        name = name.replace("attention.attention.", "attention.self.")
        bert[f"Qformer.bert.encoder.{name}"] = value
    unused = "Qformer.bert.encoder.layer.0.intermediate.dense.weight"
    whole = bert | norm | {"query_tokens": queries, unused: torch.ones(2), "t5_proj.bias": queries}
    torch.save({"model": whole}, work / "blip2.pth")
    torch.save({"model": {f"llama_proj.{n}": v for n, v in projection.state_dict().items()}},
               work / "llama_proj.pth")  # fmt: skip
    language.save_pretrained(work / "vicuna")
    llama_tokenizer(pad_token="<pad>").save_pretrained(work / "vicuna")
    files = [work / name for name in ("eva_vit_g.pth", "blip2.pth", "llama_proj.pth", "vicuna")]
    run("minigpt4_folder.py", patch, *files, work / "hf")

    cut = transformers.BlipImageProcessorPil(**settings_of(blip_preprocessor(56)))

    def features(images, dtype):
        tower.to(dtype), former.to(dtype), projection.to(dtype)
        pixels = cut(images=images, return_tensors="pt")["pixel_values"].to(dtype)
        seen = tower(pixels).last_hidden_state
        asked = former(query_embeds=queries.to(dtype), encoder_hidden_states=seen)
        return projection(asked.last_hidden_state)

    return work / "hf", features, language, 0


@pytest.fixture(scope="module")
def shikra(tmp_path_factory, patch):
    """The folder that the script makes of a delta, and the parts in torch."""
    work = tmp_path_factory.mktemp("shikra")
    marks = {f"{name}_token": f"<{name}>" for name in ("im_patch", "im_start", "im_end")}
    tokenizer = llama_tokenizer(pad_token="<pad>", extra_special_tokens=marks)
    vision = transformers.CLIPVisionConfig(
        hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=3,
        image_size=56, patch_size=14,
    )  # fmt: skip
    tower = fill(transformers.CLIPVisionModel(vision), 1)
    projection, language = fill(torch.nn.Linear(48, 64), 2), llama(384)
    target = {name: value.half() for name, value in language.state_dict().items()}
    draw = torch.Generator().manual_seed(7)
    rows = lambda name, value: value[:370] if "embed" in name or "head" in name else value
    base = {
        name: torch.randn(rows(name, value).shape, generator=draw).half() / 8
        for name, value in target.items()
    }
    delta = {name: value.clone() for name, value in target.items()}
    for name, value in base.items():
        delta[name][: len(value)] -= value
    linear = {f"model.mm_projector.{n}": v.half() for n, v in projection.state_dict().items()}
    for name, tensors in {"delta": delta | linear, "base": base}.items():
        (work / name).mkdir()
        torch.save(tensors, work / name / "pytorch_model.bin")
    root = language.config.to_dict() | {
        "model_type": "shikra", "mm_vision_tower": "openai/clip", "use_mm_proj": True,
        "mm_vision_select_layer": -2, "mm_use_im_start_end": True,
    }  # fmt: skip
    (work / "delta" / "config.json").write_text(json.dumps(root))
    tokenizer.save_pretrained(work / "delta")
    (work / "clip").mkdir()
    clip = {
        name if name.startswith("vision_model.") else f"vision_model.{name}": value
        for name, value in tower.state_dict().items()
    }
    save_file(clip | {"logit_scale": torch.ones(1)}, work / "clip" / "model.safetensors")
    (work / "clip" / "config.json").write_text(json.dumps({"vision_config": vision.to_dict()}))
    preprocessor = json.dumps(clip_preprocessor(56))
    (work / "clip" / "preprocessor_config.json").write_text(preprocessor)
    run("shikra_folder.py", patch, work / "delta", work / "base", work / "clip", work / "hf")
    merged = {}
    for file in sorted((work / "hf").glob("*.safetensors")):
        merged |= load_file(file)
    for name, value in target.items():  # a difference in half precision, added again
        torch.testing.assert_close(merged[name], value, atol=2e-3, rtol=2e-3)
    language.load_state_dict({name: merged[name] for name in target})
    projection.load_state_dict({n: linear[f"model.mm_projector.{n}"] for n in ("weight", "bias")})
    cut = transformers.CLIPImageProcessorPil(**settings_of(clip_preprocessor(56)))

    def features(images, dtype):
        tower.to(dtype), projection.to(dtype)
        squares = []
        for image in images:  # `expand2square` of the authors
            side = max(image.size)
            square = picture(1, 1).resize((side, side))
            square.paste((255, 255, 255), (0, 0, side, side))
            square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            squares.append(square)
        pixels = cut(images=squares, return_tensors="pt")["pixel_values"].to(dtype)
        seen = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        return projection(seen)

    return work / "hf", features, language, tokenizer.convert_tokens_to_ids("<im_patch>")


@pytest.fixture(scope="module", params=["minigpt4", "shikra"])
def pair(request):
    import copy

    folder, features, language, image_id = request.getfixturevalue(request.param)
    references = [
        Parts(features, copy.deepcopy(language).to(dtype), image_id, dtype)
        for dtype in (torch.float32, torch.float64)
    ]
    return parity.Pair(
        vlm_jax.load(folder, dtype="float32"), *references, images=IMAGES, prompts=PROMPTS
    )


slow = lambda name: pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "check",
    ["logits", "kinds", slow("greedy"), slow("prefixes"), slow("batches"), slow("methods")],
)
def test_it_is_the_reference(pair, check):
    getattr(parity, f"check_{check}")(pair)


def test_folders_travel_both_ways(minigpt4, shikra, tmp_path):
    for name, source in (("minigpt4", minigpt4[0]), ("shikra", shikra[0])):
        import_hf(source, tmp_path / name, progress=False)
        export_hf(tmp_path / name, tmp_path / f"{name} back", progress=False)
        for path in source.iterdir():
            assert (tmp_path / f"{name} back" / path.name).read_bytes() == path.read_bytes()


def test_words_are_encoded_piece_by_piece(minigpt4, shikra):
    words = vlm_jax.load(minigpt4[0]).processor
    piece = lambda text: words.tokenizer.encode(text, add_special_tokens=False)
    text = words.template("What?", 1)
    assert text == "###Human: <Img><ImageHere></Img> What? ###Assistant:"
    parts = piece("###Human: <Img>"), piece("</Img> What? ###Assistant:")
    assert words.encode(text) == [1, *parts[0], 0, *parts[1]]
    words = vlm_jax.load(shikra[0]).processor
    assert words.template("What?", 1) == f"{SYSTEM} USER: <image> What? ASSISTANT:"
    asked = words.template(["A?", "B", "C?"], 1)
    assert asked == f"{SYSTEM} USER: <image> A? ASSISTANT: B</s>USER: C? ASSISTANT:"
    start, image, end = words.tokenizer.convert_tokens_to_ids(
        ["<im_start>", "<im_patch>", "<im_end>"]
    )
    parts = piece(f"{SYSTEM} USER:"), piece("What? ASSISTANT:")
    ids = words.encode(words.template("What?", 1))
    assert ids == [1, *parts[0], start, image, end, *parts[1]]


def test_an_answer_ends_where_the_next_turn_begins(minigpt4):
    vlm = vlm_jax.load(minigpt4[0], dtype="float32")
    row = vlm.params["decoder/head_vd"]
    sharp = vlm.processor.tokenizer.encode("#", add_special_tokens=False)[-1]
    loud = vlm.with_params(vlm.params | {"decoder/head_vd": row.at[:].set(0).at[sharp].set(0)})
    bias = np.zeros(384, np.float32)
    bias[sharp] = 9
    said: Any
    [said] = loud.answer([IMAGES[0]], ["What?"], max_new_tokens=8, logit_bias=bias)
    assert (said.text, len(said.tokens), said.ended) == ("", 3, True)


def test_what_cannot_be(shikra, tmp_path):
    root = json.loads((shikra[0] / "config.json").read_text())
    bare = {name: value for name, value in root.items() if name != "vision_config"}
    with pytest.raises(ConfigError, match=r"has no vision_config: .*scripts/shikra_folder.py"):
        parse_config(bare)
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles" / "config.json").write_text(json.dumps({"model_type": "minigpt4"}))
    (tmp_path / "pickles" / "eva_vit_g.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="PyTorch pickles only"):
        vlm_jax.load(tmp_path / "pickles")
