"""How a testbed model is made: everything that training depends on besides the seed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vlm_jax.errors import ConfigError
from vlm_jax.settings import refuse_unknown
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

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 50
    weight_decay: float = 0.02
    b2: float = 0.98

    def __post_init__(self):
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of a training stage must be 1 or more.")
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate must be positive, not {self.learning_rate}.")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A whole training run.

    Attributes:
        family: `model_type` of the architecture, see `architecture.FAMILIES`.
        vision: stage 1, the tower on scenes without priors, labelled patch by patch; then frozen.
        text: stage 2, projector and decoder on captions alone.
        language: stage 3, projector and decoder on captions and questions about scenes with priors.
        question_pairs: questions with answer yes, and as many with no, a scene.
        question_weight: weight of a scene's questions beside its caption's 1.
        scenes: composition and difficulty of the scenes.
        checkpoint_every: steps between checkpoints.
    """

    family: str = "llava"
    vision: StageRecipe = StageRecipe(steps=1500, batch=64, learning_rate=1.5e-3, warmup=100)
    text: StageRecipe = StageRecipe(steps=60, batch=32, learning_rate=2e-3, warmup=20)
    language: StageRecipe = StageRecipe(steps=450, batch=32, learning_rate=2e-3)
    question_pairs: int = 1
    question_weight: float = 0.3
    scenes: SceneRules = dataclasses.field(default_factory=SceneRules)
    checkpoint_every: int = 200

    def __post_init__(self):
        family = get_family(self.family)
        if self.scenes.size != family.image_size:
            raise ConfigError(
                f"scenes are {self.scenes.size} pixels wide but the {self.family} testbed reads "
                f"{family.image_size}; set scenes.size to that."
            )

    def to_json(self) -> dict[str, Any]:
        """Returns the recipe as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Recipe":
        """Builds a recipe from nested mappings, such as a config or a `recipe.json`.

        Raises:
            ConfigError: a key is misspelt or a value is out of range.
        """
        return _build(cls, values, "recipe")


_NESTED = {
    "vision": StageRecipe,
    "text": StageRecipe,
    "language": StageRecipe,
    "scenes": SceneRules,
}


def _build(kind, values: Mapping[str, Any], where: str):
    refuse_unknown(values, [field.name for field in dataclasses.fields(kind)], where)
    built = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            if name not in _NESTED:
                raise ConfigError(f"{where}.{name} must be one value, not {dict(value)!r}.")
            value = _build(_NESTED[name], value, f"{where}.{name}")
        built[name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**built)
    except TypeError as error:
        raise ConfigError(f"{where} is incomplete: {error}.") from None
