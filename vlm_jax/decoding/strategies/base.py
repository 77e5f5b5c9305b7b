"""What a strategy is: views on the host, and the scores of a step on the devices.

    @traced
    class Contrast(Strategy):
        '''Takes away what the model says of an empty prompt.'''

        alpha: float = setting(1.0, number, low=0)

        def views(self, images, prompt):
            return [View(images=())]

        def scores(self, logits_bwv, step):
            return (1 + self.alpha) * logits_bwv[:, 0] - self.alpha * logits_bwv[:, 1]

Numbers are traced, so that other values compile nothing; switches are not.
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
    """One further reading of a sample.

    Attributes:
        images: in place of the sample's own; None leaves them, () leaves them out.
        prompt: in place of the sample's own; None leaves it.
        pixels: changes the normalised pixels, if there is something to change. Takes float32
            [patches, C, frames, pixels of a patch and channel] of all images, and a generator of
            random numbers that depends on the question alone; returns as many.
    """

    images: Sequence[Any] | None = None
    prompt: Any = None
    pixels: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """Where the rows of a batch stand.

    Attributes:
        count: int32 scalar, tokens of the answers that are there.
        watched: what the strategy watches of the rows whose logits these are, leaves [B, W, ...].
        first_bwv: the logits of the first token, for strategies that need them.
    """

    count: Any
    watched: Watched
    first_bwv: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strategy(Traced):
    """How the logits of several views of a sample become scores of its next token.

    Attributes:
        width: views of a sample W, its own among them, the first.
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
        """Returns what is done to attention beside this; None: nothing."""
        return None

    def watch(self, depth: int) -> Watch | None:
        """Returns what is kept of each call of a model of so many layers; None: nothing is."""
        return None

    def scores(self, logits_bwv: Float[Array, "B W V"], step: Step) -> Float[Array, "B V"]:
        """Returns what the next token is chosen by, in place of the logits of the first view.

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
