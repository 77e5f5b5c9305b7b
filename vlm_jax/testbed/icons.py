"""What the objects look like: 6 shapes, 8 hues and 4 textures as functions of local coordinates.

An icon lives in the unit disc. Every attribute is shared by several classes, so that no single
attribute gives a class away and sight stays imperfect.
"""

import numpy as np

SHAPES = ("disc", "square", "triangle", "ring", "cross", "crescent")
TEXTURES = ("plain", "stripes", "dots", "checks")
NUM_HUES = 8


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to the outline of a shape, in units of the icon's radius."""
    match shape:
        case "disc":
            return np.hypot(u, v) - 0.88
        case "square":
            return np.maximum(abs(u), abs(v)) - 0.68
        case "triangle":
            return np.maximum(v, 0.866 * abs(u) - 0.5 * v) - 0.5
        case "ring":
            return abs(np.hypot(u, v) - 0.65) - 0.25
        case "cross":
            wide = np.maximum(abs(u) - 0.9, abs(v) - 0.3)
            return np.minimum(wide, np.maximum(abs(v) - 0.9, abs(u) - 0.3))
        case "crescent":
            return np.maximum(np.hypot(u, v) - 0.92, 0.72 - np.hypot(u - 0.5, v))
    raise ValueError(f"shape {shape!r} is not one of {', '.join(SHAPES)}.")


def _shade(texture: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Brightness of a texture in [0, 1]."""
    match texture:
        case "plain":
            return np.ones_like(u)
        case "stripes":
            return (np.sin(8.0 * u) > 0).astype(np.float32)
        case "dots":
            return (np.cos(7.0 * u) + np.cos(7.0 * v) < 0.7).astype(np.float32)
        case "checks":
            return (np.sin(6.0 * u) * np.sin(6.0 * v) > 0).astype(np.float32)
    raise ValueError(f"texture {texture!r} is not one of {', '.join(TEXTURES)}.")


def hue_to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Converts HSV, all in [0, 1], to RGB: [n] each to [n, 3]."""
    wheel = np.abs((hue[:, None] * 6.0 + np.array([0.0, 4.0, 2.0])) % 6.0 - 3.0) - 1.0
    return value[:, None] * (1.0 - saturation[:, None] * (1.0 - np.clip(wheel, 0.0, 1.0)))


def paint(
    shapes: np.ndarray,
    textures: np.ndarray,
    colours: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
    radii: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Rasterises n icons.

    Args:
        shapes, textures: int [n] indices into `SHAPES` and `TEXTURES`.
        colours: float [n, 3] RGB.
        u, v: float [n, w, w] each pixel's coordinates in its icon's unit disc.
        radii: float [n] radius in pixels, for edges one pixel soft.

    Returns:
        Colour [n, w, w, 3] and coverage [n, w, w] in [0, 1], float32.
    """
    coverage = np.empty_like(u)
    shade = np.empty_like(u)
    for index, shape in enumerate(SHAPES):
        chosen = shapes == index
        distance = _distance(shape, u[chosen], v[chosen])
        coverage[chosen] = np.clip(0.5 - distance * radii[chosen, None, None], 0.0, 1.0)
    for index, texture in enumerate(TEXTURES):
        chosen = textures == index
        shade[chosen] = _shade(texture, u[chosen], v[chosen])
    tone = 0.35 + 0.65 * shade
    return (tone[..., None] * colours[:, None, None, :]).astype(np.float32), coverage
