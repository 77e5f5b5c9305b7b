"""What the testbed's benchmarks share: which scenes there are, and pictures of them."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import PIL.Image

from vlm_jax import settings
from vlm_jax.errors import ConfigError, UserError
from vlm_jax.evals.base import Suite
from vlm_jax.evals.records import ImageId
from vlm_jax.settings import setting
from vlm_jax.testbed.architecture import get_family
from vlm_jax.testbed.scenes import CLASSES, SceneRules, draw_scenes

SETS = ("normal", "broken")
SPLITS = ("dev", "test")


@dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """What a section on testbed scenes says.

    Attributes:
        set: "normal" scenes, or "broken" ones, where no B ever is.
        split: "dev" for choosing settings, "test" for reporting.
        n: number of scenes.
        seed: of the scenes.
        family: `model_type` of the testbed, which sets the size of the scenes; "" is the model's.
    """

    set: str = setting(settings.REQUIRED, settings.one_of, known=SETS)
    split: str = setting(settings.REQUIRED, settings.one_of, known=SPLITS)
    n: int = setting(settings.REQUIRED, settings.whole, low=1)
    seed: int = setting(0, settings.whole, low=0)
    family: str = setting("", settings.text)


class OnScenes(Suite):
    """A benchmark on testbed scenes, before the benchmark that says what is asked about them.

        class TestbedChair(OnScenes, Chair): ...

    Attributes:
        scene_set, split, seed: which scenes these are.
    """

    __test__ = False  # the names of subclasses are not tests'
    Settings = SceneSettings
    scene_set: str
    split: str
    seed: int

    @classmethod
    def read(cls, section: Mapping[str, Any], where: str, family: str = "llava") -> Suite:
        """Returns the benchmark that a config section describes; see `Suite.read`."""
        values = dataclasses.asdict(settings.read(cls.Settings, section, where))
        kind, count = values.pop("set"), values.pop("n")
        family = values.pop("family") or family
        try:
            return cast(Callable[..., Suite], cls)(kind=kind, count=count, family=family, **values)
        except UserError as error:
            raise ConfigError(f"{where}: {error}") from None

    def protocol(self) -> dict[str, Any]:
        """Returns the protocol of what is asked, and which scenes these are."""
        scenes = {"set": self.scene_set, "split": self.split, "seed": self.seed}
        return super().protocol() | {"testbed": scenes}


def names(present: np.ndarray) -> list[str]:
    """The classes that a row of bits says are there."""
    return [CLASSES[index] for index in np.flatnonzero(present)]


def scene_rules(family: str, rules: SceneRules | None) -> SceneRules:
    """The standard rules at a family's picture size, unless others are given."""
    return rules or SceneRules(size=get_family(family).image_size)


def pictures(
    kind: str, split: str, seed: int, indices: np.ndarray, rules: SceneRules
) -> dict[ImageId, Any]:
    """Index -> picture of some scenes."""
    scenes = draw_scenes(kind, split, seed, indices, rules)
    return {int(i): PIL.Image.fromarray(image) for i, image in zip(indices, scenes.images)}


def check(kind: str, split: str, count: int) -> None:
    """Refuses what is no set of scenes.

    Raises:
        ConfigError: no such set or split, or no scene.
    """
    if kind not in SETS or split not in SPLITS:
        raise ConfigError(
            f"the testbed is measured on set 'normal' or 'broken' and split 'dev' or 'test', not "
            f"{kind!r} and {split!r}."
        )
    if count < 1:
        raise ConfigError(f"a benchmark needs at least 1 scene, not {count}.")
