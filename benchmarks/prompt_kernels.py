"""What a compiler says of our attention of prompts on TPU beside the library's.

    python -m benchmarks.prompt_kernels           # a table; seconds
    python -m benchmarks.prompt_kernels v6e:1x1

The library's is splash attention (`jax.experimental.pallas.ops.tpu.splash_attention`): causal,
grouped queries, its log-sum-exp by `save_residuals`, in the blocks of 512 that moved least. Each
program reads and returns [rows, tokens, heads, width] in bfloat16, keys and values as caches hold
them. Needs libtpu (`pip install -e '.[plan-tpu]'`); nothing runs.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import NamedSharding, PartitionSpec

from vlm_jax.attention.pallas import kernel_attention
from vlm_jax.attention.segment import Segment, Visibility
from vlm_jax.parallel import make_mesh
from vlm_jax.planning.compiled import CompiledProgram, compile_program
from vlm_jax.planning.topologies import topology

SHAPES = {
    "Qwen2.5-VL-7B on 4 chips": (8, 1536, 7, 1, 128),
    "LLaVA-1.5-7B on 2 chips": (8, 1024, 16, 16, 128),
    "heads of 64": (8, 1024, 8, 2, 64),
    "heads of 80": (8, 1024, 8, 2, 80),
}
"""Rows, tokens, query heads, key heads, width of a head."""

BLOCK = 512


def ours(q_btnh: Any, k_bksh: Any, v_bksh: Any, interpret: bool = False) -> tuple[Any, Any]:
    """Reads prompts by our kernel."""
    segment, dtype = Segment(k_bksh, v_bksh), q_btnh.dtype
    read = kernel_attention(
        q_btnh, segment, Visibility(), causal=True, dtype=dtype, interpret=interpret
    )
    return read.out_btnh.astype(dtype), read.lse_btn


def library(q_btnh: Any, k_bksh: Any, v_bksh: Any, interpret: bool = False, *, lse: bool) -> Any:
    """Reads prompts by splash attention, with or without the log-sum-exp."""
    length, heads, width = q_btnh.shape[1:]
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([splash.CausalMask((length, length))] * heads),
        block_sizes=splash.BlockSizes(block_q=BLOCK, block_kv=BLOCK),
        head_shards=1,
        q_seq_shards=1,
        save_residuals=lse,
        interpret=interpret,
    )
    scaled = (q_btnh * width**-0.5).astype(q_btnh.dtype).swapaxes(1, 2)
    found = jax.vmap(kernel)(scaled, k_bksh, v_bksh)
    if not lse:
        return found.swapaxes(1, 2)
    out_bnth, (lse_bnt,) = found
    return out_bnth.swapaxes(1, 2), lse_bnt.swapaxes(1, 2)


KERNELS: dict[str, Callable[..., Any]] = {
    "ours": ours,
    "splash": functools.partial(library, lse=True),
    "splash, no log-sum-exp": functools.partial(library, lse=False),
}


def compiled(named: str) -> Iterator[tuple[str, str, CompiledProgram]]:
    """Yields shape, kernel and what the compiler says, for one chip of a topology."""
    found = topology(named)
    mesh = make_mesh(1, 1, devices=found.devices[:1])
    whole = NamedSharding(mesh, PartitionSpec())
    for shape, (rows, length, heads, kv_heads, width) in SHAPES.items():
        dims = [(rows, length, heads, width), *[(rows, kv_heads, length, width)] * 2]
        args = [jax.ShapeDtypeStruct(dim, jnp.bfloat16, sharding=whole) for dim in dims]
        for kernel, read in KERNELS.items():
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                lowered = jax.jit(read).lower(*args)
            yield shape, kernel, compile_program(lowered, found.chip)


def main() -> None:
    """Prints a table."""
    print("| shape | kernel | MB moved | MB accessed | temporary, MB |\n|---|---|---|---|---|")
    for shape, kernel, one in compiled(*sys.argv[1:] or ["v5e:1x1"]):
        sizes = one.moved_bytes, one.bytes_accessed, one.temp_bytes
        shown = [f"{(size or 0) / 1e6:.1f}" for size in sizes]
        print(f"| {shape} | {kernel} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
