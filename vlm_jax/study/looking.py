"""Where a model looked when it chose the object words of its captions, for a report.

A caption is read again behind its prompt; at the step that chose an object word, heads' attention
over the image's tokens is kept as bytes: the mean of every head of some layers, and single heads.
"""

import base64
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vlm_jax.analysis.mentions import token_spans
from vlm_jax.analysis.rows import RowReader
from vlm_jax.api import VLM
from vlm_jax.asking import all_steering, reading_masses
from vlm_jax.batch import Batch, Kind
from vlm_jax.errors import PromptError
from vlm_jax.evals.base import Example, Suite
from vlm_jax.masses import replayed
from vlm_jax.processing import Processor
from vlm_jax.processing.cutters.base import grid_regions
from vlm_jax.processing.images import image_size
from vlm_jax.report.stored import Rows
from vlm_jax.steering.heads import Head

_MOST_CELLS = 16  # of a side of a map, or a page would be large
_MOST_BYTES = 2 << 20  # of all maps of a benchmark, likewise

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

    It ends early where what was found would make a page large.

    Args:
        models: arm -> its model, all of one architecture; none that classifies heads in a pass of
            its own.
        suite: whose examples were captioned.
        rows: arm -> what was found in its captions.
        shown: ids of the examples that the report shows.
        count: at most so many of them.
        maps: at most so many layers, evenly over the depth, and so many heads.
        heads: such as the sensitive ones.
    """
    first = next(iter(models.values()))
    depth = first.config.decoder.num_layers
    layers = tuple(n * depth // min(maps, depth) for n in range(min(maps, depth)))
    look_at = _Maps(layers, tuple(heads[:maps]), RowReader(first.config))
    known = {one.id: one for one in suite.examples()}
    found: Looked = {
        "maps": [f"layer {layer}, mean of its heads" for layer in layers]
        + [f"layer {layer}, head {head}" for layer, head in look_at.heads],
        "images": {},
        "arms": {name: {} for name in models},
    }
    size = 0
    for key in [key for key in shown if key in known][:count]:
        if size > _MOST_BYTES:
            break
        for name, model in models.items():
            row = rows.get(name, {}).get(key, {})
            read = _read(model, look_at, known[key], row)
            if read is not None:
                found["images"][str(key)], found["arms"][name][str(key)] = read
                size += sum(len(word["maps"]) for word in read[1])
    return found if found["images"] else None


def _words(row: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The places of a caption's object words."""
    named = [*row.get("hallucinated", ()), *row.get("grounded", ())]
    return sorted((word["start"], word["end"]) for word in named)


