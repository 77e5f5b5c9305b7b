"""Construction of POPE questions from the objects of images (Li et al., 2023, section 5).

An image gives pairs of questions: one of its objects (yes), then an object it lacks (no), drawn
uniformly ("random"), by frequency over the set ("popular") or by co-occurrence with the pair's
object ("adversarial").
"""

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from vlm_jax.evals.records import ImageId
from vlm_jax.evals.truth import Question

SPLITS = ("random", "popular", "adversarial")


def question_text(name: str) -> str:
    """The POPE question about an object, with "an" before a vowel letter."""
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return f"Is there {article} {name} in the image?"


def pope_questions(
    objects: Mapping[ImageId, Collection[str]],
    split: str,
    *,
    categories: Sequence[str] | None = None,
    images: int | None = None,
    pairs: int = 3,
    seed: int = 0,
    image_name: Callable[[ImageId], str] = str,
) -> list[Question]:
    """Builds a split's questions: `pairs` yes and `pairs` no questions an image, interleaved.

    The images and their positives depend on the seed alone, so that the three splits ask about the
    same objects. No object is asked about twice in an image.

    Args:
        objects: image id -> node words. Sequences give their first `pairs` objects; sets are
            shuffled.
        split: "random", "popular" or "adversarial".
        categories: what negatives are drawn from; default: every object of the set, by first
            occurrence.
        images: how many images to draw; default: all that have at least `pairs` objects, in given
            order.
        pairs: question pairs an image.
        seed: of the drawn images, the shuffles and the random negatives.
        image_name: image id -> the `image` field of a question.

    Raises:
        ValueError: unknown split, too few images with enough objects, or too few absent categories.
    """
    if split not in SPLITS:
        raise ValueError(f"POPE split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    if pairs < 1:
        raise ValueError(f"POPE needs at least 1 question pair an image, found {pairs}")
    ordered = {image: _in_order(image, present, seed) for image, present in objects.items()}
    pool = list(dict.fromkeys(categories or (name for names in ordered.values() for name in names)))
    chosen = _choose_images(ordered, images, pairs, seed)
    frequency = Counter(name for names in ordered.values() for name in names)
    together = _co_occurrence(ordered.values())
    questions: list[Question] = []
    for image in chosen:
        present = ordered[image]
        rng = random.Random(f"{seed} {split} {image}")
        asked = set(present)
        for positive in present[:pairs]:
            absent = [name for name in pool if name not in asked]
            if not absent:
                raise ValueError(
                    f"image {image!r} has no absent category left to ask about; give more "
                    f"categories than the {len(pool)} there are"
                )
            if split == "random":
                negative = rng.choice(absent)
            elif split == "popular":
                negative = max(absent, key=lambda name: frequency[name])
            else:
                negative = max(absent, key=lambda name: together[positive, name])
            asked.add(negative)
            for name, label in ((positive, "yes"), (negative, "no")):
                number = len(questions) + 1
                questions.append(Question(number, image_name(image), question_text(name), label))
    return questions


def _in_order(image: ImageId, present: Collection[str], seed: int) -> list[str]:
    if isinstance(present, Sequence):
        return list(dict.fromkeys(present))
    names = sorted(present)
    random.Random(f"{seed} {image}").shuffle(names)
    return names


def _choose_images(
    ordered: Mapping[ImageId, Sequence[str]], images: int | None, pairs: int, seed: int
) -> list[ImageId]:
    able = [image for image, names in ordered.items() if len(names) >= pairs]
    wanted = len(able) if images is None else images
    if not 0 < wanted <= len(able):
        raise ValueError(
            f"POPE needs {max(wanted, 1)} images with at least {pairs} objects; there are "
            f"{len(able)}"
        )
    return able if images is None else random.Random(seed).sample(able, wanted)


def _co_occurrence(sets: Iterable[Sequence[str]]) -> Counter[tuple[str, str]]:
    return Counter(
        (one, other) for names in sets for one in names for other in names if one != other
    )
