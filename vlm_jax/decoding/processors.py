"""What settings do to the logits of a step before a token is chosen, each as transformers does it.

In its order: repetition penalty, no repeated n-grams, no stop before a least length. What is not
asked for compiles to nothing.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LOOKS_BACK = "repetition_penalty", "no_repeat_ngram_size"
"""Settings that need the tokens of the prompts."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class History:
    """The tokens so far, prompts included; parts that nothing looks at are None.

    Attributes:
        used_bv: bool [B, V] tokens that a row holds.
        tokens_bs: int32 [B, P + slots] prompts, right-aligned in P places, then generated tokens;
            -1 where there is none.
    """

    used_bv: Any = None
    tokens_bs: Any = None

    @classmethod
    def start(
        cls,
        settings: Mapping[str, Any],
        prompt_bp: Int[Array, "B P"] | None,
        slots: int,
        vocabulary: int,
    ) -> "History":
        """Returns the history of prompts.

        Args:
            settings: of `DecodeSettings.traced`.
            prompt_bp: right-aligned prompts, -1 before them; None where no setting looks back.
            slots: room for generated tokens.
            vocabulary: V.
        """
        used_bv = tokens_bs = None
        if prompt_bp is not None and "repetition_penalty" in settings:
            used_bv = _mark(jnp.zeros((prompt_bp.shape[0], vocabulary), bool), prompt_bp)
        if prompt_bp is not None and "no_repeat_ngram_size" in settings:
            tokens_bs = jnp.pad(prompt_bp, ((0, 0), (0, slots)), constant_values=-1)
        return cls(used_bv, tokens_bs)

    def add(self, token_b: Int[Array, " B"], step: Int[Array, ""], slots: int) -> "History":
        """Returns the history with the token of a step."""
        used_bv, tokens_bs = self.used_bv, self.tokens_bs
        if used_bv is not None:
            used_bv = _mark(used_bv, token_b[:, None])
        if tokens_bs is not None:
            place = tokens_bs.shape[1] - slots + step
            tokens_bs = jax.lax.dynamic_update_slice_in_dim(
                tokens_bs, token_b[:, None], place, axis=1
            )
        return History(used_bv, tokens_bs)


def process(
    logits_bv: Float[Array, "B V"],
    history: History,
    settings: Mapping[str, Any],
    stop_ids: Int[Array, " stops"],
    step: Int[Array, ""],
    slots: int,
) -> Float[Array, "B V"]:
    """Returns the logits of a step as the settings change them.

    Args:
        logits_bv: float32 logits.
        history: tokens before this step.
        settings: of `DecodeSettings.traced`.
        stop_ids: ids that end a row.
        step: number of generated tokens so far.
        slots: room for generated tokens.
    """
    if history.used_bv is not None:
        penalty = settings["repetition_penalty"]
        lower_bv = jnp.where(logits_bv < 0, logits_bv * penalty, logits_bv / penalty)
        logits_bv = jnp.where(history.used_bv, lower_bv, logits_bv)
    if history.tokens_bs is not None:
        end = history.tokens_bs.shape[1] - slots + step
        seen_bv = repeats(history.tokens_bs, end, settings["no_repeat_ngram_size"], logits_bv)
        logits_bv = jnp.where(seen_bv, -jnp.inf, logits_bv)
    if "min_new_tokens" in settings:
        stops_v = jnp.isin(jnp.arange(logits_bv.shape[1]), stop_ids)
        early = step < settings["min_new_tokens"]
        logits_bv = jnp.where(early & stops_v, -jnp.inf, logits_bv)
    return logits_bv


def repeats(
    tokens_bs: Int[Array, "B S"], end: Int[Array, ""], size: Int[Array, ""], like_bv: Array
) -> Bool[Array, "B V"]:
    """Returns the tokens that would make an n-gram which a row holds already.

    With size 3 and a row 5 6 7 5 6, token 7 would: 5 6 7 is there.

    Args:
        tokens_bs: tokens of each row in a run that ends before `end`; -1 before it.
        end: place of the next token.
        size: n.
        like_bv: an array [B, V].
    """
    length = tokens_bs.shape[1]
    places_s = jnp.arange(length)

    def match(back: Array, same_bs: Array) -> Array:
        """Whether the token `back` places before each is the one `back` places before the end."""
        before_bs = jnp.take(tokens_bs, places_s - back, axis=1, mode="fill", fill_value=-1)
        before_bs = jnp.where(places_s >= back, before_bs, -1)
        last_b1 = jax.lax.dynamic_slice_in_dim(tokens_bs, jnp.maximum(end - back, 0), 1, axis=1)
        return same_bs & (before_bs == last_b1) & (before_bs >= 0)

    inside_bs = jnp.broadcast_to((places_s < end)[None], tokens_bs.shape)
    found_bs = jax.lax.fori_loop(1, size, match, inside_bs)
    return _mark(jnp.zeros(like_bv.shape, bool), jnp.where(found_bs, tokens_bs, -1))


def _mark(flags_bv: Array, tokens_bs: Array) -> Array:
    """Returns flags with those of some tokens set; -1 is no token."""
    rows_b1 = jnp.arange(flags_bv.shape[0])[:, None]
    places_bs = jnp.where(tokens_bs < 0, flags_bv.shape[1], tokens_bs)
    return flags_bv.at[rows_b1, places_bs].set(True, mode="drop")
