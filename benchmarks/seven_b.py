"""Qwen2.5-VL-7B's shape on an accelerator: decoding and prefill against the roofline.

    python -m benchmarks --device_shape=7b

Random bfloat16 weights of the released shape; the decoder alone, without images. Shares are of the
chip's data-sheet peaks, or of peaks measured in the same run where the chip is not listed in
`benchmarks.roofline`. What says most comes first, and nothing is begun after nine minutes, so that
a card that is lent for ten gives all of it, or what was left out is named. Where torch sees a CUDA
device too, transformers decodes with sdpa attention and a compiled static cache beside ours. Needs
40 GB of device memory.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.decoding import Decoding
from benchmarks.prefill_steered import compiled
from benchmarks.protocol import Route, Series, in_turns, peaks, ratio_of
from benchmarks.qk_edit import whole_model
from benchmarks.record import figure, milliseconds, record
from benchmarks.roofline import CHIPS, Chip, place, prefill_flops
from benchmarks.small import Bare, decode_methods, prefill_methods, prompts
from tests.released import CONFIGS
from vlm_jax.attention import fused
from vlm_jax.config import VLMConfig
from vlm_jax.decoding import Generator
from vlm_jax.families import parse_config
from vlm_jax.models import abstract
from vlm_jax.parallel import knows_mesh, lay_out, make_mesh, param_shardings

QUANTITY = "shares of the peaks, and ratios of times"
DECODE_SHARE, PREFILL_SHARE = 0.65, 0.50
STEERED_DECODE = 1.02
STEERED_PREFILL = {"functional heads": 1.05, "AIR": 1.05, "AIR* (projection)": 1.10}
TORCH_GOAL = 1.3
EDIT_SECONDS = 2.0
MINUTES = 9.0
KINDS = {"H100": "H100 SXM", "H200": "H200", "v5 lite": "TPU v5e", "v5p": "TPU v5p",
         "v6 lite": "TPU v6e"}  # fmt: skip
"""Part of a device's kind -> the chip of `benchmarks.roofline`."""


def settings(quick: bool) -> dict[str, Any]:
    """The shape, batches, context and lengths."""
    root = copy.deepcopy(CONFIGS["Qwen2.5-VL-7B"])
    if quick:
        root |= dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, vocab_size=512)
        root |= dict(num_attention_heads=4, num_key_value_heads=2)
        root["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 3, 3]}
        root["vision_config"] |= dict(
            depth=1, fullatt_block_indexes=[0], hidden_size=32, intermediate_size=48, num_heads=2,
            out_hidden_size=64,
        )  # fmt: skip
        root |= {f"{name}_token_id": 500 + i for i, name in enumerate(("image", "vision_start",
                 "vision_end", "video", "bos", "eos"))}  # fmt: skip
        sizes = dict(batches=(2,), steered_batches=(2,), context=48, steps=4, repeats=2)
        sizes |= dict(lengths=(48,), steered_lengths=(48,), edited_layers=0)
    else:
        sizes = dict(
            batches=(1, 8, 32), steered_batches=(1, 8), context=2048, steps=64, repeats=9,
            lengths=(1500, 640, 4096), steered_lengths=(1500,), edited_layers=28,
        )  # fmt: skip
    return dict(config=root, **sizes)


def measure(quick: bool = False) -> dict[str, Any]:
    """Measures the rows."""
    chosen = settings(quick)
    config = parse_config(chosen["config"])
    model = random_model(config)

    def figures() -> list[dict[str, Any]]:
        until, (chip, source) = time.monotonic() + 60 * MINUTES, chip_here()
        given = (model, chip, source, chosen, not quick)
        groups: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "kernel": lambda: [kernel(model, not quick)],
        }
        if chosen["edited_layers"]:
            groups["edit"] = lambda: [whole_model(chosen["edited_layers"], 1, EDIT_SECONDS)]
        for rows, length in zip(chosen["batches"], chosen["lengths"]):
            groups[f"decode, batch {rows}"] = functools.partial(decoding, *given, rows)
            groups[f"prefill, {length} tokens"] = functools.partial(prefill, *given, length)
        found = []
        for name, group in groups.items():
            if time.monotonic() > until:
                print(f"{name}: left out, since {MINUTES:g} minutes are over.", flush=True)
                continue
            found += group()
        return found

    return record("7B", QUANTITY, chosen, figures)


