"""Uniform numbers as a pure function of (key, index): scene 17 is the same scene in every batch.

A counter-based generator (the finaliser of SplitMix64, Steele et al. 2014) is applied to arrays of
counters: thousands of scenes are drawn at once, and any one of them can be drawn again alone.
"""

import zlib

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def _mix(words: np.ndarray) -> np.ndarray:
    words = (words ^ (words >> np.uint64(30))) * _MIX1
    words = (words ^ (words >> np.uint64(27))) * _MIX2
    return words ^ (words >> np.uint64(31))


def _hash(name: str, seed: int, indices: np.ndarray, count: int) -> np.ndarray:
    key = _mix(np.array([(seed << 32) ^ zlib.crc32(name.encode())], np.uint64) + _STEP)
    rows = _mix(key + (np.asarray(indices).astype(np.uint64) + np.uint64(1)) * _STEP)
    columns = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * _STEP
    return _mix(rows[:, None] + columns[None, :])


def uniforms(name: str, seed: int, indices: np.ndarray, count: int) -> np.ndarray:
    """Draws `count` numbers in [0, 1) for each index.

    Args:
        name: the stream; different names give independent numbers.
        seed: non-negative, below 2**31.
        indices: int [n].
        count: how many numbers an index gets.

    Returns:
        float64 [n, count].
    """
    return (_hash(name, seed, indices, count) >> np.uint64(11)) * 2.0**-53


def coarse_noise(name: str, seed: int, indices: np.ndarray, count: int) -> np.ndarray:
    """Like `uniforms` in steps of 2**-16 and a quarter of the time; float32 [n, count]."""
    words = _hash(name, seed, indices, -(-count // 4))
    # The order of the four parts of a word must not depend on the machine's byte order.
    parts = words.astype("<u8").view("<u2")[:, :count]
    return parts.astype(np.float32) * np.float32(2.0**-16)
