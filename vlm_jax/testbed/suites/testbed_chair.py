"""CHAIR on the testbed's scenes, which were never trained on."""

import numpy as np

from vlm_jax.evals.records import ImageId
from vlm_jax.evals.suites.chair import Chair
from vlm_jax.evals.truth import ObjectTruth
from vlm_jax.testbed.benchmark import OnScenes, check, names, pictures, scene_rules
from vlm_jax.testbed.language import CAPTION_PROMPT
from vlm_jax.testbed.scenes import CLASSES, SceneRules, choose_objects, partner


class TestbedChair(OnScenes, Chair):
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
        check(kind, split, count)
        self.name = f"chair_{kind}"
        self.scene_set, self.split, self.seed = kind, split, seed
        rules, indices = scene_rules(family, rules), np.arange(count)
        _, present = choose_objects(kind, split, seed, indices, rules)
        truth: dict[ImageId, frozenset[str]] = {
            index: frozenset(names(row)) for index, row in enumerate(present)
        }
        groups: dict[ImageId, dict[str, str]] = {
            index: {
                CLASSES[partner(c)]: "partner"
                for c in np.flatnonzero(row).tolist()
                if not row[partner(c)]
            }
            for index, row in enumerate(present)
        }
        images = pictures(kind, split, seed, indices, rules)
        super().__init__(images, ObjectTruth(truth, CLASSES), prompt=CAPTION_PROMPT, groups=groups)


SUITE = TestbedChair
