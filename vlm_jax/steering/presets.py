"""Published head sets and published settings, by name.

Head lists: the AD-HH and AIR repositories (files of both are identical), (layer, head) from 0, in
their order. Settings of functional heads: arXiv 2510.10285, Table 3.
"""

import dataclasses

from vlm_jax.steering.heads import Head, HeadSets


def _pairs(text: str) -> tuple[Head, ...]:
    pairs = (pair.split(",") for pair in text.split())
    return tuple((int(layer), int(head)) for layer, head in pairs)


_LLAVA_7B = HeadSets(
    "llava-1.5-7b",
    (32, 32),
    sensitive=_pairs(
        "16,29 26,9 13,31 15,10 20,12 30,9 19,18 17,0 18,9 26,28 19,27 18,26 15,25 14,16 31,26 "
        "15,24 31,3 22,20 27,29 17,28 20,5 12,10 20,20 15,9 22,9 19,23 16,9 29,8 13,9 14,14"
    ),
    insensitive=_pairs(
        "31,16 18,15 26,19 22,3 26,25 20,28 29,19 19,4 18,30 15,4 27,6 30,17 24,15 18,5 21,1 "
        "17,18 19,1 17,13 18,10 16,24 24,24 24,3 22,30 19,7 11,0 31,4 24,25 19,13 27,23 29,9"
    ),
    count=20,
)
_LLAVA_13B = HeadSets(
    "llava-1.5-13b",
    (40, 40),
    sensitive=_pairs(
        "0,8 29,27 23,18 20,11 36,26 19,37 22,16 22,34 21,31 20,34 37,11 17,25 35,10 17,5 15,26 "
        "0,22 19,5 19,0 14,1 23,20 21,6 30,24 26,27 21,32 15,28 15,31 19,30 20,8 19,14 14,9 39,26 "
        "25,1 18,32 17,27 39,32"
    ),
    count=35,
)
_LLAVA_34B = HeadSets(
    "llava-v1.6-34b",
    (60, 56),
    sensitive=_pairs("45,34 43,4 43,48 44,29 35,47 40,27 54,34 37,48 43,2 41,34"),
    count=10,
)
_MINIGPT4 = HeadSets(
    "minigpt-4",
    (32, 32),
    sensitive=_pairs(
        "16,29 17,0 19,18 14,11 20,20 17,1 13,31 19,15 19,6 22,20 18,4 14,14 19,12 31,8 19,31 "
        "19,23 16,31 15,14 24,1 14,30"
    ),
    insensitive=_pairs(
        "18,15 19,7 26,19 19,4 30,17 26,25 31,16 22,3 16,20 17,18 16,26 17,5 24,3 15,4 14,28 16,6 "
        "26,4 13,25 29,19 17,9"
    ),
    count=10,
)

HEAD_SETS: dict[str, HeadSets] = {
    sets.name: sets for sets in (_LLAVA_7B, _LLAVA_13B, _LLAVA_34B, _MINIGPT4)
}


@dataclasses.dataclass(frozen=True)
class FunctionalPreset:
    """Settings of functional heads for one model.

    Attributes:
        shape: (layers, query heads) of the model.
        reasoning_first_layer, reasoning_to, reasoning_gain: l_reas, tau_reas, g_reas.
        perception_last_layer, perception_from, perception_gain: l_perc, tau_perc, g_perc.
    """

    shape: tuple[int, int]
    reasoning_first_layer: int
    reasoning_to: float
    reasoning_gain: float
    perception_last_layer: int
    perception_from: float
    perception_gain: float


FUNCTIONAL: dict[str, FunctionalPreset] = {
    "kimi-vl": FunctionalPreset((27, 16), 5, 0.01, 1.40, 10, 0.27, 1.20),
    "ocean-r1": FunctionalPreset((28, 28), 3, 0.01, 1.30, 7, 0.22, 1.16),
    "r1-onevision": FunctionalPreset((28, 28), 3, 0.01, 1.30, 7, 0.30, 1.20),
}
