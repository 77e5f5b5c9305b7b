"""Factors on image and text masses in rows with much mass on text (AIR, AD-HH)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from vlm_jax.attention.parts.base import DecodeRow, Part, Values, choice, host, part


@part
class Reallocation(Part):
    """Multiplies the masses on image and text keys in rows whose text mass reaches a threshold.

    A row fires in head n when its text mass is at least `threshold` (inf for heads that are not
    listed). AIR: image 3.5, text 0.1, threshold 0.3. AD-HH: image 1, text 0, threshold 0.5.

    Attributes:
        renormalise: divide by the row's new sum; a row whose weights would all be 0 is unchanged.
        text_includes_system: count and scale system keys as text.
        trigger_reduce: "batch_sum" adds text masses over the batch before the comparison, as the
            released AIR* does, for replication only.
    """

    image: Values
    text: Values
    threshold: Values
    renormalise: bool = choice(default=False)
    text_includes_system: bool = choice(default=False)
    trigger_reduce: Literal["sample", "batch_sum"] = choice(
        default="sample", words=("sample", "batch_sum")
    )

    identity: ClassVar[Mapping[str, float]] = {"image": 1, "text": 1, "threshold": np.inf}
    endless: ClassVar[Mapping[str, str]] = {"threshold": "inf for a head that never fires"}
    flags: ClassVar[tuple[str, ...]] = ("fired",)

    @property
    def touches_row(self) -> bool:
        """See `Part.touches_row`."""
        return True

    @property
    def collectives(self) -> Mapping[str, int]:
        """See `Part.collectives`; a sum over the batch."""
        return {"all-reduce": 1} if self.trigger_reduce == "batch_sum" else {}

    def acts(self):
        """See `Part.acts`."""
        moves = (host(self.image) != 1) | (host(self.text) != 1)
        return moves & (host(self.threshold) < np.inf)

    @property
    def whole_prompts(self) -> str | None:
        """See `Part.whole_prompts`."""
        if self.trigger_reduce == "batch_sum":
            return "A reallocation with trigger_reduce='batch_sum' depends on who is in the batch"
        return None

    @property
    def mixes_examples(self) -> str | None:
        """See `Part.mixes_examples`."""
        if self.trigger_reduce == "batch_sum":
            return (
                "a trigger with trigger_reduce='batch_sum' would sum over them; use 'sample' "
                "(faithful=False of air_star)"
            )
        return None

    def weights(self, weights_bns, row: DecodeRow):
        """See `Part.weights`."""
        keys, text_b1s, text_bn = row.keys, row.keys.text_b1s, row.text_bn
        if self.text_includes_system:
            text_b1s = text_b1s | keys.system_b1s
            text_bn = text_bn + row.system_bn
        if self.trigger_reduce == "batch_sum":
            text_bn = jnp.broadcast_to(jnp.sum(text_bn, axis=0, keepdims=True), text_bn.shape)
        identity = (self.image == 1) & (self.text == 1)
        fired = (text_bn >= self.threshold) & keys.has_image_b[:, None] & ~identity
        factor = jnp.where(text_b1s, self.text[..., None], 1.0)
        factor = jnp.where(keys.image_b1s, self.image[..., None], factor)
        edited = weights_bns * factor
        if self.renormalise:
            total = jnp.sum(edited, axis=-1, keepdims=True)
            edited = jnp.where(total > 0, edited / jnp.where(total > 0, total, 1.0), weights_bns)
        row.change(fired)
        row.flags["fired"] = fired
        return jnp.where(fired[..., None], edited, weights_bns)
