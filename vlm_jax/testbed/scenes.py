"""Scenes of COCO-named objects with strong co-occurrence, drawn by code.

There are 4 scene types of 6 classes, and in each 3 pairs A -> B. Three sets of scenes share one
renderer:

- `normal`, the training distribution: one to three pairs of the scene type are active; an active
  pair is complete with probability `p_co`, else one of its two is there; sometimes an object of
  another scene type strays in;
- `broken`: the same, but only A objects: a B is never there, whatever the prior says;
- `uniform`: any objects in any scene type, free of priors: what the vision tower is trained on.

Objects overlap, fade, turn and hide among clutter and noise: sight is imperfect on purpose.
"""

import dataclasses
from typing import Any

import numpy as np

from vlm_jax.errors import ConfigError
from vlm_jax.settings import number, setting, whole
from vlm_jax.testbed import icons
from vlm_jax.testbed.randoms import coarse_noise, uniforms

SCENE_TYPES = ("kitchen", "office", "street", "park")
# Six classes a scene type, as three pairs (A, B): even indices are A, odd ones B.
CLASSES = (
    "cup", "spoon", "fork", "knife", "oven", "refrigerator",
    "laptop", "mouse", "book", "clock", "chair", "tv",
    "car", "truck", "bicycle", "motorcycle", "bench", "bird",
    "dog", "frisbee", "horse", "cow", "kite", "person",
)  # fmt: skip
SETS = ("normal", "broken", "uniform")
SPLITS = ("train", "dev", "test")
NUM_CLASSES = len(CLASSES)
PER_TYPE = 6
PAIRS_PER_TYPE = 3
SLOTS = 7  # three complete pairs and a stray

