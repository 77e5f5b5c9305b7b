"""Base class of decoding strategies: views made on the host, scores computed on the devices.

    @traced
    class Contrast(Strategy):
        '''Takes away what the model says of an empty prompt.'''

        alpha: float = setting(1.0, number, low=0)

        def views(self, images, prompt):
            return [View(images=())]

        def scores(self, logits_bwv, step):
            return (1 + self.alpha) * logits_bwv[:, 0] - self.alpha * logits_bwv[:, 1]

Numbers are traced: new values compile nothing. Switches are static.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vlm_jax.attention.steering import Steering
from vlm_jax.config import VLMConfig
from vlm_jax.decoding.traced import Traced
from vlm_jax.models import Watch, Watched


@dataclasses.dataclass(frozen=True)
class View:
    """A further input of a sample: other images, prompt or pixels.

    Attributes:
        images: in place of the sample's own; None keeps those, () is no image.
        prompt: in place of the sample's own; None keeps that.
        pixels: changes the normalised pixels; None keeps them. Takes float32 [patches, C, frames,
            pixels of a patch and channel] of all images, and a random generator that is seeded by
            the question alone; returns an array of the same shape.
    """

    images: Sequence[Any] | None = None
    prompt: Any = None
    pixels: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """What a strategy is given in a step besides the logits.

    Attributes:
        count: int32 scalar, number of tokens generated so far.
        watched: what `Strategy.watch` asks for of the rows of these logits, leaves [B, W, ...].
        first_bwv: logits of the first token, for strategies with `needs_first`.
    """

    count: Any
    watched: Watched
    first_bwv: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strategy(Traced):
    """Turns the logits of several views of a sample into scores of its next token.

    Attributes:
        width: number W of views of a sample; the first is the sample itself.
        needs_image: whether samples without an image are refused.
        needs_first: whether it reads the logits of the first token at every step.
    """

    width: ClassVar[int] = 2
    needs_image: ClassVar[bool] = True
    needs_first: ClassVar[bool] = False

    def views(self, images: Sequence[Any], prompt: Any) -> Sequence[View]:
        """Returns the W - 1 further views of a sample, none by default.

        Args:
            images: of the sample.
            prompt: of the sample, as the processor takes it.
        """
        return ()

    def steering(self, config: VLMConfig) -> Steering | None:
        """Returns the steering of attention that belongs to the strategy; None: there is none."""
        return None

    def watch(self, depth: int) -> Watch | None:
        """Returns what it reads of each call of a model of `depth` layers; None: nothing."""
        return None

    def scores(self, logits_bwv: Float[Array, "B W V"], step: Step) -> Float[Array, "B V"]:
        """Returns scores by which the next token is chosen, in place of the first view's logits.

        Args:
            logits_bwv: float32 logits of all views.
            step: where the rows stand.
        """
        raise NotImplementedError


def plausible(
    scores_bv: Float[Array, "B V"], logits_bv: Float[Array, "B V"], beta: Array | float
) -> Float[Array, "B V"]:
    """Returns scores with those of implausible tokens at -inf (adaptive plausibility constraint).

    A token is kept whose probability is at least beta times that of the likeliest one.

    Args:
        scores_bv: of the strategy.
        logits_bv: of the sample as it is.
        beta: 0 keeps all, 1 the likeliest alone.
    """
    least_b1 = jnp.log(beta) + jnp.max(logits_bv, axis=-1, keepdims=True)
    return jnp.where(logits_bv >= least_b1, scores_bv, -jnp.inf)
