"""The attention function of every tower and decoder: arrays in, arrays out.

The primitive attends to one segment of keys and returns its output and its log-sum-exp; outputs of
segments merge exactly by log-sum-exp. A prompt cache, the tokens generated so far, and the masses
on image, system and text are all segments. This room knows neither Flax nor a model family.
"""

from vlm_jax.attention.attend import attend
from vlm_jax.attention.segment import NEVER, Segment, Visibility, merge

__all__ = [
    "NEVER",
    "Segment",
    "Visibility",
    "attend",
    "merge",
]
