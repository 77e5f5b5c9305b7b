"""R16: decoding with latent attention and experts against transformers on torch.

    python -m benchmarks R16

Both sides have the same random float32 weights: DeepSeek-VL2's decoder with 6 layers of width 512,
32 experts of which a token has 4, words alone. Prefill is not timed: each run decodes from a copy
of the cache that the same prompts left. torch (DeepSeek-V3's class, a loop of argmax) runs as fast
as its settings allow: attention, experts and number of threads are tried before. At batch 1 ours
reads the chosen experts' weights only, so the record names both counts of bytes.
"""

from __future__ import annotations

import copy
import itertools
import os
import time
from typing import Any

import jax
import numpy as np
import torch
import transformers

from benchmarks import torch_decoding
from benchmarks.decoding import Decoding, same
from benchmarks.protocol import Route, in_turns
from benchmarks.record import figure, milliseconds, record
from benchmarks.small import Bare, prompts
from convert.table import bind
from tests.families.tiny_deepseek import text_model
from vlm_jax.config import DecoderConfig
from vlm_jax.decoding import Generator
from vlm_jax.families import parse_config
from vlm_jax.models import init
from vlm_jax.parallel import make_mesh, replicated

QUANTITY = "transformers on torch, its best setting / ours, time of a decode step"
GOAL = 1.5


def settings(quick: bool) -> dict[str, Any]:
    """The decoder, its prompts and answers."""
    text: dict[str, Any] = dict(
        vocab_size=32000, hidden_size=512, intermediate_size=1536, moe_intermediate_size=352,
        num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=8, n_shared_experts=2,
        n_routed_experts=32, num_experts_per_tok=4, first_k_dense_replace=1, moe_layer_freq=1,
        max_position_embeddings=4096, kv_lora_rank=256, q_lora_rank=None, qk_nope_head_dim=64,
        qk_rope_head_dim=32, v_head_dim=64, topk_method="noaux_tc", scoring_func="sigmoid",
        norm_topk_prob=True, routed_scaling_factor=2.0, n_group=1, topk_group=1,
    )  # fmt: skip
    if not quick:
        return dict(text=text, prompt=512, new_tokens=24, batches=(1, 8), repeats=7)
    small = dict(vocab_size=1000, hidden_size=64, num_hidden_layers=2, n_routed_experts=8)
    return dict(text=text | small, prompt=64, new_tokens=4, batches=(2,), repeats=2)


def measure(quick: bool = False) -> dict[str, Any]:
    """Measures the row."""
    chosen = settings(quick)
    return record("R16", QUANTITY, chosen, lambda: figures(chosen, judged=not quick))


def sides(text: dict[str, Any]) -> tuple[Bare, Any, torch.Tensor]:
    """Returns our model of a text config, and torch's with its head, of the same weights."""
    config = parse_config(
        {
            "model_type": "deepseek_vl_v2",
            "candidate_resolutions": [[28, 28]],
            "language_config": text,
            "vision_config": dict(layers=2, width=32, heads=2, image_size=28, patch_size=14),
            "projector_config": dict(input_dim=32, n_embed=text["hidden_size"]),
        }
    )
    generator = Generator(config, make_mesh())
    params = jax.device_put(init(config, 0), replicated(generator.mesh))
    words = {}
    for tensor in bind(config).parameters:
        if tensor.name.startswith("language."):
            pieces = tensor.to_disk(np.asarray(params[tensor.path]))
            bits = np.concatenate([piece.reshape(-1) for piece in pieces])
            name = tensor.name.removeprefix("language.")
            words[name] = bits.view(np.float32).reshape(tensor.disk_shape)
    model = text_model(text, words, torch.float32)
    return Bare(config, params, generator), model, torch.from_numpy(words["lm_head.weight"])


