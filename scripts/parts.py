"""Reads the parts that a model was released in, and writes them as one folder of safetensors.

Needs torch. Pickles are read with `weights_only=True`, which runs no code of theirs.
"""

import json
import pathlib
import shutil
from collections.abc import Mapping

import torch
from safetensors.torch import load_file, save_file

SHARD_BYTES = 4 << 30
WORDS = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "generation_config.json",
)  # fmt: skip


def read_tensors(path: str | pathlib.Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a file, or of all weight files of a folder."""
    path = pathlib.Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
        if not files:
            raise SystemExit(f"{path} holds no weights.")
        return {name: value for file in files for name, value in read_tensors(file).items()}
    if path.suffix == ".safetensors":
        return load_file(path)
    found = torch.load(path, map_location="cpu", weights_only=True)
    return found.get("model", found)


def write_folder(
    target: str | pathlib.Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping,
    preprocessor: Mapping,
    words: str | pathlib.Path,
) -> None:
    """Writes a folder.

    Args:
        target: a folder that does not exist yet.
        tensors: by name.
        config, preprocessor: contents of config.json and preprocessor_config.json.
        words: folder of the tokenizer.
    """
    target = pathlib.Path(target)
    target.mkdir(parents=True)
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, value in sorted(tensors.items()):
        if size and size + value.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = value.contiguous()
        size += value.nbytes
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, target / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(value.nbytes for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    for name, content in (
        ("model.safetensors.index.json", index),
        ("config.json", config),
        ("preprocessor_config.json", preprocessor),
    ):
        (target / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name in WORDS:
        if (pathlib.Path(words) / name).exists():
            shutil.copyfile(pathlib.Path(words) / name, target / name)


def read_config(folder: str | pathlib.Path) -> dict:
    """Returns the config.json of a folder."""
    return json.loads((pathlib.Path(folder) / "config.json").read_text(encoding="utf-8"))
