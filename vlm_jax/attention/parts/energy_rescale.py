"""Factors that bring heads' logits towards the mean energy of their layer (AIR*)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.attention.causal_projection import EPSILON
from vlm_jax.attention.parts.base import DecodeRow, Part, Prompt, Values, choice, host, part
from vlm_jax.attention.segment import kinds_of
from vlm_jax.batch import Kind

ENERGY_FACTORS = 0.8, 1.25
"""Limits of the energy rescale, as in the released AIR*."""


@part
class EnergyRescale(Part):
    """Brings the logits of heads with `on` > 0 towards the mean energy of the layer's heads.

    With E_n the sum of squared logits of head n, s *= clip(sqrt(target * mean_n E / (E_n + 1e-8)),
    0.8, 1.25), the mean over all heads of the layer (`air_qk_rescale` of the released AIR*, where
    it is off by default and `target` is 1).

    Attributes:
        prefill: "off": each decode row by its own logits on the keys that it sees. "official": all
            rows of a prompt by one factor, of all its rows and keys, later ones included, as the
            released AIR* does (for replication only).
    """

    on: Values
    target: Values
    prefill: Literal["off", "official"] = choice(default="off", words=("off", "official"))

    identity: ClassVar[Mapping[str, float]] = {"on": 0, "target": 1}

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
        return host(self.on) > 0

    @property
    def on_prefix(self) -> bool:
        """See `Part.on_prefix`."""
        return self.prefill == "official"

    @property
    def whole_prompts(self) -> str | None:
        """See `Part.whole_prompts`."""
        if self.prefill == "official":
            return "An energy rescale with prefill='official' acts on all rows by later ones"
        return None

    def queries(self, q_btnh, prompt: Prompt):
        """Returns queries scaled so that their logits have the target energy.

        The energy of all rows on all keys is the inner product of two Gram matrices, so that the
        map of logits is never formed: sum_ij (q_i . k_j)^2 = <Q^T Q, K^T K>.
        """
        if self.prefill == "off":
            return q_btnh
        batch, _, heads, dim = q_btnh.shape
        wide = jnp.promote_types(q_btnh.dtype, jnp.float32)
        gram = lambda letters, real, a: jnp.einsum(
            letters,
            *[jnp.where(real, a, 0.0).astype(wide)] * 2,
            precision=jax.lax.Precision.HIGHEST,
        )
        q_bnhe = gram("btnh,btne->bnhe", prompt.rows.real_bt[..., None, None], q_btnh)
        k_bkhe = _sum(
            [
                gram("bksh,bkse->bkhe", (kinds_of(s) != Kind.PAD)[:, None, :, None], s.k_bksh)
                for s in prompt.segments
            ]
        )
        kv_heads = k_bkhe.shape[1]
        pairs = q_bnhe.reshape(batch, kv_heads, heads // kv_heads, dim, dim) * k_bkhe[:, :, None]
        factor = 1.0 / dim if prompt.scale is None else prompt.scale * prompt.scale
        energy_bn = factor * jnp.sum(pairs, axis=(3, 4)).reshape(batch, heads)
        return (q_btnh * energy_factors(self, energy_bn)[:, None, :, None]).astype(q_btnh.dtype)

    def logits(self, logits_bns, row: DecodeRow):
        """See `Part.logits`; the last row of a prompt whose queries are rescaled is left alone."""
        if row.prompt is not None and self.prefill == "official":
            return logits_bns
        visible_b1s = row.keys.visible_b1s
        energy_bn = jnp.sum(jnp.where(visible_b1s, logits_bns * logits_bns, 0.0), axis=-1)
        factor_bn = energy_factors(self, energy_bn)
        row.change(self.on > 0)
        return jnp.where(visible_b1s, logits_bns * factor_bn[..., None], logits_bns)


def energy_factors(part: EnergyRescale, energy_bn: Float[Array, "B N"]) -> Float[Array, "B N"]:
    """Returns the factor on each head's logits, exactly 1 where the part is off.

    Args:
        part: of this layer.
        energy_bn: sum of squared logits of each head.
    """
    wanted = part.target * jnp.mean(energy_bn, axis=1, keepdims=True)
    factor = jnp.clip(jnp.sqrt(wanted / (energy_bn + EPSILON)), *ENERGY_FACTORS)
    return jnp.where(part.on > 0, factor, 1.0)


def _sum(terms: Sequence[Array]) -> Array:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
