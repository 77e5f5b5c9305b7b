"""Random tensors of tiny checkpoints, under the names and in the files of published ones."""

import json
import pathlib
import re
from typing import Any

NAMINGS = ("hub", "saved", "memory")


def write_weights(model_class, folder, naming, dtype, shards, nested, seed) -> None:
    """Writes random tensors of the model that config.json describes, named as `tiny.llava` says."""
    import torch
    import transformers

    if naming not in NAMINGS:
        raise ValueError(f"naming must be one of {NAMINGS}, not {naming!r}")
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = model_class(config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            value = 0.2 * noise
        elif parameter.ndim < 2 and "class_embedding" not in name and "newline" not in name:
            value = 1 + 0.2 * noise
        else:
            # Unit-variance outputs, but louder queries and keys, so that attention has preferences.
            loud = 1.5 if re.search(r"\.[qk]_proj\.|query_tokens", name) else 1.0
            value = loud * noise / parameter[0].numel() ** 0.5
        tensors[rename(name, config.model_type, naming)] = value.to(getattr(torch, dtype))
    save_shards(folder, tensors, shards)
    if nested:
        config.architectures = [model_class.__name__]
        config.dtype = dtype
        config.save_pretrained(folder)


def rename(name: str, family: str, naming: str) -> str:
    """The name on disk, in a naming style, of a parameter of the torch model in memory."""
    if naming == "memory" or family == "qwen3_vl":
        return name
    if family == "qwen2_5_vl":
        rules = [(r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model.")]
    else:
        clip = naming == "hub" and family != "internvl"
        tower = "vision_tower.vision_model." if clip else "vision_tower."
        rules = [
            (r"^model\.image_newline", "image_newline"),
            (r"^model\.vision_tower\.", tower),
            (r"^model\.multi_modal_projector\.", "multi_modal_projector."),
            (r"^model\.language_model\.", "language_model.model."),
            (r"^lm_head\.", "language_model.lm_head."),
        ]
    for pattern, prefix in rules:
        name, count = re.subn(pattern, prefix, name)
        if count:
            break
    return name


def save_shards(folder: pathlib.Path, tensors: dict[str, Any], shards: int) -> None:
    """Writes tensors as one safetensors file, or several with an index."""
    from safetensors.torch import save_file

    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for index in range(shards):
        file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[index::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index_json = {
        "metadata": {"total_size": total},
        "weight_map": dict(sorted(weight_map.items())),
    }
    write_json(folder, "model.safetensors.index.json", index_json)


def write_json(folder: pathlib.Path, name: str, content: dict[str, Any]) -> None:
    """Writes a JSON file of a folder."""
    (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
