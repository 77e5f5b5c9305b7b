"""Where a model looked when it chose the object words of its captions, for a report.

A caption is read again behind its prompt; at the step that chose an object word, heads' attention
over the image's tokens is kept as bytes: the mean of every head of some layers, and single heads.
"""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vlm_jax.analysis.mentions import token_spans
from vlm_jax.analysis.rows import RowReader
from vlm_jax.api import VLM
from vlm_jax.batch import Kind
from vlm_jax.errors import PromptError
from vlm_jax.evals.base import Example, Suite
from vlm_jax.processing import Processor
from vlm_jax.report.stored import Rows
from vlm_jax.steering.heads import Head

Looked = dict[str, Any]
"""`maps` by name; `images`: id -> its grid of tokens and the box of the picture that it covers; and
`arms`: arm -> id -> words with their place in the caption, `maps` (bytes in base64, of 255 where
the map is strongest), `peak` (what 255 stands for) and `mass` on image, text and what is before."""


def look(
    models: Mapping[str, VLM],
    suite: Suite,
    rows: Mapping[str, Rows],
    shown: Sequence[Any],
    count: int,
    maps: int,
    heads: Sequence[Head],
) -> Looked | None:
    """Reads captions again; None where there is none with an object word and one picture.

    Args:
        models: arm -> an unsteered model, all of one architecture.
        suite: whose examples were captioned.
        rows: arm -> what was found in its captions.
        shown: ids of the examples that the report shows.
        count: at most so many of them.
        maps: at most so many layers, evenly over the depth, and so many heads.
        heads: such as the sensitive ones.
    """
    first = next(iter(models.values()))
    depth, width = first.config.decoder.num_layers, first.config.decoder.num_heads
    layers = [n * depth // min(maps, depth) for n in range(min(maps, depth))]
    asked = [*((layer, head) for layer in layers for head in range(width)), *heads[:maps]]
    reader, known = RowReader(first.config), {one.id: one for one in suite.examples()}
    found: Looked = {
        "maps": [f"layer {layer}, mean of its heads" for layer in layers]
        + [f"layer {layer}, head {head}" for layer, head in heads[:maps]],
        "images": {},
        "arms": {name: {} for name in models},
    }
    for key in [key for key in shown if key in known][:count]:
        for name, model in models.items():
            row = rows.get(name, {}).get(key, {})
            read = _read(model, reader, known[key], row, asked, len(layers))
            if read is not None:
                found["images"][str(key)], found["arms"][name][str(key)] = read
    return found if found["images"] else None


def _words(row: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The places of a caption's object words."""
    named = [*row.get("hallucinated", ()), *row.get("grounded", ())]
    return sorted((word["start"], word["end"]) for word in named)


def _read(
    model: VLM,
    reader: RowReader,
    example: Example,
    row: Mapping[str, Any],
    heads: Sequence[Head],
    layers: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """The grid of a caption's image and the caption's words; None where there is no such thing."""
    words = _words(row)
    if not words or len(example.images) != 1:
        return None
    text = row["answer"]
    tokenizer = model.processor.tokenizer
    tokens = tokenizer.encode(text, add_special_tokens=False)
    try:
        batch, starts_b = model.processor.batch_answers(
            [list(example.images)], [example.prompt], [tokens]
        )
    except PromptError:
        return None
    on_image_s = np.asarray(batch.kinds_bt[0]) == Kind.IMAGE
    picture = example.images[0]
    size = picture.size if isinstance(picture, Image.Image) else _size(picture)
    grid = _grid(np.asarray(batch.positions_bt3[0])[on_image_s])
    if grid is None or size is None:
        return None
    steps = list(_steps(words, token_spans(tokenizer, tokens, text)))
    if not steps:
        return None
    query_q = np.array([starts_b[0] - 1 + index for _, _, index in steps])
    read = reader(model.params, batch, query_q, tuple(heads))
    weights_qhs = np.asarray(read.weights_qhs, np.float32)[:, :, : len(on_image_s)]
    width = model.config.decoder.num_heads
    means = [
        weights_qhs[:, n * width : (n + 1) * width].mean(1, keepdims=True) for n in range(layers)
    ]
    maps_qms = np.concatenate([*means, weights_qhs[:, layers * width :]], axis=1)[..., on_image_s]
    masses_qmc = _masses(read.masses_qlnc, heads, layers, width)
    seen = {"grid": list(grid), "box": _box(size, grid, model.processor)}
    return seen, [
        {"start": start, "end": end, **_packed(maps_qms[n], masses_qmc[n])}
        for n, (start, end, _) in enumerate(steps)
    ]


def _steps(
    words: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int, int]]:
    """Each word's place and its first token: [(2, 5)], [(0, 1), (1, 5)] -> (2, 5, 1)."""
    for start, end in words:
        inside = [n for n, (low, high) in enumerate(spans) if low < end and high > start]
        if inside:
            yield start, end, inside[0]


def _masses(masses_qlnc: np.ndarray, heads: Sequence[Head], layers: int, width: int) -> np.ndarray:
    """[q, maps, 3] masses of the mean of each layer's heads, and of single heads."""
    masses = np.asarray(masses_qlnc, np.float32)
    own = [masses[:, heads[n * width][0]].mean(1) for n in range(layers)]
    single = [masses[:, layer, head] for layer, head in heads[layers * width :]]
    return np.stack([*own, *single], axis=1)


def _packed(maps_ms: np.ndarray, masses_mc: np.ndarray) -> dict[str, Any]:
    peak_m = maps_ms.max(1)
    scaled = maps_ms / np.where(peak_m > 0, peak_m, 1)[:, None]
    content = np.round(255 * scaled).astype(np.uint8).tobytes()
    return {
        "maps": base64.b64encode(content).decode(),
        "peak": [round(float(value), 4) for value in peak_m],
        "mass": [[round(float(value), 3) for value in row] for row in masses_mc],
    }


def _grid(positions_m3: np.ndarray) -> tuple[int, int] | None:
    """Rows and columns of an image's tokens, by their rotary positions or as a square.

    None where they are neither, as those of tiles.
    """
    count = len(positions_m3)
    rows, cols = (len(np.unique(positions_m3[:, axis])) for axis in (1, 2))
    if rows * cols == count and len(np.unique(positions_m3[:, 0])) == 1:
        return rows, cols
    side = math.isqrt(count)
    return (side, side) if count and side * side == count else None


def _box(size: tuple[int, int], grid: tuple[int, int], processor: Processor) -> list[float]:
    """Left, top, right and bottom of what the grid covers, as shares of the picture.

    A model that crops a picture of 200 x 100 to the square in its middle sees [.25, 0, .75, 1].
    """
    settings = processor.identity["pixels"]
    wide, high = size
    if grid[0] != grid[1] or wide == high:
        return [0, 0, 1, 1]
    if settings.get("do_pad"):
        side = max(size)
    elif settings.get("do_center_crop"):
        side = min(size)
    else:
        return [0, 0, 1, 1]
    left, top = (wide - side) / 2 / wide, (high - side) / 2 / high
    return [round(share, 4) for share in (left, top, 1 - left, 1 - top)]


def _size(path: Any) -> tuple[int, int] | None:
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
