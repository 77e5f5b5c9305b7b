"""What is said about scenes: captions, yes/no questions, and the handful of words they take."""

import re

import numpy as np

from vlm_jax.testbed.randoms import uniforms
from vlm_jax.testbed.scenes import CLASSES, NUM_CLASSES, SCENE_TYPES, Scenes

CAPTION_PROMPT = "Please describe this image in detail."
QUESTION = "Is there {article} {name} in the image?"
YES, NO = "yes", "no"

WORDS = (
    ".", ",", "?", ":", "a", "an", "and", "with", "the", "in", "is", "there", "this", "image",
    "please", "describe", "detail", YES, NO, "user", "assistant",
    *SCENE_TYPES, *CLASSES,
)  # fmt: skip

_ORDER_NOISE = 1.2  # of the logarithm of the visible area, uniform between plus and minus half


def article(name: str) -> str:
    """Returns "an" before a vowel letter and "a" otherwise."""
    return "an" if name[0] in "aeiou" else "a"


def caption(scene_type: int, objects: list[int]) -> str:
    """Words a scene: "a kitchen with a cup , a fork and a spoon ."."""
    parts = [f"{article(CLASSES[index])} {CLASSES[index]}" for index in objects]
    listed = " and ".join([" , ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
    place = SCENE_TYPES[scene_type]
    return f"{article(place)} {place} with {listed} ."


def as_written(text: str) -> str:
    """Spells a text as people do: "a park with a dog , a cow ." is "A park with a dog, a cow."."""
    return re.sub(r" ([.,])", r"\1", text[:1].upper() + text[1:])


def captions(scenes: Scenes, stream: str, seed: int, indices: np.ndarray) -> list[str]:
    """Captions scenes: all objects, larger ones first on the whole.

    Args:
        scenes: n scenes.
        stream, seed, indices: what the noise of the order is drawn from.
    """
    noise = uniforms(f"{stream}/order", seed, indices, NUM_CLASSES) - 0.5
    keys = np.log(scenes.areas() + 1e-4) + _ORDER_NOISE * noise
    order = np.argsort(np.where(scenes.present, -keys, np.inf), axis=1)
    counts = scenes.present.sum(1)
    return [
        caption(int(kind), order[row, : counts[row]].tolist())
        for row, kind in enumerate(scenes.types)
    ]


def question(index: int) -> str:
    """Asks for a class: "Is there an oven in the image?"."""
    return QUESTION.format(article=article(CLASSES[index]), name=CLASSES[index])


def questions(
    scenes: Scenes, stream: str, seed: int, indices: np.ndarray, pairs: int = 1
) -> list[list[tuple[str, str]]]:
    """Asks each scene about `pairs` present and as many absent classes, in random order.

    A scene with fewer present classes than pairs is asked about one of them again.

    Returns:
        For each scene, 2 * pairs of (question, "yes" or "no").
    """
    u = uniforms(f"{stream}/questions", seed, indices, NUM_CLASSES + 2 * pairs)
    keys = u[:, :NUM_CLASSES]
    present = np.argsort(np.where(scenes.present, keys, 2.0), axis=1)
    absent = np.argsort(np.where(scenes.present, 2.0, keys), axis=1)
    counts = scenes.present.sum(1)
    asked = []
    for row in range(len(u)):
        rows = [(question(present[row, i % counts[row]]), YES) for i in range(pairs)]
        rows += [(question(absent[row, i]), NO) for i in range(pairs)]
        asked.append([rows[i] for i in np.argsort(u[row, NUM_CLASSES:])])
    return asked
