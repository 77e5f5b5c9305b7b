"""Decoding by transformers on torch, at its best: what ours is compared with."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import itertools
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import PIL.Image
import torch
import transformers
from transformers.models.llama import modeling_llama

from benchmarks.decoding import same
from tests import tiny
from vlm_jax.batch import Batch, Kind

Method = Callable[[torch.Tensor, "Keys"], torch.Tensor]
"""Maps one row of weights a head, [B, N, S], to the weights that it leaves."""


@dataclasses.dataclass(frozen=True)
class Keys:
    """What the keys of a row are, bool [B, 1, S]."""

    visible: torch.Tensor
    image: torch.Tensor
    text: torch.Tensor


def air(weights: torch.Tensor, keys: Keys) -> torch.Tensor:
    """AIR as its paper states it (arXiv 2603.24058), in all heads."""
    leans = (weights * keys.text).sum(-1, keepdim=True) >= 0.3
    factor = torch.ones_like(weights) + 2.5 * keys.image - 0.9 * keys.text
    weights = torch.where(leans & keys.image.any(-1, keepdim=True), weights * factor, weights)
    mean = weights.sum(-1, keepdim=True) / keys.visible.sum(-1, keepdim=True)
    return 0.7 * weights + 0.3 * mean * keys.visible


@dataclasses.dataclass(frozen=True)
class Setting:
    """How transformers may be run."""

    attention: str
    cache: str
    threads: int


def holding(cache: Any) -> dict[str, Any]:
    """Hands a cache to a model by the name that this release of transformers has for it."""
    now = inspect.signature(modeling_llama.LlamaModel.forward).parameters
    return {"cache" if "cache" in now else "past_key_values": cache}


def use(model: Any, attention: str, threads: int, experts: str = "") -> None:
    """Has a model run with a kind of attention and of experts, and torch with so many threads."""
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = attention
            if experts:
                module.config._experts_implementation = experts
    torch.set_num_threads(threads)


class Torch:
    """transformers' `generate` from a cache that holds all of the prompt but its last token.

    Args:
        folder: the model.
        batch: prompts of one length.
        pixels: their images, uint8 [B, height, width, 3].
        new_tokens: how many a run generates.
        method: what to do to the weights of decode rows. It needs them, so that attention is eager.

    Attributes:
        tokens_bn: what `generate` says to the prompts from scratch, [B, new_tokens].
    """

    def __init__(
        self,
        folder: pathlib.Path,
        batch: Batch,
        pixels: np.ndarray,
        new_tokens: int,
        method: Method | None = None,
    ):
        self._new_tokens, self._method = new_tokens, method
        names = ("eager",) if method else ("sdpa", "eager")
        self._models = {name: tiny.reference(folder, name) for name in names}
        length = int(batch.lengths_b[0])
        self._ids = torch.tensor(np.asarray(batch.tokens_bt)[:, :length]).long()
        self._kinds = torch.tensor(np.asarray(batch.kinds_bt)[:, :length])
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        images = [PIL.Image.fromarray(picture) for picture in pixels]
        self._pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        torch.set_num_threads(1)
        model = self._models[names[0]]
        self.tokens_bn = self._generate(model, new_tokens, pixel_values=self._pixels)
        self._config = model.config.get_text_config()
        dynamic = self._read(model)
        self._caches = {"dynamic": dynamic, "static": self._static(dynamic)}

    @torch.inference_mode()
    def _generate(self, model, new_tokens: int, **inputs) -> np.ndarray:
        with self._steered():
            made = model.generate(
                input_ids=self._ids,
                attention_mask=torch.ones_like(self._ids),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
                **inputs,
            )
        return made[:, self._ids.shape[1] :].numpy()

    @contextlib.contextmanager
    def _steered(self) -> Iterator[None]:
        """Puts the method into eager attention of the decoder, in the last row of every call."""
        if self._method is None:
            yield
            return

        def attend(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
            key = modeling_llama.repeat_kv(key, module.num_key_value_groups)
            value = modeling_llama.repeat_kv(value, module.num_key_value_groups)
            logits = query @ key.transpose(2, 3) * scaling
            if attention_mask is not None:
                logits = logits + attention_mask[..., : key.shape[-2]]
            weights = torch.softmax(logits, dim=-1, dtype=torch.float32)
            last = self._method(weights[:, :, -1], self._keys(key.shape[-2], attention_mask))
            weights = torch.cat([weights[:, :, :-1], last[:, :, None]], dim=2).to(query.dtype)
            return (weights @ value).transpose(1, 2).contiguous(), weights

        with mock.patch.object(modeling_llama, "eager_attention_forward", attend):
            yield

    def _keys(self, length: int, attention_mask: torch.Tensor | None) -> Keys:
        """What the keys of the last row are; generated tokens are text."""
        batch, prompt = self._kinds.shape
        kinds = torch.full((batch, length), int(Kind.TEXT))
        kinds[:, : min(prompt, length)] = self._kinds[:, :length].long()
        visible = torch.ones(batch, 1, length, dtype=torch.bool)
        if attention_mask is not None:
            visible = attention_mask[:, :, -1, :length] > -1
        is_kind = lambda kind: visible & (kinds == int(kind))[:, None]
        return Keys(visible, is_kind(Kind.IMAGE), is_kind(Kind.TEXT))

    @torch.inference_mode()
    def _read(self, model):
        """Reads all of the prompt but its last token."""
        cache = transformers.DynamicCache(config=self._config)
        ids = self._ids[:, :-1]
        model(input_ids=ids, pixel_values=self._pixels, use_cache=True, **holding(cache))
        return cache

    @torch.inference_mode()
    def _static(self, dynamic):
        room = self._ids.shape[1] + self._new_tokens
        cache = transformers.StaticCache(config=self._config, max_cache_len=room)
        for index, layer in enumerate(dynamic.layers):
            cache.update(layer.keys, layer.values, index)
        return cache

    def settings(self) -> list[Setting]:
        """What is tried: attention x cache x threads."""
        threads = sorted({1, os.cpu_count() or 1})
        return [Setting(*each) for each in itertools.product(self._models, self._caches, threads)]

    def prepare(self, setting: Setting) -> tuple:
        """Sets the threads and copies the cache, which `generate` writes to."""
        torch.set_num_threads(setting.threads)
        return (copy.deepcopy(self._caches[setting.cache]),)

    def run(self, setting: Setting, cache, new_tokens: int | None = None) -> np.ndarray:
        """Decodes; returns the tokens [B, new_tokens]."""
        count = new_tokens or self._new_tokens
        return self._generate(self._models[setting.attention], count, **holding(cache))

    def best(self, repeats: int, new_tokens: int = 8) -> tuple[Setting, list[dict[str, Any]]]:
        """Tries all settings turn by turn; returns the fastest and every time.

        What takes over three times as long as the fastest is tried once: threads that wait for a
        busy core can take seconds a step.
        """
        steps = min(new_tokens, self._new_tokens)
        seconds: dict[Setting, list[float]] = {setting: [] for setting in self.settings()}
        for turn in range(1 + repeats):
            for setting, taken in seconds.items():
                if turn and min(taken) > 3 * min(min(each) for each in seconds.values()):
                    continue
                ready = self.prepare(setting)
                start = time.perf_counter()
                tokens = self.run(setting, *ready, new_tokens=steps)
                taken.append(time.perf_counter() - start)
                same(tokens, self.tokens_bn[:, :steps])
        tried = [
            {**dataclasses.asdict(setting), "ms_per_step": 1e3 * min(taken) / steps}
            for setting, taken in seconds.items()
        ]
        return min(seconds, key=lambda setting: min(seconds[setting])), tried
