"""Factors on the logits of image and system keys."""

from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp

from vlm_jax.attention.blockwise import Tap
from vlm_jax.attention.parts.base import DecodeRow, Part, Prompt, Values, host, part


@part
class LogitGains(Part):
    """Factors on the logits of image and system keys; 1 is the identity.

    They act on text rows after the last image token. Modality rebalance of AIR* (released code of
    arXiv 2603.24058).
    """

    image: Values
    system: Values

    identity: ClassVar[Mapping[str, float]] = {"image": 1, "system": 1}

    def acts(self):
        """See `Part.acts`."""
        return (host(self.image) != 1) | (host(self.system) != 1)

    def tap(self, prompt: Prompt):
        """See `Part.tap`."""
        return Tap(prompt.rows.after_image_bt, self.image, self.system)

    def logits(self, logits_bns, row: DecodeRow):
        """See `Part.logits`."""
        keys, gained_b = row.keys, row.keys.has_image_b
        if row.prompt is not None:
            last_bt = row.prompt.is_last_bt1[..., 0]
            gained_b = jnp.any(row.prompt.rows.after_image_bt & last_bt, axis=1)
        gain = jnp.where(keys.image_b1s, self.image[..., None], 1.0)
        gain = jnp.where(keys.system_b1s, self.system[..., None], gain)
        row.change((self.image != 1) | (self.system != 1))
        return jnp.where(gained_b[:, None, None], logits_bns * gain, logits_bns)