_INDEX = np.arange(NUM_CLASSES)
CLASS_SHAPES = (_INDEX + _INDEX // 6) % len(icons.SHAPES)
CLASS_HUES = (3 * _INDEX + _INDEX // 8) % icons.NUM_HUES
CLASS_TEXTURES = (_INDEX + _INDEX // 4) % len(icons.TEXTURES)

_FLOORS = np.array(
    [[0.80, 0.72, 0.58], [0.62, 0.66, 0.74], [0.55, 0.55, 0.56], [0.56, 0.72, 0.52]], np.float32
)
_REFERENCE_SIZE = 56  # pixel lengths below are for this image size and scale with it
_CLUTTER = 4
_CELLS = 3  # object centres are jittered cells of a 3 x 3 grid


def _weights(name: str, value: Any) -> tuple[float, ...]:
    """Returns three probabilities that sum to 1."""
    listed = tuple(value) if isinstance(value, list | tuple) else ()
    weights = tuple(number(name, one, low=0, high=1) for one in listed)
    if len(weights) != 3 or abs(sum(weights) - 1) > 1e-6:
        raise ConfigError(f"{name} must be three probabilities that sum to 1, not {value!r}.")
    return weights


@dataclasses.dataclass(frozen=True)
class SceneRules:
    """How scenes are composed and how hard they are to see.

    Attributes:
        size: side of the square image in pixels.
        pair_weights: probabilities that 1, 2 or 3 pairs of the scene type are active.
        p_co: probability that an active pair is complete in `normal` scenes.
        p_stray: probability of an object of another scene type.
        min_object, max_object: diameter range in pixels of a 56-pixel image.
        min_opacity: objects are blended with an opacity between this and 1.
        noise: half the range of the uniform pixel noise, of a brightness range of 1.
    """

    size: int = setting(56, whole, low=28, high=1 << 12)
    pair_weights: tuple[float, float, float] = setting((0.1, 0.4, 0.5), _weights)
    p_co: float = setting(0.8, number, low=0, high=1)
    p_stray: float = setting(0.35, number, low=0, high=1)
    min_object: float = setting(11.0, number, low=1, high=56)
    max_object: float = setting(24.0, number, low=1, high=56)
    min_opacity: float = setting(0.45, number, low=0, high=1)
    noise: float = setting(0.12, number, low=0, high=1)


@dataclasses.dataclass(frozen=True)
class Scenes:
    """n drawn scenes.

    Attributes:
        images: uint8 [n, size, size, 3].
        types: int [n] index into `SCENE_TYPES`.
        present: bool [n, 24] which classes are in the scene.
        owners: int8 [n, size, size] class of the topmost object at a pixel, -1 for none.
    """

    images: np.ndarray
    types: np.ndarray
    present: np.ndarray
    owners: np.ndarray

    def areas(self) -> np.ndarray:
        """Visible area of each class, as a fraction of the image: float [n, 24]."""
        return np.stack([(self.owners == c).mean((1, 2)) for c in range(NUM_CLASSES)], axis=1)

    def patch_labels(self, patch: int, share: float = 0.15) -> np.ndarray:
        """Says which classes cover at least `share` of each patch: bool [n, rows * columns, 24]."""
        count, size = self.owners.shape[:2]
        grid = size // patch
        tiles = self.owners.reshape(count, grid, patch, grid, patch).transpose(0, 1, 3, 2, 4)
        tiles = tiles.reshape(count * grid * grid, patch * patch).astype(np.int64) + 1
        # One histogram over (tile, class) pairs instead of a comparison for every class.
        cells = np.arange(len(tiles))[:, None] * (NUM_CLASSES + 1) + tiles
        counts = np.bincount(cells.ravel(), minlength=len(tiles) * (NUM_CLASSES + 1))
        covered = counts.reshape(count, grid * grid, NUM_CLASSES + 1)[..., 1:]
        return covered >= share * patch * patch


def partner(index: int) -> int:
    """The other class of a class's pair."""
    return index + 1 if index % 2 == 0 else index - 1


def _choose_types_and_objects(
    rules: SceneRules, kind: str, u: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Decides what is in each scene; `u` holds 40 uniform numbers a scene."""
    count = len(u)
    types = (u[:, 0] * len(SCENE_TYPES)).astype(int)
    present = np.zeros((count, NUM_CLASSES), bool)
    rows = np.arange(count)
    if kind == "uniform":
        number = 1 + (u[:, 1] * 6).astype(int)
        ranks = np.argsort(np.argsort(u[:, 10 : 10 + NUM_CLASSES], axis=1), axis=1)
        return types, ranks < number[:, None]
    number = 1 + np.searchsorted(np.cumsum(rules.pair_weights)[:2], u[:, 1], side="right")
    ranks = np.argsort(np.argsort(u[:, 2:5], axis=1), axis=1)
    broken = kind == "broken"
    for pair in range(PAIRS_PER_TYPE):
        active = ranks[:, pair] < number
        state = u[:, 5 + pair]
        complete = state < rules.p_co
        lone_a = state < (1 + rules.p_co) / 2
        first = types * PER_TYPE + 2 * pair
        present[rows, first] = active & (broken | complete | lone_a)
        present[rows, first + 1] = active & (not broken) & (complete | ~lone_a)
    step = 2 if broken else 1
    others = np.floor(u[:, 9] * (NUM_CLASSES - PER_TYPE) / step).astype(int) * step
    strays = (types * PER_TYPE + PER_TYPE + others) % NUM_CLASSES
    stray = u[:, 8] < rules.p_stray
    present[rows[stray], strays[stray]] = True
    return types, present


def _slots(present: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Lists the objects of each scene in random drawing order, -1 for none: [n, SLOTS]."""
    keys = np.where(present, u, 2.0)
    order = np.argsort(keys, axis=1)[:, :SLOTS]
    return np.where(np.take_along_axis(present, order, axis=1), order, -1)


def _background(rules: SceneRules, types: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Paints floors: a colour of the scene type under smooth blotches, float32 [n, S, S, 3]."""
    count, knots = len(types), 4
    blotches = (u[:, : knots * knots * 3].reshape(count, knots, knots, 3) - 0.5) * 0.30
    at = np.linspace(0, knots - 1, rules.size)
    left = np.minimum(at.astype(int), knots - 2)
    blend = np.zeros((rules.size, knots), np.float32)
    blend[np.arange(rules.size), left] = 1 - (at - left)
    blend[np.arange(rules.size), left + 1] = at - left
    smooth = np.einsum("yk,nklc->nylc", blend, blotches.astype(np.float32), optimize=True)
    smooth = np.einsum("xl,nylc->nyxc", blend, smooth, optimize=True)
    return _FLOORS[types][:, None, None, :] + smooth


def _draw(
    canvas: np.ndarray,
    owners: np.ndarray,
    rows: np.ndarray,
    look: tuple[np.ndarray, np.ndarray, np.ndarray],
    classes: np.ndarray | None,
    place: np.ndarray,
    margin: int,
) -> None:
    """Draws one icon into each canvas of `rows`, in place.

    Args:
        canvas: float32 [n, S + 2 margin, S + 2 margin, 3].
        owners: int8 [n, S + 2 margin, S + 2 margin].
        rows: int [k] which canvases.
        look: shapes [k], textures [k], colours [k, 3].
        classes: int [k] written where an icon covers a pixel; None leaves owners alone.
        place: float [k, 6]: centre y, centre x, radius in pixels, angle, flip (+1 or -1), opacity.
        margin: width of the frame around the visible square.
    """
    y, x, radius, angle, flip, opacity = place.astype(np.float32).T
    width = 2 * int(np.ceil(radius.max())) + 2
    top = np.floor(y).astype(int) - width // 2 + margin
    left = np.floor(x).astype(int) - width // 2 + margin
    at_y = top[:, None] + np.arange(width)
    at_x = left[:, None] + np.arange(width)
    dy = ((at_y - margin + 0.5 - y[:, None]) / radius[:, None]).astype(np.float32)[:, :, None]
    dx = ((at_x - margin + 0.5 - x[:, None]) / radius[:, None]).astype(np.float32)[:, None, :]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    local_u = (cos * dx + sin * dy) * flip[:, None, None]
    local_v = cos * dy - sin * dx
    colour, coverage = icons.paint(*look, local_u, local_v, radius)
    where = (rows[:, None, None], at_y[:, :, None], at_x[:, None, :])
    alpha = (coverage * opacity[:, None, None])[..., None]
    under = canvas[where]
    canvas[where] = under + alpha * (colour - under)
    if classes is not None:
        owners[where] = np.where(coverage > 0.5, classes[:, None, None], owners[where])


def _places(rules: SceneRules, slots: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Places every slot: [n, SLOTS, 6] as `_draw` wants them; `u` holds 9 + 7 * SLOTS numbers."""
    count = len(slots)
    scale = rules.size / _REFERENCE_SIZE
    cells = np.argsort(u[:, : _CELLS**2], axis=1)[:, :SLOTS]
    v = u[:, _CELLS**2 :].reshape(count, SLOTS, 7)
    jitter = 0.5 + 0.6 * (v[..., :2] - 0.5)
    centre = (np.stack([cells // _CELLS, cells % _CELLS], -1) + jitter) * rules.size / _CELLS
    diameter = rules.min_object + (rules.max_object - rules.min_object) * v[..., 2]
    angle = (v[..., 3] - 0.5) * 1.4
    flip = np.where(v[..., 4] < 0.5, -1.0, 1.0)
    opacity = rules.min_opacity + (1 - rules.min_opacity) * v[..., 5]
    rest = np.stack([diameter * scale / 2, angle, flip, opacity], -1)
    return np.concatenate([centre, rest], -1)


def _colours(hues: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Jittered colours of hue indices [k]: RGB [k, 3]; `u` is [k, 3]."""
    hue = (hues + 0.5 * (u[:, 0] - 0.5)) / icons.NUM_HUES
    return icons.hue_to_rgb(hue % 1.0, 0.60 + 0.40 * u[:, 1], 0.65 + 0.35 * u[:, 2])


def _draw_clutter(rules, canvas, owners, u, margin) -> None:
    count, scale = len(canvas), rules.size / _REFERENCE_SIZE
    for index in range(_CLUTTER):
        v = u[:, index * 10 : index * 10 + 10]
        shapes = (v[:, 0] * len(icons.SHAPES)).astype(int)
        textures = (v[:, 1] * len(icons.TEXTURES)).astype(int)
        colours = _colours(np.floor(v[:, 2] * icons.NUM_HUES), v[:, 3:6])
        place = np.stack(
            [v[:, 6] * rules.size, v[:, 7] * rules.size, (2 + 2 * v[:, 8]) * scale,
             v[:, 9] * 6.0, np.ones(count), 0.4 + 0.5 * v[:, 9]], -1,
        )  # fmt: skip
        _draw(canvas, owners, np.arange(count), (shapes, textures, colours), None, place, margin)


def choose_objects(
    kind: str, split: str, seed: int, indices: np.ndarray, rules: SceneRules | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Says what `draw_scenes` would draw, without drawing it: types [n] and present [n, 24].

    Raises:
        ConfigError: `kind` or `split` is unknown.
    """
    if kind not in SETS or split not in SPLITS:
        raise ConfigError(
            f"scenes of set {kind!r}, split {split!r} do not exist: sets are {', '.join(SETS)} and "
            f"splits {', '.join(SPLITS)}."
        )
    u = uniforms(f"{kind}/{split}/objects", seed, indices, 40)
    return _choose_types_and_objects(rules or SceneRules(), kind, u)


def draw_scenes(
    kind: str, split: str, seed: int, indices: np.ndarray, rules: SceneRules | None = None
) -> Scenes:
    """Draws the scenes with the given indices.

    Args:
        kind: one of `SETS`.
        split: one of `SPLITS`; no scene of one split is a scene of another.
        seed: of the world, non-negative.
        indices: int [n]; scene i is the same whatever else is drawn with it.
        rules: composition and difficulty; `SceneRules()` by default.

    Raises:
        ConfigError: `kind` or `split` is unknown.
    """
    rules = rules or SceneRules()
    indices = np.asarray(indices)
    types, present = choose_objects(kind, split, seed, indices, rules)
    stream = f"{kind}/{split}"
    u = uniforms(f"{stream}/looks", seed, indices, 256)
    count = len(indices)
    margin = int(np.ceil(rules.max_object * rules.size / _REFERENCE_SIZE)) + 2
    side = rules.size + 2 * margin
    canvas = np.zeros((count, side, side, 3), np.float32)
    inner = (slice(None), slice(margin, -margin), slice(margin, -margin))
    canvas[inner] = _background(rules, types, u[:, :48])
    owners = np.full((count, side, side), -1, np.int8)
    _draw_clutter(rules, canvas, owners, u[:, 48:88], margin)
    slots = _slots(present, u[:, 88:112])
    places = _places(rules, slots, u[:, 112 : 112 + 9 + 7 * SLOTS])
    tints = u[:, 176 : 176 + 3 * SLOTS].reshape(count, SLOTS, 3)
    for slot in range(SLOTS):
        rows = np.flatnonzero(slots[:, slot] >= 0)
        if not len(rows):
            continue
        classes = slots[rows, slot]
        colours = _colours(CLASS_HUES[classes], tints[rows, slot])
        look = (CLASS_SHAPES[classes], CLASS_TEXTURES[classes], colours)
        _draw(canvas, owners, rows, look, classes, places[rows, slot], margin)
    grain = coarse_noise(f"{stream}/grain", seed, indices, rules.size**2 * 3) - 0.5
    pixels = canvas[inner] + 2 * rules.noise * grain.reshape(count, rules.size, rules.size, 3)
    images = (np.clip(pixels, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)
    return Scenes(images, types, present, owners[inner])
