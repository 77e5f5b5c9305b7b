"""Vectors of the residual stream from pairs of answers, as `config.identify.pairs` asks for them.

A pair is a line of JSON: two answers to one question. The vectors lead from negative answers to
positive ones.

    {"image": "a.jpg", "prompt": "Describe.", "positive": "A dog.", "negative": "A dog and a cat."}
"""

import pathlib
from collections.abc import Sequence

import msgspec
import numpy as np

from vlm_jax import answering
from vlm_jax.analysis.directions import LastStates, direction
from vlm_jax.api import VLM
from vlm_jax.errors import ConfigError
from vlm_jax.foreign import parse_json, read_bytes
from vlm_jax.parallel import batch_sharding, put
from vlm_jax.progress import Progress


class Pair(msgspec.Struct, forbid_unknown_fields=True):
    """Two answers to one question; a picture's path is relative to the file's folder."""

    prompt: str
    positive: str
    negative: str
    image: str = ""


def read_pairs(path: pathlib.Path) -> list[Pair]:
    """Returns the pairs of a file, a line of JSON each.

    Raises:
        ConfigError: the file holds none, or a line is no pair; the line is named.
    """
    lines = read_bytes(path, error=ConfigError).splitlines()
    where = f"config.identify.pairs: {path}"
    pairs = [
        parse_json(line, Pair, f"{where}, line {number}", ConfigError)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not pairs:
        raise ConfigError(f"{where} holds no pair.")
    return pairs


def find_vectors(model: VLM, pairs: Sequence[Pair], how: str, folder: pathlib.Path) -> np.ndarray:
    """Returns float32 [L, D], each layer's vector from negative answers to positive ones.

    Args:
        model: unsteered.
        pairs: at least one.
        how: a word of `HOW`.
        folder: that paths of pictures are relative to.
    """
    read_states, found = LastStates(model.config), []
    rows = answering.batch_rows(2, 2, model.mesh.shape["data"])
    with Progress(len(pairs), "pairs", label="identify vectors") as progress:
        for number, pair in enumerate(pairs):
            answers = [pair.positive, pair.negative]
            answers += answers[-1:] * (rows - 2)
            images = [str(folder / pair.image)] if pair.image else []
            batch, _ = model.processor.batch_answers(
                [images] * rows, [pair.prompt] * rows, answers, first_sample=number
            )
            batch = put(batch, batch_sharding(model.mesh))
            states_bld = read_states(model.params, batch)
            found.append(states_bld[0] - states_bld[1])
            progress.advance()
    return direction(np.stack(found), how)