@dataclasses.dataclass(frozen=True)
class _Maps:
    """What is kept of a step: the mean of every head of some layers, and single heads."""

    layers: tuple[int, ...]
    heads: tuple[Head, ...]
    reader: RowReader

    def of_rows(
        self, model: VLM, batch: Batch, query_q: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Maps [q, maps, S] and masses [q, L, N, 3] of rows of an answer behind its prompt."""
        width = model.config.decoder.num_heads
        every = [(layer, head) for layer in self.layers for head in range(width)]
        read = self.reader(model.params, batch, query_q, (*every, *self.heads))
        weights_qhs = np.asarray(read.weights_qhs, np.float32)
        shape = len(query_q), len(self.layers), width, -1
        means_qms = weights_qhs[:, : len(every)].reshape(shape).mean(2)
        singles_qms = weights_qhs[:, len(every) :]
        return np.concatenate([means_qms, singles_qms], axis=1), read.masses_qlnc

    def of_steps(
        self, model: VLM, example: Example, tokens: Sequence[int], steps: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same of a steered model's decode steps."""
        steering = all_steering(model, reading_masses(model))
        assert steering is not None
        asked = list(example.images), example.prompt, steering
        masses_tlnc, maps_tms = replayed(model, tokens, *asked, self.layers, self.heads)
        return maps_tms[steps], masses_tlnc[steps]

    def masses(self, masses_qlnc: np.ndarray) -> np.ndarray:
        """[q, maps, 3] masses of the mean of each layer's heads, and of single heads."""
        own = [masses_qlnc[:, layer].mean(1) for layer in self.layers]
        single = [masses_qlnc[:, layer, head] for layer, head in self.heads]
        return np.stack([*own, *single], axis=1)


def _read(
    model: VLM, look_at: _Maps, example: Example, row: Mapping[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """The grid of a caption's image and the caption's words; None where there is no such thing."""
    words = _words(row)
    if not words or len(example.images) != 1:
        return None
    text, tokenizer = row["answer"], model.processor.tokenizer
    tokens = tokenizer.encode(text, add_special_tokens=False)
    try:
        batch, starts_b = model.processor.batch_answers(
            [list(example.images)], [example.prompt], [tokens]
        )
    except PromptError:
        return None
    picture = example.images[0]
    size = picture.size if isinstance(picture, Image.Image) else _size(picture)
    steps = list(_steps(words, token_spans(tokenizer, tokens, text)))
    on_image_s = np.asarray(batch.kinds_bt[0]) == Kind.IMAGE
    placed = None if size is None else _placed(model, size, batch, on_image_s)
    if not steps or placed is None:
        return None
    seen, onto_mg = placed
    index_q = np.array([index for _, _, index in steps])
    if model.steering is None:
        maps_qms, masses_qlnc = look_at.of_rows(model, batch, starts_b[0] - 1 + index_q)
    else:
        maps_qms, masses_qlnc = look_at.of_steps(model, example, tokens, index_q)
    # The image comes before the answer, so its places are those of the prompt alone.
    maps_qmg = maps_qms[..., np.flatnonzero(on_image_s)] @ onto_mg
    masses_qmc = look_at.masses(np.asarray(masses_qlnc, np.float32))
    return seen, [
        {"start": start, "end": end, **_packed(maps_qmg[n], masses_qmc[n])}
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


def _packed(maps_ms: np.ndarray, masses_mc: np.ndarray) -> dict[str, Any]:
    peak_m = maps_ms.max(1)
    scaled = maps_ms / np.where(peak_m > 0, peak_m, 1)[:, None]
    content = np.round(255 * scaled).astype(np.uint8).tobytes()
    return {
        "maps": base64.b64encode(content).decode(),
        "peak": [round(float(value), 4) for value in peak_m],
        "mass": [[round(float(value), 3) for value in row] for row in masses_mc],
    }


def token_regions(
    processor: Processor, images: Sequence[Any], batch: Batch
) -> dict[int, tuple[float, ...]] | None:
    """Returns what each image token of a batch's only sample covers: its place -> its box.

    A box is left, top, right and bottom as shares of the picture, below 0 or above 1 in what is
    padded, and NaN for learned tokens that cover nothing. None where there is not one picture, or
    where tokens are no places of it (those of a Q-Former).
    """
    if len(images) != 1:
        return None
    on_image_s = np.asarray(batch.kinds_bt[0]) == Kind.IMAGE
    picture = images[0]
    size = picture.size if isinstance(picture, Image.Image) else _size(picture)
    if size is None:
        return None
    regions_m4 = processor.regions(*size)
    if regions_m4 is None:
        grid = _grid(np.asarray(batch.positions_bt3[0])[on_image_s])
        if grid is None:
            return None
        left, top, right, bottom = _box(size, grid, processor)
        regions_m4 = grid_regions(*grid, (left, top, right, bottom))
    boxes = (tuple(map(float, box)) for box in np.asarray(regions_m4))
    return dict(zip(np.flatnonzero(on_image_s).tolist(), boxes, strict=True))


def _placed(
    model: VLM, size: tuple[int, int], batch: Batch, on_image_s: np.ndarray
) -> tuple[dict[str, Any], np.ndarray] | None:
    """An image's grid and box, and how much of each token falls on each cell, [tokens, cells]."""
    regions_m4, box = model.processor.regions(*size), [0, 0, 1, 1]
    if regions_m4 is None:
        grid = _grid(np.asarray(batch.positions_bt3[0])[on_image_s])
        if grid is None:
            return None
        regions_m4, box = grid_regions(*grid), _box(size, grid, model.processor)
    cells, onto_mg = _onto_grid(regions_m4)
    return {"grid": list(cells), "box": box}, onto_mg


def _onto_grid(regions_m4: np.ndarray) -> tuple[tuple[int, int], np.ndarray]:
    """A grid as fine as the smallest token, or `_MOST_CELLS`, and each token's share of each cell.

    Learned tokens fall on none, and what covers padding is lost. Tokens over the left half, the
    right half and all of a picture, two cells: [[1, 0], [0, 1], [.5, .5]].
    """
    left, top, right, bottom = np.asarray(regions_m4, np.float64).T
    finest = [np.nanmin(bottom - top), np.nanmin(right - left)]
    rows, cols = (min(_MOST_CELLS, max(1, round(1 / side))) for side in finest)

    def shares(low: np.ndarray, high: np.ndarray, count: int) -> np.ndarray:
        ends = np.linspace(0, 1, count + 1)
        inside = np.minimum(high[:, None], ends[1:]) - np.maximum(low[:, None], ends[:-1])
        return np.nan_to_num(np.maximum(inside, 0) / (high - low)[:, None])

    onto_mrc = shares(top, bottom, rows)[:, :, None] * shares(left, right, cols)[:, None]
    return (rows, cols), onto_mrc.reshape(len(regions_m4), -1).astype(np.float32)


def _grid(positions_m3: np.ndarray) -> tuple[int, int] | None:
    """Rows and columns of an image's tokens, by their rotary positions or as a square.

    None where they are neither, as those of a Q-Former.
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
        return image_size(path, "The image")
    except PromptError:
        return None
