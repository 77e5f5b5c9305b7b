"""How a testbed model is made: everything that training depends on besides the seed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vlm_jax.errors import ConfigError
from vlm_jax.settings import REQUIRED, number, read, section, setting, text, whole
from vlm_jax.testbed.architecture import get_family
from vlm_jax.testbed.scenes import SceneRules


@dataclasses.dataclass(frozen=True)
class StageRecipe:
    """One stage of training with AdamW.

    Attributes:
        steps, batch: how many steps of how many scenes.
        learning_rate: peak, after `warmup` steps of linear rise, then a cosine to 1/30 of it.
        warmup: steps.
        weight_decay, b2: AdamW's decay and second momentum.
    """

    steps: int = setting(REQUIRED, whole, low=1)
    batch: int = setting(REQUIRED, whole, low=1)
    learning_rate: float = setting(REQUIRED, number, low=1e-12, high=1e3)
    warmup: int = setting(50, whole, low=0)
    weight_decay: float = setting(0.02, number, low=0)
    b2: float = setting(0.98, number, low=0, high=1)


def _family(name: str, value: Any) -> str:
    get_family(text(name, value))
    return value


_VISION = StageRecipe(steps=1500, batch=64, learning_rate=1.5e-3, warmup=100)
_TEXT = StageRecipe(steps=60, batch=32, learning_rate=2e-3, warmup=20)
_LANGUAGE = StageRecipe(steps=450, batch=32, learning_rate=2e-3)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A whole training run.

    Attributes:
        family: `model_type` of the architecture, see `architecture.FAMILIES`.
        vision: stage 1, the tower on scenes without priors, labelled patch by patch; then frozen.
            None where `tower` is given.
        text: stage 2, projector and decoder on captions alone. None of a released decoder, as
            which only the projector is trained.
        language: stage 3, projector and decoder on captions and questions about scenes with priors.
        tower: a model folder, or a shipped model, whose tower is taken as it is; "" trains one.
        align_scenes: scenes without priors on which the projector of a released decoder is solved
            for before it is trained (`align`).
        question_pairs: questions with answer yes, and as many with no, a scene.
        question_weight: weight of a scene's questions beside its caption's 1.
        scenes: composition and difficulty of the scenes.
        checkpoint_every: steps between checkpoints.
    """

    family: str = setting("llava", _family)
    tower: str = setting("", text)
    vision: StageRecipe | None = setting(_VISION, section, of=StageRecipe, optional=True)
    text: StageRecipe | None = setting(_TEXT, section, of=StageRecipe, optional=True)
    language: StageRecipe = setting(_LANGUAGE, section, of=StageRecipe)
    align_scenes: int = setting(0, whole, low=0)
    question_pairs: int = setting(1, whole, low=1)
    question_weight: float = setting(0.3, number, low=0)
    scenes: SceneRules = setting(SceneRules(), section, of=SceneRules)
    checkpoint_every: int = setting(200, whole, low=1)

    def __post_init__(self):
        family = get_family(self.family)
        if self.scenes.size != family.image_size:
            raise ConfigError(
                f"scenes are {self.scenes.size} pixels wide but the {self.family} testbed reads "
                f"{family.image_size}; set scenes.size to that."
            )
        if (self.vision is None) != bool(self.tower):
            raise ConfigError(
                "a recipe has either the stage vision or a model whose tower it takes, "
                f"not vision={self.vision} and tower={self.tower!r}."
            )
        if (self.text is None) != family.released or (self.align_scenes > 0) != family.released:
            own, other = "align_scenes", "stage text"
            if not family.released:
                own, other = other, own
            raise ConfigError(
                f"a recipe of {self.family} has a value of {own} and none of {other}."
            )

    @property
    def stages(self) -> list[StageRecipe]:
        """The stages that are trained, in order."""
        stages = (self.vision, self.text, self.language)
        return [stage for stage in stages if stage is not None]

    def to_json(self) -> dict[str, Any]:
        """Returns the recipe as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "recipe") -> "Recipe":
        """Returns the recipe of nested mappings, such as a config or a `recipe.json`.

        Args:
            values: what differs from the standard one; a stage is given whole.
            where: what messages call it.

        Raises:
            ConfigError: a key is misspelt or a value is out of range.
        """
        return read(cls, values, where)
