"""Writes a model folder again with wider heads, which compute what the narrow ones did.

    python scripts/wider_heads.py vlm_jax/testbed/models/llava-0 out/llava-0-wide

The testbed's heads are 16 wide, and some serving stacks run no fewer than 32. Every head of the
decoder is padded to twice its width with zeros. Three things keep the logits what they were:

- Pair i of a head turns by theta ** (-2i/H). Of H' = 2H that is the frequency of pair 2i, so pair i
  goes there: dims 2i and 2i + H, where dims i and i + H/2 were.
- Logits are divided by sqrt(H'), so queries are multiplied by sqrt(2).
- Where the width of a head follows from the hidden size (Qwen2.5-VL), the stream is padded as well.
  Its mean square is then half, so epsilon is halved and gains of norms are divided by sqrt(2).

Weights are written as float32: sqrt(2) has no exact value in half precision.
"""

import json
import pathlib
import shutil
import sys

import numpy as np
from safetensors.numpy import load_file, save_file


def main(source: str, target: str) -> None:
    """Reads one folder and writes the other."""
    read, write = pathlib.Path(source), pathlib.Path(target)
    config = json.loads((read / "config.json").read_text(encoding="utf-8"))
    text = config["text_config"]
    heads, kv_heads = text["num_attention_heads"], text["num_key_value_heads"]
    width = text["hidden_size"]
    head = text.get("head_dim", width // heads)
    tensors = load_file(read / "model.safetensors")
    wide_stream = "head_dim" not in text
    made = {}
    for name, stored in tensors.items():
        value = stored.astype(np.float32)
        if ".self_attn." in name and not name.startswith("vision_tower."):
            value = widen_heads(name, value, heads, kv_heads, head)
        if wide_stream:
            value = widen_stream(name, value, width)
        made[name] = np.ascontiguousarray(value)
    if wide_stream:
        text["hidden_size"] = 2 * width
        text["rms_norm_eps"] /= 2
        config["vision_config"]["out_hidden_size"] = 2 * width
        rope = text["rope_parameters"]
        rope["mrope_section"] = [2 * part for part in rope["mrope_section"]]
    else:
        text["head_dim"] = 2 * head
    config["dtype"] = "float32"
    shutil.copytree(read, write, ignore=shutil.ignore_patterns("*.safetensors", "recipe.json"))
    (write / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(made, write / "model.safetensors", metadata={"format": "pt"})


def widen_heads(name: str, value: np.ndarray, heads: int, kv_heads: int, head: int) -> np.ndarray:
    """Pads the heads of a projection, or of its bias."""
    kind = name.rpartition("self_attn.")[2][0]  # q, k, v or o
    if kind == "o":
        return widen_heads("self_attn.v", value.T, heads, heads, head).T
    count = heads if kind == "q" else kv_heads
    rows = value.reshape(count, head, -1)
    padded = np.zeros((count, 2 * head, rows.shape[-1]), np.float32)
    if kind == "v":
        padded[:, :head] = rows
    else:
        half = head // 2
        padded[:, 0:head:2] = rows[:, :half]
        padded[:, head::2] = rows[:, half:]
    if kind == "q":
        padded *= np.sqrt(2)
    return padded.reshape(2 * count * head, *value.shape[1:])


def widen_stream(name: str, value: np.ndarray, width: int) -> np.ndarray:
    """Pads what reads or writes the residual stream of the decoder."""
    if name.startswith("visual.") and "merger.mlp.2" not in name:
        return value
    if name.endswith("norm.weight"):
        return np.pad(value / np.sqrt(2), (0, width), constant_values=0).astype(np.float32)
    reads = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight",
             "up_proj.weight", "embed_tokens.weight", "lm_head.weight")  # fmt: skip
    writes = ("o_proj.weight", "down_proj.weight", "merger.mlp.2.weight", "merger.mlp.2.bias")
    if name.endswith(reads):
        return np.pad(value, ((0, 0), (0, width)))
    if name.endswith(writes):
        return np.pad(value, ((0, width), *((0, 0),) * (value.ndim - 1)))
    return value


if __name__ == "__main__":
    main(*sys.argv[1:])
