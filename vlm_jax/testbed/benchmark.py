"""The testbed as benchmarks: CHAIR and POPE on scenes that were never trained on.

Scoring is the general scorers'; this file only makes scenes, truth and questions for them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image

from vlm_jax.errors import ConfigError
from vlm_jax.evals.benchmarks import Chair, Pope
from vlm_jax.evals.pope_questions import pope_questions
from vlm_jax.evals.records import ImageId
from vlm_jax.evals.truth import ObjectTruth, Question
from vlm_jax.testbed.architecture import get_family
from vlm_jax.testbed.language import CAPTION_PROMPT
from vlm_jax.testbed.scenes import CLASSES, SceneRules, choose_objects, draw_scenes, partner

_STATISTICS = 2000  # training scenes that say which objects are frequent and go together


def _names(present: np.ndarray) -> list[str]:
    return [CLASSES[index] for index in np.flatnonzero(present)]


def _rules(family: str, rules: SceneRules | None) -> SceneRules:
    return rules or SceneRules(size=get_family(family).image_size)


def _images(
    kind: str, split: str, seed: int, indices: np.ndarray, rules: SceneRules
) -> dict[ImageId, Any]:
    scenes = draw_scenes(kind, split, seed, indices, rules)
    return {int(i): PIL.Image.fromarray(image) for i, image in zip(indices, scenes.images)}


def _check(kind: str, split: str, count: int) -> None:
    if kind not in ("normal", "broken") or split not in ("dev", "test"):
        raise ConfigError(
            f"the testbed is measured on set 'normal' or 'broken' and split 'dev' or 'test', not "
            f"{kind!r} and {split!r}."
        )
    if count < 1:
        raise ConfigError(f"a benchmark needs at least 1 scene, not {count}.")


class TestbedChair(Chair):
    """CHAIR on testbed scenes, with hallucinations split into the expected partner and others.

    The partner is the missing half of a pair whose other half is in the scene.

    Args:
        kind: "normal" scenes, or "broken" ones, where no B ever is.
        split: "dev" for choosing settings, "test" for reporting.
        count: number of scenes.
        seed: of the scenes.
        family: `model_type` of the testbed, which sets the size of the scenes.
        rules: composition and difficulty, if not the standard ones.

    Raises:
        ConfigError: no such set or split, or no scene.
    """

    __test__ = False  # the name is not a test's

    def __init__(
        self,
        kind: str = "normal",
        split: str = "dev",
        count: int = 500,
        *,
        seed: int = 0,
        family: str = "llava",
        rules: SceneRules | None = None,
    ) -> None:
        _check(kind, split, count)
        self.name = f"chair_{kind}"
        self.scene_set, self.split, self.seed = kind, split, seed
        rules, indices = _rules(family, rules), np.arange(count)
        _, present = choose_objects(kind, split, seed, indices, rules)
        truth: dict[ImageId, frozenset[str]] = {
            index: frozenset(_names(row)) for index, row in enumerate(present)
        }
        groups: dict[ImageId, dict[str, str]] = {
            index: {
                CLASSES[partner(c)]: "partner"
                for c in np.flatnonzero(row).tolist()
                if not row[partner(c)]
            }
            for index, row in enumerate(present)
        }
        images = _images(kind, split, seed, indices, rules)
        super().__init__(images, ObjectTruth(truth, CLASSES), prompt=CAPTION_PROMPT, groups=groups)

    def protocol(self) -> dict[str, Any]:
        """As CHAIR's, and which scenes these are."""
        scenes = {"set": self.scene_set, "split": self.split, "seed": self.seed}
        return super().protocol() | {"testbed": scenes}


class TestbedPope(Pope):
    """POPE on testbed scenes, its negatives chosen by the statistics of training scenes.

    Args:
        negatives: "random", "popular" or "adversarial".
        kind, split, count, seed, family, rules: see `TestbedChair`; `count` scenes are asked about.
        pairs: questions with answer yes, and as many with no, a scene.

    Raises:
        ConfigError: no such set or split, or no scene.
        ValueError: no such negatives.
    """

    __test__ = False

    def __init__(
        self,
        negatives: str = "random",
        kind: str = "normal",
        split: str = "dev",
        count: int = 250,
        *,
        pairs: int = 2,
        seed: int = 0,
        family: str = "llava",
        rules: SceneRules | None = None,
    ) -> None:
        _check(kind, split, count)
        self.name = f"pope_{negatives}_{kind}"
        self.scene_set, self.split, self.seed = kind, split, seed
        rules = _rules(family, rules)
        questions = _questions(negatives, kind, split, count, pairs, seed, rules)
        asked = np.array(sorted({int(question.image) for question in questions}))
        images = _images(kind, split, seed, asked, rules)
        super().__init__(images, questions, suffix="")

    def protocol(self) -> dict[str, Any]:
        """As POPE's, and which scenes these are."""
        scenes = {"set": self.scene_set, "split": self.split, "seed": self.seed}
        return super().protocol() | {"testbed": scenes}


def _questions(
    negatives: str, kind: str, split: str, count: int, pairs: int, seed: int, rules: SceneRules
) -> Sequence[Question]:
    """Builds questions about the first `count` scenes with at least `pairs` objects."""
    _, present = choose_objects(kind, split, seed, np.arange(20 * count + 100), rules)
    able = np.flatnonzero(present.sum(1) >= pairs)[:count]
    if len(able) < count:
        raise ConfigError(f"too few {kind} scenes hold {pairs} objects; ask about fewer pairs.")
    # Broken scenes alone would say that an A goes without its B, and never ask about one.
    _, usual = choose_objects("normal", "train", seed, np.arange(_STATISTICS), rules)
    objects: dict[int | str, set[str]] = {int(i): set(_names(present[i])) for i in able}
    objects |= {f"usual {i}": set(_names(row)) for i, row in enumerate(usual)}
    built = pope_questions(objects, negatives, categories=CLASSES, pairs=pairs, seed=seed)
    kept = [question for question in built if not question.image.startswith("usual")]
    return [
        Question(number, question.image, question.text, question.label)
        for number, question in enumerate(kept, 1)
    ]
