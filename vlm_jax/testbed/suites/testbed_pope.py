"""POPE on the testbed's scenes, its negatives chosen by the statistics of training scenes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlm_jax import settings
from vlm_jax.errors import ConfigError
from vlm_jax.evals.pope_questions import SPLITS, pope_questions
from vlm_jax.evals.suites.pope import Pope
from vlm_jax.evals.truth import Question
from vlm_jax.settings import setting
from vlm_jax.testbed.benchmark import OnScenes, SceneSettings, check, names, pictures, scene_rules
from vlm_jax.testbed.scenes import CLASSES, SceneRules, choose_objects

_STATISTICS = 2000  # training scenes that say which objects are frequent and go together


@dataclass(frozen=True, kw_only=True)
class SceneQuestionSettings(SceneSettings):
    """What a section on questions about testbed scenes says besides.

    Attributes:
        negatives: "random", "popular" or "adversarial".
        pairs: questions with answer yes, and as many with no, a scene.
    """

    negatives: str = setting(settings.REQUIRED, settings.one_of, known=SPLITS)
    pairs: int = setting(2, settings.whole, low=1)


class TestbedPope(OnScenes, Pope):
    """POPE on testbed scenes, its negatives chosen by the statistics of training scenes.

    Args:
        negatives: "random", "popular" or "adversarial".
        kind, split, count, seed, family, rules: see `TestbedChair`; `count` scenes are asked about.
        pairs: questions with answer yes, and as many with no, a scene.

    Raises:
        ConfigError: no such set or split, or no scene.
        ValueError: no such negatives.
    """

    Settings = SceneQuestionSettings

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
        check(kind, split, count)
        self.name = f"pope_{negatives}_{kind}"
        self.scene_set, self.split, self.seed = kind, split, seed
        rules = scene_rules(family, rules)
        questions = _questions(negatives, kind, split, count, pairs, seed, rules)
        asked = np.array(sorted({int(question.image) for question in questions}))
        images = pictures(kind, split, seed, asked, rules)
        super().__init__(images, questions, suffix="")


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
    objects: dict[int | str, set[str]] = {int(i): set(names(present[i])) for i in able}
    objects |= {f"usual {i}": set(names(row)) for i, row in enumerate(usual)}
    built = pope_questions(objects, negatives, categories=CLASSES, pairs=pairs, seed=seed)
    kept = [question for question in built if not question.image.startswith("usual")]
    return [
        Question(number, question.image, question.text, question.label)
        for number, question in enumerate(kept, 1)
    ]


SUITE = TestbedPope
