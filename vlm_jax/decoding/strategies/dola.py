"""Decoding by contrasting layers (arXiv 2309.03883)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.decoding.strategies.base import Step, Strategy, plausible
from vlm_jax.decoding.traced import traced
from vlm_jax.errors import ConfigError
from vlm_jax.models import Watch
from vlm_jax.settings import number, one_of, setting, switch, whole

WORDS = "even", "low", "high"


def _levels(name: str, value: Any) -> Any:
    """Returns a word of `WORDS`, or levels as a tuple.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(value, str):
        return one_of(name, value, WORDS)
    if not isinstance(value, Sequence) or not value:
        raise ConfigError(f"{name} must be one of {', '.join(WORDS)} or a list, not {value!r}.")
    levels = tuple(whole(name, one, low=0) for one in value)
    if len(set(levels)) < len(levels):
        raise ConfigError(f"{name} names a layer twice: {value!r}.")
    return levels


def divergences(
    early_bjv: Float[Array, "B J V"], final_bv: Float[Array, "B V"]
) -> Float[Array, "B J"]:
    """Returns how far each candidate's distribution is from the last layer's.

    As in the released code: half the sum of KL(M || p) over both distributions p, M their mean,
    each a mean over the vocabulary.

    Args:
        early_bjv: logits of the candidates.
        final_bv: logits of the last layer.
    """
    early = jax.nn.log_softmax(early_bjv, axis=-1)
    final = jax.nn.log_softmax(final_bv, axis=-1)[:, None]
    # One exponential and one logarithm of each token: a step has as many as the head has products.
    mean = (jnp.exp(early) + jnp.exp(final)) / 2
    log_mean = jnp.log(jnp.maximum(mean, jnp.finfo(mean.dtype).tiny))
    return jnp.mean(mean * (log_mean - (early + final) / 2), axis=-1)


@traced
class DoLa(Strategy):
    """Takes away what an early layer says already: log p - log p', p' of the farthest layer.

    Attributes:
        layers: candidates, counted as levels of the residual stream: 0 is the embeddings, j what j
            layers left. "even" is 0, 2, 4, ... below the last, "low" and "high" those of them in
            the first and the second half.
        relative_top: least probability of a token, as a share of the likeliest one's.
        norm: whether candidates go through the final norm before the head; the released code leaves
            it out.
        control: "random" takes any candidate at each step, the same one for all samples.
        seed: of the random layers.
    """

    width = 1
    needs_image = False

    layers: Any = setting("even", _levels)
    relative_top: float = setting(0.1, number, low=0, high=1)
    norm: bool = setting(False, switch)
    control: str = setting("", one_of, known=("", "random"))
    seed: int = setting(0, whole, low=0)

    def watch(self, depth: int) -> Watch:
        """Returns the candidates of a model of so many layers; see `Strategy.watch`.

        Raises:
            ConfigError: a candidate is not below the last.
        """
        if isinstance(self.layers, str):
            half = depth // 2
            ends = {"even": (0, depth), "low": (0, half), "high": (half + half % 2, depth)}
            return Watch(early=tuple(range(*ends[self.layers], 2)), early_norm=self.norm)
        if max(self.layers) >= depth:
            raise ConfigError(
                f"method 'dola': layers names {max(self.layers)}, but candidates are below the "
                f"last of the model's {depth} layers: 0 to {depth - 1}."
            )
        return Watch(early=self.layers, early_norm=self.norm)

    def scores(self, logits_bwv, step: Step):
        """See `Strategy.scores`."""
        final_bv, early_bjv = logits_bwv[:, 0], step.watched.early_bjv[:, 0]
        if self.control:
            key = jax.random.fold_in(jax.random.key(self.seed), step.count)
            chosen = jax.random.randint(key, (), 0, early_bjv.shape[1])
            chosen_b = jnp.broadcast_to(chosen, early_bjv.shape[:1])
        else:
            chosen_b = jnp.argmax(divergences(early_bjv, final_bv), axis=-1)
        early_bv = jnp.take_along_axis(early_bjv, chosen_b[:, None, None], axis=1)[:, 0]
        log_p_bv = jax.nn.log_softmax(final_bv, axis=-1)
        return plausible(
            log_p_bv - jax.nn.log_softmax(early_bv, axis=-1), final_bv, self.relative_top
        )
