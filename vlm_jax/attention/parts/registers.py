"""Attention registers behind the row (FarSight), in closed form."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vlm_jax.attention.blockwise import Tap
from vlm_jax.attention.parts.base import DecodeRow, Part, Prompt, Values, choice, host, part
from vlm_jax.attention.segment import kinds_of
from vlm_jax.batch import Kind


@part
class Registers(Part):
    """Slots behind each row that take attention and give nothing (FarSight).

    Row i has m slots with logits -sigma, -2 sigma, ...; they take part in the softmax and are then
    dropped, so that its weights sum to less than 1: they are divided by 1 + c exp(-lse), with lse
    the log-sum-exp of its own logits and c = q (1 - q^m) / (1 - q), q = exp(-sigma). Masses of
    attention, and what is triggered by them, are those without slots.

    Attributes:
        sigma: decay; inf is the identity.
        budget: length L of the row with its slots, in mode "budget".
        mode: "prefill": the slots of a row are the prompt's later tokens, as published, so that
            the last row and generated ones have none. "budget": row i has L - 1 - i, while
            answering too.
        log_length: sigma is multiplied by the log of the length: of the prompt, or the budget.
        dealt: a control: a head is scaled by the sum that the head `ahead` heads further on would
            keep, cyclically. With 4 heads and ahead 1, head 3 takes that of head 0: the layer loses
            as much attention, but not by what its heads attend to.
        ahead: whole numbers of heads, for `dealt`.
    """

    sigma: Values
    budget: Values
    ahead: Values
    mode: Literal["prefill", "budget"] = choice(default="prefill", words=("prefill", "budget"))
    log_length: bool = choice(default=False)
    dealt: bool = choice(default=False)

    identity: ClassVar[Mapping[str, float]] = {"sigma": np.inf, "budget": 1, "ahead": 0}
    endless: ClassVar[Mapping[str, str]] = {"sigma": "inf for a head without registers"}

    @property
    def on_prefix(self) -> bool:
        """See `Part.on_prefix`."""
        return True

    @property
    def collectives(self) -> Mapping[str, int]:
        """See `Part.collectives`; what other heads' rows leave."""
        return {"all-gather": 1} if self.dealt else {}

    def acts(self):
        """See `Part.acts`."""
        return host(self.sigma) < np.inf

    @property
    def whole_prompts(self) -> str | None:
        """See `Part.whole_prompts`."""
        if self.mode == "prefill":
            return "Registers of mode 'prefill' are as many as a row's prompt has later tokens"
        return None

    def tap(self, prompt: Prompt):
        """Asks for tiles, whose log-sum-exp is exact."""
        return Tap()

    def prompt_rows(self, out_btnh, prompt: Prompt, state):
        """See `Part.prompt_rows`; prompts that end here are scaled at their end."""
        if prompt.rows.last_b is not None:
            return out_btnh
        return out_btnh * self._kept(prompt.lse_btn, *self._lengths(prompt))

    def prompt_end(self, out_btnh, prompt: Prompt, row: DecodeRow):
        """See `Part.prompt_end`; the last row's log-sum-exp is of its logits as parts left them."""
        lse_btn = jnp.where(prompt.is_last_bt1, row.lse_bn[:, None], prompt.lse_btn)
        return out_btnh * self._kept(lse_btn, *self._lengths(prompt))

    def output(self, out_b1nh, row: DecodeRow):
        """See `Part.output`."""
        if self.mode == "prefill":
            return out_b1nh
        seen_b11 = row.keys.count_b[:, None, None]
        return out_b1nh * self._kept(row.lse_bn[:, None], seen_b11, self.budget[:, None])

    def _lengths(self, prompt: Prompt) -> tuple[Array, Array]:
        """Returns how many keys each row sees, and how many there are with its slots."""
        length = prompt.q_btnh.shape[1]
        real_bs = jnp.concatenate(
            [kinds_of(segment) != Kind.PAD for segment in prompt.segments], axis=1
        )
        before_b = jnp.sum(real_bs[:, : real_bs.shape[1] - length], axis=1)
        seen_bt = before_b[:, None] + jnp.arange(1, length + 1)
        if self.mode == "budget":
            return seen_bt[..., None], self.budget[:, None]
        return seen_bt[..., None], jnp.sum(real_bs, axis=1)[:, None, None]

    def _kept(self, lse_btn: Array, seen_bt1: Array, length: Array) -> Float[Array, "B T N 1"]:
        """Returns the sum of a row's weights, exactly 1 where it has no slots."""
        sigma = self.sigma[:, None]
        if self.log_length:
            sigma = sigma * jnp.log(jnp.maximum(length, 2).astype(lse_btn.dtype))
        slots = jnp.maximum(length - seen_bt1, 0).astype(lse_btn.dtype)
        # log c = -sigma + log(1 - q^m) - log(1 - q)
        log_one_less = lambda x: jnp.log(-jnp.expm1(-x))
        some = (slots > 0) & (sigma < jnp.inf)
        finite, count = jnp.where(some, sigma, 1.0), jnp.where(some, slots, 1.0)
        log_c = -finite + log_one_less(count * finite) - log_one_less(finite)
        log_c = jnp.where(some, log_c, -jnp.inf)
        kept_btn = jax.nn.sigmoid(lse_btn - log_c)
        if self.dealt:
            heads = kept_btn.shape[-1]
            places_b1n = (jnp.arange(heads) + self.ahead.astype(int)[:, None]) % heads
            places_btn = jnp.broadcast_to(places_b1n, kept_btn.shape)
            kept_btn = jnp.take_along_axis(kept_btn, places_btn, axis=-1)
        return kept_btn[..., None]