def random_model(config: VLMConfig) -> Bare:
    """Random bfloat16 weights, made on the devices; norms are ones and biases zeros."""
    mesh = make_mesh()
    shapes = abstract(config)[1]
    shardings = param_shardings(shapes, mesh)

    def make(path: str, index: int) -> jax.Array:
        shape = shapes[path].shape

        def draw(key):
            if "norm" in path:
                return jnp.ones(shape, jnp.bfloat16)
            if path.rsplit("/", 1)[-1].startswith("b"):
                return jnp.zeros(shape, jnp.bfloat16)
            return 0.02 * jax.random.normal(key, shape, jnp.bfloat16)

        return jax.jit(draw, out_shardings=shardings[path])(jax.random.key(index))

    params = {path: make(path, index) for index, path in enumerate(shapes)}
    lay_out(params)
    return Bare(config, params, Generator(config, mesh))


def chip_here() -> tuple[Chip, str]:
    """The peaks of this device, and where they are from."""
    kind = jax.local_devices()[0].device_kind
    for part, name in KINDS.items():
        if part in kind:
            return CHIPS[name], f"{name} data sheet"
    found = peaks("bfloat16" if jax.default_backend() != "cpu" else "float32")
    return Chip(found["gemm_gflops"] * 1e9, found["stream_gbs"] * 1e9, 0.0), "measured peaks"


def share(floor_seconds: float, series: Series, steps: int = 1):
    """Floor over time, with its interval."""
    return ratio_of([floor_seconds * steps] * len(series.seconds), series.seconds)


def kernel(model: Bare, judged: bool) -> dict[str, Any]:
    """Whether the fused attention of this device passes its trial against the tiles."""
    chosen = knows_mesh(fused.choice, model.generator.mesh)()
    return figure(
        "prompts attend by a fused kernel: yes is 1",
        float(chosen != fused.TILES),
        1.0 if judged else None,
        at_most=False,
        attention=chosen,
    )


