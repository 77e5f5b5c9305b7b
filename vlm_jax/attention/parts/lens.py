"""The cross-head lens of AIR*."""

from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp

from vlm_jax.attention.parts.base import DecodeRow, Part, Values, host, part


@part
class Lens(Part):
    """Strength of the cross-head shift on image keys; 0 is the identity (AIR*)."""

    strength: Values

    identity: ClassVar[Mapping[str, float]] = {"strength": 0}

    @property
    def touches_row(self) -> bool:
        """See `Part.touches_row`."""
        return True

    @property
    def collectives(self) -> Mapping[str, int]:
        """See `Part.collectives`; a mean over all heads."""
        return {"all-reduce": 1}

    def acts(self):
        """See `Part.acts`."""
        return host(self.strength) != 0

    def logits(self, logits_bns, row: DecodeRow):
        """See `Part.logits`."""
        shift = jnp.mean(jnp.abs(logits_bns), axis=1, keepdims=True)
        shifted = logits_bns + self.strength[..., None] * shift
        row.change(self.strength != 0)
        return jnp.where(row.keys.visible_b1s & row.keys.image_b1s, shifted, logits_bns)
