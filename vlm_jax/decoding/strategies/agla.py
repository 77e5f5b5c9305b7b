"""Assembly of global and local attention (arXiv 2406.12718)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import PIL.Image

from vlm_jax.decoding.functions import function
from vlm_jax.decoding.strategies.base import Step, Strategy, View, plausible
from vlm_jax.decoding.traced import traced
from vlm_jax.errors import ConfigError, PromptError
from vlm_jax.processing.images import load_image
from vlm_jax.settings import number, one_of, setting, switch, whole


def _mask_of(matcher: Any) -> Callable[..., Any]:
    """Returns how a model that matches texts and images makes masks.

    Raises:
        ConfigError: it makes none.
    """
    if not hasattr(matcher, "mask"):
        raise ConfigError(
            f"method 'agla': {matcher.folder} is no BLIP, which alone says what matters in an "
            "image; name a folder of BLIP's image-text matching, or a function."
        )
    return matcher.mask


@traced
class AGLA(Strategy):
    """Adds what the model says of the image's relevant part: l + alpha l', l' of a masked image.

    Attributes:
        mask: function of a PIL image and a prompt; returns [height, width], 1 where the image stays
            and 0 where it turns black. Or the folder of the paper's BLIP
            (Salesforce/blip-itm-large-coco), which shows what matters to the prompt.
        alpha: strength of the second view; 0 is none.
        beta: least probability of a token, as a share of the likeliest one's.
        control: "random" shuffles the pixels of every mask: equal area, no information.
        seed: of the random masks.
        repo_bug: reads the masked image for the first token alone, as the released code does: later
            tokens come from the whole image's cache.
    """

    mask: Any = setting(
        None,
        function,
        does="an image and a prompt that returns a mask",
        of_matcher=lambda matcher: _mask_of(matcher),
    )
    alpha: float = setting(2.0, number, low=0)
    beta: float = setting(0.5, number, low=0, high=1)
    control: str = setting("", one_of, known=("", "random"))
    seed: int = setting(0, whole, low=0)
    repo_bug: bool = setting(False, switch)

    def views(self, images: Sequence[Any], prompt: Any) -> Sequence[View]:
        """Returns the masked view; see `Strategy.views`."""
        return [View(images=[self._masked(image, prompt) for image in images])]

    def _masked(self, source: Any, prompt: Any) -> PIL.Image.Image:
        image = load_image(source, "The image")
        pixels = np.asarray(image.convert("RGB"))
        mask = np.asarray(self.mask(image, prompt))
        if mask.shape != pixels.shape[:2] or not np.isin(mask, (0, 1)).all():
            raise PromptError(
                f"method 'agla': mask must return zeros and ones of shape {pixels.shape[:2]}, the "
                f"image's height and width, not {mask.dtype} of shape {mask.shape}."
            )
        if self.control:
            flat = np.random.default_rng(self.seed).permutation(mask.reshape(-1))
            mask = flat.reshape(mask.shape)
        return PIL.Image.fromarray((pixels * mask[..., None]).astype(np.uint8))

    def scores(self, logits_bwv, step: Step):
        """See `Strategy.scores`."""
        whole_bv, local_bv = logits_bwv[:, 0], logits_bwv[:, 1]
        if self.repo_bug:
            local_bv = jnp.where(step.count > 0, whole_bv, local_bv)
        return plausible(whole_bv + self.alpha * local_bv, whole_bv, self.beta)