def decoding(
    model: Bare, chip: Chip, source: str, chosen: dict[str, Any], judged: bool, rows: int
) -> list[dict[str, Any]]:
    """Steps against the floor of their bytes, methods against vanilla, torch against ours."""
    steps, context, found = chosen["steps"], chosen["context"], []
    batch = prompts(model.config, 1, context)
    one = Decoding.record(model.generator, model.params, batch, steps)
    placed = place(model.config, 1)
    methods = decode_methods(model.config) if rows in chosen["steered_batches"] else {}
    vanilla = one.repeated(rows)
    loops = {"vanilla": vanilla} | {n: vanilla.steered(s) for n, s in methods.items()}
    routes = {name: loop.route() for name, loop in loops.items()}
    torch_route = torch_decode(chosen, rows)
    if torch_route is not None:
        routes["torch"] = torch_route

    def check(done: dict[str, Any], loops=loops) -> None:
        for name, loop in loops.items():
            loop.check(done[name])

    series = in_turns(routes, chosen["repeats"], warm_up=2, check=check)
    base = series["vanilla"]
    floor = placed.step_seconds(chip, rows, context + steps // 2)
    found.append(
        figure(
            f"decode of the roofline ({source}), batch {rows}, context {context}",
            share(floor, base, steps),
            DECODE_SHARE if judged and rows == 1 else None,
            at_most=False,
            step_ms=milliseconds(base.seconds, steps),
            floor_ms=1e3 * floor,
        )
    )
    for name in methods:
        found.append(
            figure(
                f"{name} / vanilla, decode, batch {rows}",
                series[name].over(base),
                STEERED_DECODE if judged else None,
                steered_ms=milliseconds(series[name].seconds, steps),
            )
        )
    if torch_route is not None:
        found.append(
            figure(
                f"transformers, sdpa, static cache, compiled / ours, batch {rows}",
                series["torch"].over(base),
                TORCH_GOAL if judged else None,
                at_most=False,
                torch_ms=milliseconds(series["torch"].seconds, steps),
            )
        )
    return found


def prefill(
    model: Bare, chip: Chip, source: str, chosen: dict[str, Any], judged: bool, length: int
) -> list[dict[str, Any]]:
    """Prompts against the floor of their operations, and methods against vanilla."""
    found = []
    methods = prefill_methods(model.config) if length in chosen["steered_lengths"] else {}
    batch = model.put(prompts(model.config, 1, length))
    programs: dict[str, Callable[[], np.ndarray]] = {"vanilla": compiled(model, batch, None)}
    programs |= {name: compiled(model, batch, each) for name, each in methods.items()}
    if not all(np.all(np.isfinite(run())) for run in programs.values()):
        raise RuntimeError("Prefill has logits that are not finite.")
    series = in_turns({name: Route(run) for name, run in programs.items()}, chosen["repeats"])
    base = series["vanilla"]
    floor = prefill_flops(model.config.decoder, length) / chip.flops
    found.append(
        figure(
            f"prefill of the roofline ({source}), {length} tokens",
            share(floor, base),
            PREFILL_SHARE if judged and length >= 1500 else None,
            at_most=False,
            prefill_ms=milliseconds(base.seconds),
            floor_ms=1e3 * floor,
            attention=knows_mesh(fused.choice, model.generator.mesh)(),
        )
    )
    for name in methods:
        found.append(
            figure(
                f"{name} / vanilla, prefill, {length} tokens",
                series[name].over(base),
                STEERED_PREFILL[name] if judged else None,
                steered_ms=milliseconds(series[name].seconds),
            )
        )
    return found


def torch_decode(chosen: dict[str, Any], rows: int) -> Route | None:
    """transformers decoding as many steps from as long a prompt; None without a torch for it.

    Its weights are random too, so that its work is asserted by the number of tokens alone.
    """
    try:
        import torch
        import transformers
    except ImportError:
        return None
    on_cpu = jax.default_backend() == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        return None
    from benchmarks.torch_decoding import holding

    device = "cpu" if on_cpu else "cuda"
    model, config = _torch_model(chosen, device)
    context, steps = chosen["context"], chosen["steps"]
    ids = torch.randint(4, 400, (rows, context), device=device)

    @torch.inference_mode()
    def prepare() -> tuple:
        cache = transformers.StaticCache(config=config, max_cache_len=context + steps)
        model(input_ids=ids[:, :-1], use_cache=True, **holding(cache))
        if device == "cuda":
            torch.cuda.synchronize()
        return (cache,)

    @torch.inference_mode()
    def run(cache) -> np.ndarray:
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=steps,
            min_new_tokens=steps,
            do_sample=False,
            pad_token_id=0,
            **holding(cache),
        )
        tokens = made[:, context:].cpu().numpy()
        if tokens.shape != (rows, steps):
            raise RuntimeError("transformers did not say all of its tokens.")
        return tokens

    return Route(run, prepare)


_TORCH: dict[str, Any] = {}


def _torch_model(chosen: dict[str, Any], device: str) -> tuple[Any, Any]:
    """The same shape in torch, made once."""
    import torch
    import transformers

    if device not in _TORCH:
        root = {k: v for k, v in chosen["config"].items() if k not in ("model_type", "torch_dtype")}
        config = transformers.Qwen2_5_VLConfig(**copy.deepcopy(root))
        config._attn_implementation = "sdpa"
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device(device):
                model = transformers.Qwen2_5_VLForConditionalGeneration(config)
        finally:
            torch.set_default_dtype(before)
        _TORCH[device] = model.eval(), config.get_text_config()
    return _TORCH[device]
