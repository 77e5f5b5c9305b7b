"""What was read and stays on the device between calls."""

import collections
from collections.abc import Hashable
from typing import Generic, TypeVar

import jax

Kept = TypeVar("Kept")


class DeviceStore(Generic[Kept]):
    """Prefixes of prompts, or features of their images, kept for later calls.

    Settings that leave such rows alone (logit biases; steering of the rows behind an image; other
    decoder weights, where features are kept) ask about the same images again and again: these are
    then decoded and read once for all.

    Where there is no room for all, the most recently used entry is evicted, because every arm of a
    comparison asks about the images in the same order (a cyclic scan): with room for 2 of images 1,
    2 and 3, the next arm, which starts over at 1, still finds it.

    Args:
        limit_bytes: device memory that is kept at most; 0 keeps nothing.

    Attributes:
        read, reused: how many groups of prefixes were read, and how many were here already.
    """

    def __init__(self, limit_bytes: int = 0):
        self.limit_bytes = limit_bytes
        self.read = self.reused = 0
        self._kept: collections.OrderedDict[Hashable, tuple[Kept, int]] = collections.OrderedDict()

    @property
    def bytes(self) -> int:
        """Device memory that is taken."""
        return sum(size for _, size in self._kept.values())

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def find(self, key: Hashable) -> Kept:
        """Returns what is here under a key."""
        self.reused += 1
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def keep(self, key: Hashable, value: Kept) -> None:
        """Takes what was read now, where there is room."""
        self.read += 1
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(value))
        if size <= self.limit_bytes:
            while self.bytes + size > self.limit_bytes:
                self._kept.popitem()
            self._kept[key] = value, size
