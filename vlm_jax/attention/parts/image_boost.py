"""The image's logits raised by their own size (PAI)."""

from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp

from vlm_jax.attention.parts.base import DecodeRow, Part, Values, host, part


@part
class ImageBoost(Part):
    """Strength by which logits on image keys grow: s + strength |s|; 0 is the identity.

    The attention half of PAI (arXiv 2407.21771), in decode rows.
    """

    strength: Values

    identity: ClassVar[Mapping[str, float]] = {"strength": 0}

    @property
    def touches_row(self) -> bool:
        """See `Part.touches_row`."""
        return True

    def acts(self):
        """See `Part.acts`."""
        return host(self.strength) != 0

    def logits(self, logits_bns, row: DecodeRow):
        """See `Part.logits`."""
        boosted = logits_bns + self.strength[..., None] * jnp.abs(logits_bns)
        row.change(self.strength != 0)
        return jnp.where(row.keys.image_b1s, boosted, logits_bns)
