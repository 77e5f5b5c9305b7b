"""What editing a sharded Hugging Face folder costs over copying it, in time and in memory.

    python -m benchmarks edit

The folder is random bfloat16 in the proportions of Qwen2.5-VL-7B, half as wide and half as deep, so
that an edited head stands for half as many bytes as at 7B: the ratio is harder than at full size.
The edit includes certificate, hashes and sidecar. Both routes write to the page cache alike; the
first edit, which compiles, is not timed.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.protocol import compare
from benchmarks.record import figure, record
from convert import safetensors_io
from convert.table import bind
from vlm_jax import checkpoint
from vlm_jax.edits.qk import QKEdit
from vlm_jax.edits.qk.folder import edit_folder
from vlm_jax.families import read_config

QUANTITY = "edit / copy, time of a folder"
GOAL = 2.0
SHARD_BYTES = 400 << 20
BF16 = np.dtype(ml_dtypes.bfloat16)


def settings(quick: bool) -> dict[str, Any]:
    """How many times narrower than 7B, layers, and repeats."""
    if quick:
        return dict(scale=4, layers=2, repeats=2)
    return dict(scale=2, layers=14, repeats=5)


def measure(quick: bool = False) -> dict[str, Any]:
    """Measures the row; the folder that `TMPDIR` names needs 8 GB."""
    chosen = settings(quick)

    def figures() -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as root:
            return [against_copy(pathlib.Path(root), **chosen, judged=not quick)]

    return record("edit", QUANTITY, chosen, figures)


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

        def random(name: str, header=header) -> Iterator[np.ndarray]:
            left = int(np.prod(header.entries[name].shape))
            while left:
                bits = rng.integers(0, 1 << 16, min(left, 1 << 23), dtype=np.uint16)
                # Sign and mantissa at random, one exponent: finite, and of full rank.
                yield bits & 0x807F | 0x3C00
                left -= bits.size

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


def against_copy(root: pathlib.Path, scale: int, layers: int, repeats: int, judged: bool):
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
    total = sum(info.nbytes for info in checkpoint.open_folder(source).tensors.values())
    return figure(
        f"{last['summary']['heads']} heads, {len(list(source.glob('*.safetensors')))} files",
        report,
        GOAL if judged else None,
        folder_GB=total / 1e9,
        peak_over_start_MB=max(peaks, default=0) / 1e6,
        certificate_MB=sizes[checkpoint.CERTIFICATE] / 1e6,
        sidecar_MB=sizes[checkpoint.SIDECAR] / 1e6,
    )
