"""What a tiny model answers behind shared prefixes on a mesh of eight host devices."""

import jax

import vlm_jax
from tests.compiles import counted
from tests.prefixes import cut
from tests.reference import picture
from vlm_jax.decoding import DecodeSettings
from vlm_jax.parallel import make_mesh

SHARED = {
    "one": ([0] * 8, None),
    "eight": ([0, 1, 2, 3, 4, 5, 6, 7], None),
    "one, read together": ([0] * 8, 8),
    "pairs": ([0, 0, 1, 1, 2, 2, 3, 3], 2),
    "eight in order": ([0, 1, 2, 3, 4, 5, 6, 7], 1),
}
"""The image of each of eight questions, and how many neighbours share it.

Eight prefixes divide over every mesh, four over some, one over none of several devices.
"""

QUESTIONS = ["Why?", "What is this?", "Is it red?", "How many?"] * 2
OPTIONS = {"settings": DecodeSettings(max_new_tokens=6)}


def loaded(folder, shared: str, data: int, model: int):
    """Returns the model on a mesh, and the batch of whole prompts."""
    vlm = vlm_jax.load(folder, mesh=make_mesh(data, model, jax.devices()[: data * model]))
    pictures = [[picture(56, 56, seed)] for seed in range(8)]
    return vlm, vlm.processor.batch([pictures[owner] for owner in SHARED[shared][0]], QUESTIONS)


def whole(folder, shared: str) -> list:
    """Returns the tokens of whole prompts on one device."""
    vlm, batch = loaded(folder, shared, 1, 1)
    return vlm.generator(vlm.params, batch, **OPTIONS).tokens_bn.tolist()


def behind_prefixes(folder, shared: str, data: int, model: int) -> tuple[list, int]:
    """Returns the tokens, and how many programs a warmed mesh compiles for them."""
    vlm, batch = loaded(folder, shared, data, model)
    owners, sharing = SHARED[shared]
    firsts = sorted({owner: row for row, owner in reversed([*enumerate(owners)])}.values())
    first, suffix = cut(batch, firsts)
    asked = OPTIONS if sharing is None else OPTIONS | {"owner_b": owners, "sharing": sharing}
    vlm.generator.warm(vlm.params, suffix, prefix=first, **asked)
    with counted() as compiled:
        prefix = vlm.generator.read_prefix(vlm.params, first)
        asked = {"owner_b": owners} | asked
        made = vlm.generator(vlm.params, suffix, prefix=prefix, **asked)
    return made.tokens_bn.tolist(), len(compiled)
