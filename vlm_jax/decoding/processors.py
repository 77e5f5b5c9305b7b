"""Logits processors as in transformers, in its order.

Repetition penalty, no repeated n-grams, no stop before a least length. One that is not asked for
compiles to nothing.
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
    """The tokens so far, prompts included; fields that no processor reads are None.

    Attributes:
        used_bv: bool [B, V] tokens that a row holds.
        tokens_bs: int32 [B, P + slots] prompts, right-aligned in P places, then generated tokens;
            -1 where there is none.
        end: int32 scalar, the place of the next token.
    """

    used_bv: Any = None
    tokens_bs: Any = None
    end: Any = None

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
        used_bv = tokens_bs = end = None
        if prompt_bp is not None and "repetition_penalty" in settings:
            used_bv = _mark(jnp.zeros((prompt_bp.shape[0], vocabulary), bool), prompt_bp)
        if prompt_bp is not None and "no_repeat_ngram_size" in settings:
            tokens_bs = jnp.pad(prompt_bp, ((0, 0), (0, slots)), constant_values=-1)
            end = jnp.int32(prompt_bp.shape[1])
        return cls(used_bv, tokens_bs, end)

    @classmethod
    def of(
        cls,
        settings: Mapping[str, Any],
        prompt_bp: Int[Array, "B P"] | None,
        tokens_bwn: Int[Array, "B W slots"],
        lengths_b: Int[Array, " B"],
        vocabulary: int,
    ) -> "History":
        """Returns the history of W answers to each prompt, for [B W] rows.

        Args:
            settings, prompt_bp, vocabulary: see `start`.
            tokens_bwn: generated tokens.
            lengths_b: how many each sample's answers hold.
        """
        if prompt_bp is None:
            return cls()
        batch, width, slots = tokens_bwn.shape
        made_bwn = jnp.where(jnp.arange(slots) < lengths_b[:, None, None], tokens_bwn, -1)
        prompt_bwp = jnp.broadcast_to(prompt_bp[:, None], (batch, width, prompt_bp.shape[1]))
        tokens_bws = jnp.concatenate([prompt_bwp, made_bwn], axis=-1)
        tokens_rs = tokens_bws.reshape(batch * width, -1)
        # Answers of unequal lengths end at one place, the last.
        shift_r1 = jnp.repeat(slots - lengths_b, width)[:, None]
        places_rs = jnp.arange(tokens_rs.shape[1]) - shift_r1
        tokens_rs = jnp.take_along_axis(tokens_rs, places_rs, axis=1, mode="fill", fill_value=-1)
        tokens_rs = jnp.where(places_rs >= 0, tokens_rs, -1)
        used_rv = None
        if "repetition_penalty" in settings:
            used_rv = _mark(jnp.zeros((len(tokens_rs), vocabulary), bool), tokens_rs)
        looks = "no_repeat_ngram_size" in settings
        return cls(used_rv, *((tokens_rs, jnp.int32(tokens_rs.shape[1])) if looks else ()))

    def add(self, token_b: Int[Array, " B"]) -> "History":
        """Returns the history with the token of a step."""
        used_bv, tokens_bs, end = self.used_bv, self.tokens_bs, self.end
        if used_bv is not None:
            used_bv = _mark(used_bv, token_b[:, None])
        if tokens_bs is not None:
            tokens_bs = jax.lax.dynamic_update_slice_in_dim(
                tokens_bs, token_b[:, None], end, axis=1
            )
            end = end + 1
        return History(used_bv, tokens_bs, end)


def process(
    logits_bv: Float[Array, "B V"],
    history: History,
    settings: Mapping[str, Any],
    stop_ids: Int[Array, " stops"],
    step: Int[Array, "*b"],
) -> Float[Array, "B V"]:
    """Returns the logits of a step after the processors that the settings ask for.

    Args:
        logits_bv: float32 logits.
        history: tokens before this step.
        settings: of `DecodeSettings.traced`.
        stop_ids: ids that end a row.
        step: number of generated tokens so far, a scalar or [B].
    """
    if history.used_bv is not None:
        penalty = settings["repetition_penalty"]
        lower_bv = jnp.where(logits_bv < 0, logits_bv * penalty, logits_bv / penalty)
        logits_bv = jnp.where(history.used_bv, lower_bv, logits_bv)
    if history.tokens_bs is not None:
        size = settings["no_repeat_ngram_size"]
        seen_bv = repeats(history.tokens_bs, history.end, size, logits_bv)
        logits_bv = jnp.where(seen_bv, -jnp.inf, logits_bv)
    if "min_new_tokens" in settings:
        stops_v = jnp.isin(jnp.arange(logits_bv.shape[1]), stop_ids)
        early = step[..., None] < settings["min_new_tokens"]
        logits_bv = jnp.where(early & stops_v, -jnp.inf, logits_bv)
    return logits_bv


def repeats(
    tokens_bs: Int[Array, "B S"], end: Int[Array, ""], size: Int[Array, ""], like_bv: Array
) -> Bool[Array, "B V"]:
    """Returns bool [B, V], the tokens that would repeat an n-gram which a row already holds.

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
    """Returns flags that are also True at some tokens; -1 is no token."""
    rows_b1 = jnp.arange(flags_bv.shape[0])[:, None]
    places_bs = jnp.where(tokens_bs < 0, flags_bv.shape[1], tokens_bs)
    return flags_bv.at[rows_b1, places_bs].set(True, mode="drop")
