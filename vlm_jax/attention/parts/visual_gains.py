"""Gains of heads by how much of their attention is on the image."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vlm_jax.attention.blockwise import Tap
from vlm_jax.attention.parts.base import DecodeRow, Part, Prompt, Values, choice, host, part
from vlm_jax.errors import ConfigError


@part
class VisualGains(Part):
    """Gains by the visual attention ratio of the same call (arXiv 2510.10285).

    A head whose mass on image keys is at least `perception_from` gets `perception_gain`; one whose
    mass is at most `reasoning_to` gets `reasoning_gain`. Heads outside a class's layers have the
    thresholds inf and -inf.

    Attributes:
        rows: the ratio at prefill is the mean over text rows after the last image token
            ("q") or that of the last row ("last"); at decode it is the current row's. The gains of
            prefill act on all its rows.
        mode: "dynamic" classifies at every call; "prefill_cached" keeps the prefill's gains.
    """

    perception_from: Values
    perception_gain: Values
    reasoning_to: Values
    reasoning_gain: Values
    rows: Literal["q", "last"] = choice(default="q", words=("q", "last"))
    mode: Literal["dynamic", "prefill_cached"] = choice(
        default="dynamic", words=("dynamic", "prefill_cached")
    )

    identity: ClassVar[Mapping[str, float]] = {
        "perception_from": np.inf,
        "perception_gain": 1,
        "reasoning_to": -np.inf,
        "reasoning_gain": 1,
    }
    endless: ClassVar[Mapping[str, str]] = {
        "perception_from": "inf for a head that is never one of perception",
        "reasoning_to": "-inf for a head that is never one of reasoning",
    }
    flags: ClassVar[tuple[str, ...]] = "perception", "reasoning"

    @property
    def on_prefix(self) -> bool:
        """See `Part.on_prefix`."""
        return True

    @property
    def whole_prompts(self) -> str | None:
        """See `Part.whole_prompts`."""
        return "Visual gains act on all rows of a prompt, by a ratio of its later rows"

    def acts(self):
        """See `Part.acts`."""
        perception = (host(self.perception_from) < np.inf) & (host(self.perception_gain) != 1)
        reasoning = (host(self.reasoning_to) > -np.inf) & (host(self.reasoning_gain) != 1)
        return perception | reasoning

    def check(self) -> None:
        """See `Part.check`."""
        low, high = np.broadcast_arrays(host(self.reasoning_to), host(self.perception_from))
        if (low >= high).any():
            example, layer, head = np.argwhere(low >= high)[0]
            raise ConfigError(
                f"visual_gains.reasoning_to is {low[example, layer, head]:g} and perception_from "
                f"is {high[example, layer, head]:g} for layer {layer}, head {head}: a head could "
                "be both. Make reasoning_to smaller than perception_from."
            )

    def tap(self, prompt: Prompt):
        """See `Part.tap`."""
        return Tap(masses=True) if self.rows == "q" else None

    def prompt_end(self, out_btnh, prompt: Prompt, row: DecodeRow):
        """See `Part.prompt_end`."""
        image_bn, known_b = row.image_bn, row.keys.has_image_b
        if self.rows == "q":
            after_bt = prompt.rows.after_image_bt
            parts = [m * read.image_btn for m, read in zip(prompt.masses, prompt.reads)]
            image_btn = sum(parts[1:], start=parts[0])
            image_btn = jnp.where(prompt.is_last_bt1, image_bn[:, None], image_btn)
            image_bn = _mean(image_btn, after_bt)
            known_b = jnp.any(after_bt, axis=1)
        gain, perception, reasoning = visual_gain(self, image_bn, known_b)
        row.flags |= {"perception": perception, "reasoning": reasoning}
        if self.mode == "prefill_cached":
            row.state["visual_gains"] = gain, perception, reasoning
        return out_btnh * gain[:, None, :, None]

    def output(self, out_b1nh, row: DecodeRow):
        """See `Part.output`."""
        kept = row.state.get("visual_gains")
        if kept is None and self.mode == "prefill_cached":
            raise ValueError(
                "Visual gains of mode 'prefill_cached' come from the prompt: pass the state "
                "that prefill or the step before returned."
            )
        if kept is None:
            kept = visual_gain(self, row.image_bn, row.keys.has_image_b)
        gain, perception, reasoning = kept
        row.flags |= {"perception": perception, "reasoning": reasoning}
        return out_b1nh * gain[:, None, :, None]


def visual_gain(
    part: VisualGains,
    ratio_bn: Float[Array, "B N"],
    known_b: Bool[Array, " B"] | None = None,
) -> tuple[Array, Bool[Array, "B N"], Bool[Array, "B N"]]:
    """Returns each head's gain, and which are perception and reasoning heads.

    Args:
        part: of this layer.
        ratio_bn: visual attention ratio.
        known_b: samples that have one (None: all); in the others no head is of a class.
    """
    known_b1 = True if known_b is None else known_b[:, None]
    perception = (ratio_bn >= part.perception_from) & known_b1
    reasoning = (ratio_bn <= part.reasoning_to) & known_b1
    gain = jnp.where(reasoning, part.reasoning_gain, 1.0)
    return jnp.where(perception, part.perception_gain, gain), perception, reasoning


def _mean(values_btn: Array, rows_bt: Array) -> Array:
    """Mean over some rows; 0 where a sample has none."""
    chosen = rows_bt[..., None]
    count = jnp.maximum(jnp.sum(chosen, axis=1), 1)
    return jnp.sum(jnp.where(chosen, values_btn, 0.0), axis=1) / count
