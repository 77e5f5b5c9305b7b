"""Images and chats to `Batch`, tokens to text.

Knows transformers' tokenizers and PIL image processors; knows nothing of devices or weights.
"""

from vlm_jax.processing.buckets import bucket
from vlm_jax.processing.images import MAX_IMAGE_PIXELS, ImageSource
from vlm_jax.processing.processor import Processor
from vlm_jax.processing.samples import Draft, Sample

__all__ = ["MAX_IMAGE_PIXELS", "Draft", "ImageSource", "Processor", "Sample", "bucket"]
