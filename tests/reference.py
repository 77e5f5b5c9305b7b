"""The torch model of a folder, asked the questions that parity tests compare answers to."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image

from tests import tiny

LOGITS_BAR = 3e-5
"""Largest float32 difference of logits of order 1 to torch's. A wrong epsilon is twice that."""

FEATURES_BAR = 1.5e-5
"""Largest float32 difference of vision features of order 1 to torch's."""


def picture(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


IMAGES = [
    [picture(60, 84, 1), picture(112, 56, 2)],
    [picture(140, 70, 3)],
    [],
    [picture(57, 57, 4), picture(200, 90, 5), picture(30, 170, 6)],
]
"""Samples with two, one, no and three images of different odd sizes."""

PROMPTS = ["Describe both.", "What is this thing, in some detail please?", "Hello", "Compare."]


@dataclasses.dataclass(frozen=True)
class Reference:
    """A torch model in eval mode and its folder's image processor."""

    model: Any
    image_processor: Any
    image_token_id: int

    @classmethod
    def from_folder(cls, folder: str | pathlib.Path, dtype: str = "float32") -> "Reference":
        """Loads a folder."""
        import transformers

        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        model = tiny.reference(folder, dtype=dtype)
        config = model.config
        is_llava = config.model_type in ("llava", "llava_next", "instructblip")
        token = config.image_token_index if is_llava else config.image_token_id
        return cls(model, processor, token)

    def pixels(self, images: Sequence[PIL.Image.Image]) -> dict[str, Any]:
        """Pixel tensors of one sample's images, in the model's dtype."""
        if not images:
            return {}
        options = {"crop_to_patches": True} if "internvl" in self.model.config.model_type else {}
        made = dict(self.image_processor(images=list(images), return_tensors="pt", **options))
        made.pop("num_patches", None)
        made["pixel_values"] = made["pixel_values"].to(self.model.dtype)
        return made

    def inputs(self, ids: Sequence[int], images: Sequence[PIL.Image.Image]) -> dict[str, Any]:
        """Keyword arguments of a forward pass over one unpadded sample."""
        import torch

        tokens = torch.tensor(np.asarray(ids)[None]).long()
        made = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if self.model.config.model_type in ("qwen2_5_vl", "qwen3_vl"):
            # Without these the reference silently falls back to one-dimensional positions.
            made["mm_token_type_ids"] = (tokens == self.image_token_id).int()
        return made | self.pixels(images)

    def logits(self, ids: Sequence[int], images: Sequence[PIL.Image.Image]) -> np.ndarray:
        """Float32 logits [T, V] of one sample."""
        import torch

        self._forget()
        with torch.no_grad():
            return self.model(**self.inputs(ids, images)).logits[0].float().numpy()

    def greedy(
        self,
        ids: Sequence[int],
        images: Sequence[PIL.Image.Image],
        count: int,
        stop_ids=(),
        **options: Any,
    ) -> list[int]:
        """Tokens that `generate` gives greedily, with further options, a stop id included."""
        import torch

        self._forget()
        with torch.no_grad():
            tokens = self.model.generate(
                **self.inputs(ids, images),
                max_new_tokens=count,
                do_sample=False,
                eos_token_id=list(stop_ids) or None,
                **options,
            )
        return tokens[0, len(ids) :].tolist()

    def _forget(self) -> None:
        # The reference keeps the offset of the last sample's positions on the module.
        if hasattr(getattr(self.model, "model", None), "rope_deltas"):
            self.model.model.rope_deltas = None


def prompt_ids(batch, row: int) -> list[int]:
    """The unpadded token ids of one row of a batch."""
    return np.asarray(batch.tokens_bt)[row, : int(batch.lengths_b[row])].tolist()