def figures(chosen: dict[str, Any], judged: bool) -> list[dict[str, Any]]:
    """Times both sides at each batch."""
    (bare, model, head), found = sides(chosen["text"]), []
    for rows in chosen["batches"]:
        batch = prompts(bare.config, rows, chosen["prompt"])
        ours = Decoding.record(bare.generator, bare.params, batch, chosen["new_tokens"])
        theirs = _Torch(model, head, np.asarray(batch.tokens_bt), chosen["new_tokens"])
        same(ours.tokens_bn, theirs.tokens_bn)
        best, tried = theirs.best()

        def check(done: dict[str, Any], want: np.ndarray = theirs.tokens_bn) -> None:
            for tokens in done.values():
                same(tokens, want)

        routes = {"torch": Route(theirs.run, theirs.prepare), "ours": ours.route()}
        series = in_turns(routes, chosen["repeats"], check=check)
        case = figure(
            f"latent attention and experts, batch {rows}",
            series["torch"].over(series["ours"]),
            GOAL if judged else None,
            at_most=False,
            torch_ms=milliseconds(series["torch"].seconds, chosen["new_tokens"]),
            ours_ms=milliseconds(series["ours"].seconds, chosen["new_tokens"]),
            torch_is=best,
            experts_bytes=experts_bytes(bare.config.decoder, chosen=False),
            chosen_bytes=experts_bytes(bare.config.decoder, chosen=True),
        )
        found.append(case | {"tried": tried})
    return found


def experts_bytes(decoder: DecoderConfig, chosen: bool) -> int:
    """Bytes of float32 of all experts of all layers, or of those that one token chooses."""
    kinds = [layer.mlp for layer in decoder.layers if layer.mlp is not None]
    count = lambda moe: moe.chosen if chosen else moe.count
    return sum(count(moe) * 3 * moe.width * decoder.hidden_size * 4 for moe in kinds)


class _Torch:
    """A loop of argmax from a cache that holds all of the prompt but its last token.

    Attributes:
        tokens_bn: what it gives at first, [B, new_tokens].
    """

    def __init__(self, model: Any, head: torch.Tensor, ids: np.ndarray, new_tokens: int):
        self._model, self._head, self._new_tokens = model, head, new_tokens
        self._last = torch.from_numpy(ids[:, -1:]).long()
        with torch.inference_mode():
            self._cache = transformers.DynamicCache(config=model.config)
            given = dict(use_cache=True, **torch_decoding.holding(self._cache))
            model(input_ids=torch.from_numpy(ids[:, :-1]).long(), **given)
        self.tokens_bn = self.run(*self.prepare())

    def prepare(self) -> tuple:
        """Copies the cache, which a run writes to."""
        return (copy.deepcopy(self._cache),)

    @torch.inference_mode()
    def run(self, cache: Any) -> np.ndarray:
        """Decodes; returns the tokens [B, new_tokens]."""
        token, made = self._last, []
        for _ in range(self._new_tokens):
            hidden = self._model(input_ids=token, use_cache=True, **torch_decoding.holding(cache))
            token = (hidden.last_hidden_state[:, -1] @ self._head.T).argmax(-1, keepdim=True)
            made.append(token)
        return torch.cat(made, dim=1).numpy()

    def best(self) -> tuple[str, list[dict[str, Any]]]:
        """Sets the fastest of all settings; returns its name, and every time."""
        seconds = {}
        threads = sorted({1, os.cpu_count() or 1})
        for each in itertools.product(("eager", "sdpa"), threads, ("eager", "grouped_mm")):
            torch_decoding.use(self._model, *each)
            taken = []
            for _ in range(2):
                ready = self.prepare()
                start = time.perf_counter()
                same(self.run(*ready), self.tokens_bn)
                taken.append(time.perf_counter() - start)
            seconds[each] = min(taken)
        names = ("attention", "threads", "experts")
        tried = [
            dict(zip(names, each)) | {"ms_per_step": 1e3 * taken / self._new_tokens}
            for each, taken in seconds.items()
        ]
        best = min(seconds, key=seconds.__getitem__)
        torch_decoding.use(self._model, *best)
        return f"{best[0]} attention, {best[2]} experts, {best[1]} threads", tried
