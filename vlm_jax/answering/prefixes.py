"""Prompt prefixes that stay on the device between calls."""

import collections
from collections.abc import Hashable

import jax

from vlm_jax.models import Prefix


class PrefixStore:
    """What was read of prompts through their last image, kept for later calls.

    Settings that leave such rows alone (logit biases; steering of the rows behind an image) ask
    about the same images again and again: the images are then decoded and read once for all.

    Where there is no room for all, what was used last makes room: calls come round to the images
    that were asked about first, and would otherwise always find the others.

    Args:
        limit_bytes: device memory that kept prefixes may take; 0 keeps none.

    Attributes:
        read, reused: how many groups of prefixes were read, and how many were here already.
    """

    def __init__(self, limit_bytes: int = 0):
        self.limit_bytes = limit_bytes
        self.read = self.reused = 0
        self._kept: collections.OrderedDict[Hashable, tuple[Prefix, int]] = (
            collections.OrderedDict()
        )

    @property
    def bytes(self) -> int:
        """Device memory that the kept prefixes take."""
        return sum(size for _, size in self._kept.values())

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def find(self, key: Hashable) -> Prefix:
        """Returns the prefixes of a key that is here."""
        self.reused += 1
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def keep(self, key: Hashable, prefix: Prefix) -> None:
        """Takes prefixes that were read now, where there is room."""
        self.read += 1
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(prefix))
        if size <= self.limit_bytes:
            while self.bytes + size > self.limit_bytes:
                self._kept.popitem()
            self._kept[key] = prefix, size
