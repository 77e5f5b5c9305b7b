"""Answers by `mitigv` (PyPI, torch), at its best: what ours are compared with.

    pip install --no-deps mitigv==0.1.7     # torch and transformers are there

Read in its code, and shown by tests/benchmarks/test_mitigv.py:

- VCD is ours: schedule of the noise, both caches, (1 + alpha) l - alpha l', then the constraint.
- M3ID and PAI contrast logits where ours contrast log-probabilities: a constant of the row, which
  no greedy token depends on. Their view without an image is the question as it was given. A bare
  question thus loses the chat template in that view alone, and other tokens follow; with the
  template written out in the prompt, as here, both views have it, as ours always do.
- PAI does not run on transformers 5.24 as it is. It looks for the decoder's layers where they no
  longer are, and once it is shown them (`_shown_layers`), its attention takes no cache, which is
  handed to it by another name than before: `_with_cache`. It adds the mask that it is given, and
  under sdpa it is given none, so that prompts are read without causality: eager attention.
- It takes a list of prompts as padded rows, though it is mostly shown with one.
"""

from __future__ import annotations

import pathlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import einops
import numpy as np
import PIL.Image
import torch
import transformers

from benchmarks.record import Unavailable
from tests import tiny

VERSION = "0.1.7"


class Mitigv:
    """Its methods on a model folder; calling it decodes.

    Args:
        folder: the model's, a LLaVA.
        name: of the method: vcd, m3id, pai.
        new_tokens: how many a run generates; no answer ends before.
        attention: of transformers: sdpa or eager.
        mended: whether PAI is made to run.
        settings: of the method.

    Raises:
        Unavailable: mitigv is not installed.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        name: str,
        new_tokens: int,
        attention: str = "sdpa",
        mended: bool = True,
        **settings: Any,
    ):
        load = imported().load_mitigator
        model = tiny.reference(folder, attention)
        self._processor = transformers.AutoProcessor.from_pretrained(folder)
        if name == "vcd":
            settings |= {"distortion": _noise(model.config.vision_config.patch_size)}
        self._method = load(
            name,
            model=model,
            processor=self._processor,
            max_new_tokens=new_tokens,
            **settings,
        )
        self._method._decode = lambda ids: ids.numpy()
        self._method._eos_token_id = lambda: None
        if mended and name == "pai":
            _shown_layers(model)
            _with_cache(self._method)

    def templated(self, question: str) -> str:
        """A question about one image in the folder's chat template."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        turns = [{"role": "user", "content": content}]
        return self._processor.apply_chat_template(turns, add_generation_prompt=True)

    def one_by_one(self, images: Sequence[PIL.Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Returns the tokens [B, new_tokens] of a call for each prompt."""
        return np.concatenate([self._method(*each) for each in zip(images, prompts, strict=True)])

    def together(self, images: Sequence[PIL.Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Returns the tokens [B, new_tokens] of one call."""
        return self._method(list(images), list(prompts))


def imported() -> Any:
    """The package.

    Raises:
        Unavailable: it is not installed.
    """
    try:
        import mitigv
    except ImportError:
        raise Unavailable(
            f"mitigv is not installed: pip install --no-deps mitigv=={VERSION}"
        ) from None
    return mitigv


def _noise(patch_size: int) -> str:
    """Registers its own distortion with our draws, which depend on the pixels; returns its name."""
    from mitigv import perturbations

    class Drawn(perturbations.DiffusionNoisePerturbation):
        name = f"drawn_by_patches_of_{patch_size}"

        def __call__(self, image: torch.Tensor) -> torch.Tensor:
            given = lambda image, **_: torch.stack([drawn(one, patch_size) for one in image])
            with mock.patch.object(torch, "randn_like", given):
                return super().__call__(image)

    if Drawn.name not in perturbations.list_perturbations():
        perturbations.register_perturbation(Drawn)
    return Drawn.name


def drawn(image: torch.Tensor, patch_size: int) -> torch.Tensor:
    """The noise [C, H, W] that our VCD of seed 0 adds to an image [C, H, W]."""
    p, high = patch_size, image.shape[1] // patch_size
    patches = einops.rearrange(image.numpy(), "c (h p) (w q) -> (h w) c 1 (p q)", p=p, q=p)
    random = np.random.default_rng((0, zlib.crc32(np.ascontiguousarray(patches).tobytes())))
    noise = random.standard_normal(patches.shape, np.float32)
    return torch.tensor(einops.rearrange(noise, "(h w) c 1 (p q) -> c (h p) (w q)", h=high, p=p))


def _shown_layers(model: Any) -> None:
    """Puts the decoder where it was until transformers 5, outside the tree of modules."""
    object.__setattr__(model, "language_model", model.model.language_model)


def _with_cache(method: Any) -> None:
    """Hands the cache to its attention by the name that it has there."""
    make = method._make_patched_forward

    def made(attention: Any) -> Callable[..., Any]:
        forward = make(attention)

        def renamed(*args, **given):
            if "cache" in given:
                given["past_key_values"] = given.pop("cache")
            return forward(*args, **given)

        return renamed

    method._make_patched_forward = made
