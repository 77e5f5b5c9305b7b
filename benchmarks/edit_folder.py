"""What editing a sharded Hugging Face folder costs over copying it, in time and in memory.

    OPENBLAS_NUM_THREADS=1 NPROC=16 python -m benchmarks.edit_folder --output edit_folder.json

The folder is random bfloat16 in the proportions of Qwen2.5-VL-7B, half as wide and half as deep, so
that an edited head stands for half as many bytes as at 7B: the ratio is harder than at full size.
The edit includes certificate, hashes and sidecar. Both routes write to the page cache alike; the
first edit, which compiles, is not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("NPROC", "16")

import ml_dtypes
import numpy as np

from benchmarks.protocol import compare, machine
from convert import safetensors_io
from convert.families import bind
from vlm_jax import checkpoint
from vlm_jax.config import read_config
from vlm_jax.jobs.edit import edit_folder
from vlm_jax.steering.qk import QKEdit

GOAL = 2.0
SHARD_BYTES = 400 << 20
BF16 = np.dtype(ml_dtypes.bfloat16)


def config(scale: int, layers: int) -> dict[str, Any]:
    return {
        "model_type": "qwen2_5_vl",
        "hidden_size": 3584 // scale,
        "intermediate_size": 18944 // scale,
        "num_attention_heads": 28 // scale,
        "num_key_value_heads": 4 // scale,
        "num_hidden_layers": layers,
        "vocab_size": 152064 // scale**2,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {
            "depth": 2,
            "fullatt_block_indexes": [1],
            "hidden_size": 1280,
            "out_hidden_size": 3584 // scale,
        },
    }


def make_folder(folder: pathlib.Path, scale: int, layers: int) -> None:
    """Writes a random checkpoint in shards, as published folders are laid out."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config(scale, layers)))
    shards: list[list[tuple]] = [[]]
    size = 0
    for tensor in bind(read_config(folder)).by_path.values():
        nbytes = 2 * int(np.prod(tensor.disk_shape))
        if shards[-1] and size + nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((tensor.name, BF16, tensor.disk_shape))
        size += nbytes
    rng = np.random.default_rng(0)
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header = safetensors_io.build_header(shard, {"format": "pt"})

        def random(name: str, header=header) -> np.ndarray:
            shape = header.entries[name].shape
            bits = rng.integers(0, 1 << 16, int(np.prod(shape)), dtype=np.uint16)
            # Sign and mantissa at random, one exponent: finite, and of full rank.
            return (bits & 0x807F | 0x3C00).view(BF16).reshape(shape)

        safetensors_io.write(folder / file, header, random)
        weight_map |= {name: file for name, _, _ in shard}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def peak_resident(reset: bool = False) -> int | None:
    """Bytes of the largest resident set since the last reset; None where Linux does not say."""
    try:
        if reset:
            pathlib.Path("/proc/self/clear_refs").write_text("5")
        status = pathlib.Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    name = "VmRSS" if reset else "VmHWM"
    return next(int(line.split()[1]) << 10 for line in status if line.startswith(f"{name}:"))


def measure(root: pathlib.Path, scale: int, layers: int, repeats: int) -> dict[str, Any]:
    source, edited, copied = root / "source", root / "edited", root / "copied"
    make_folder(source, scale, layers)
    spec = QKEdit(k=4, strength=0.5)
    peaks: list[int] = []

    def edit():
        before = peak_resident(reset=True)
        certificate = edit_folder(checkpoint.open_folder(source), edited, spec)
        after = peak_resident()
        if before is not None and after is not None:
            peaks.append(after - before)
        return certificate

    last = {}

    def check(certificate, _):
        if not certificate["summary"]["edit"]["dw_norm"] > 0:
            raise RuntimeError("nothing was edited.")
        last.update(certificate)
        sizes.update({path.name: path.stat().st_size for path in edited.iterdir()})
        shutil.rmtree(edited)
        shutil.rmtree(copied)

    sizes: dict[str, int] = {}
    report = compare(edit, lambda: shutil.copytree(source, copied), repeats, check=check)
    opened = checkpoint.open_folder(source)
    layer = {p: i for p, i in opened.tensors.items() if p.startswith("decoder/layers/0/")}
    read = ("wq_dnh", "wk_dkh", "bq_nh", "bk_kh", "attn_norm_d")
    return {
        **config(scale, layers),
        "bytes": sum(info.nbytes for info in opened.tensors.values()),
        "files": len(list(source.glob("*.safetensors"))),
        "edited_layers": last["layers"],
        "edited_heads": last["summary"]["heads"],
        "edit_over_copy": report.as_dict(),
        "goal": GOAL,
        "verdict": report.verdict(GOAL),
        "peak_bytes_over_start": peaks,
        "bytes_read_of_one_layer": sum(i.nbytes for p, i in layer.items() if p.endswith(read)),
        "certificate_bytes": sizes[checkpoint.CERTIFICATE],
        "sidecar_bytes": sizes[checkpoint.SIDECAR],
    }


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=pathlib.Path, help="write the JSON here too")
    parser.add_argument("--folder", type=pathlib.Path, help="where to work; a disk with 8 GB free")
    parser.add_argument("--scale", type=int, default=2, help="of the 7B widths: 1, 2 or 4")
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory(dir=args.folder) as root:
        result |= measure(pathlib.Path(root), args.scale, args.layers, args.repeats)
    result["load_average_after"] = list(os.getloadavg())
    text = json.dumps(result, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
