"""Merges Shikra's delta with LLaMA-7B and puts its CLIP tower beside it, in one folder.

    python scripts/shikra_folder.py shikra-7b-delta-v1 llama-7b clip-vit-large-patch14 shikra-7b

In this order: the delta, the base, the tower, the folder to write. The base is added in the delta's
precision, to as many rows as it has; what it has not (the linear map, the new words) is as it is.
"""

import json
import pathlib
import sys

from parts import read_config, read_tensors, write_folder


def main(delta: str, base: str, tower: str, target: str) -> None:
    """Reads the parts and writes the folder."""
    tensors = {n: v for n, v in read_tensors(delta).items() if "rotary_emb" not in n}
    for name, value in read_tensors(base).items():
        if name in tensors:
            tensors[name][: len(value)] += value.to(tensors[name].dtype)
    clip = read_tensors(tower)
    tensors |= {
        f"vision_tower.{name}": value
        for name, value in clip.items()
        if name.startswith("vision_model.") and not name.endswith("position_ids")
    }
    vision = read_config(tower)
    vision = vision.get("vision_config", vision) | {"model_type": "clip_vision_model"}
    config = read_config(delta) | {"model_type": "shikra", "vision_config": vision}
    found = pathlib.Path(tower) / "preprocessor_config.json"
    write_folder(target, tensors, config, json.loads(found.read_text(encoding="utf-8")), delta)


if __name__ == "__main__":
    main(*sys.argv[1:])
