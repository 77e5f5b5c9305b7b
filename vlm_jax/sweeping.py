"""Many settings of one method on the same questions, in one batch where they steer attention.

A list is several values of a setting, and a tuple is one value: text_gain=[0.1, 0.5] are two
settings, heads=((3, 1), (3, 2)) is one. Several lists are all of their combinations:

    vlm.sweep("air", heads="identified", text_gain=[0.1, 0.5], shrinkage=[0.0, 0.3], ...)   # four
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vlm_jax.calls import Call
from vlm_jax.errors import ConfigError, IdentityError
from vlm_jax.methods import treat
from vlm_jax.side_by_side import SideBySide
from vlm_jax.steering.combine import stack
from vlm_jax.treatments import Steered, TreatedModel, Treatment, TwoPasses, steering_of


def grid(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns all combinations of the settings that list several values, by what differs.

        grid({"heads": "all", "text_gain": [0.1, 0.5]})
        # {"text_gain=0.1": {"heads": "all", "text_gain": 0.1}, "text_gain=0.5": {...}}

    Raises:
        ConfigError: none lists several values, or a value comes twice.
    """
    varied = {name: _values(value) for name, value in settings.items() if _is_several(value)}
    if not varied:
        raise ConfigError(
            "a sweep needs a setting that lists values, such as text_gain=[0.1, 0.5, 1.0]."
        )
    found: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*varied.values()):
        chosen = dict(zip(varied, values))
        name = ", ".join(f"{key}={value!r}" for key, value in chosen.items())
        if name in found:
            raise ConfigError(f"the sweep lists {name} twice; list every value once.")
        found[name] = {**settings, **chosen}
    if not found:
        empty = next(name for name, values in varied.items() if not values)
        raise ConfigError(f"{empty} lists no value; give the sweep one at least.")
    return found


def sweep(
    model: TreatedModel,
    method: str | Callable[..., Any],
    settings: Mapping[str, Any],
    call: Call,
    options: Mapping[str, Any],
) -> SideBySide:
    """Returns the answers of a method at many settings; see `VLM.sweep`."""
    chosen = grid(settings)
    treatments: dict[str, Treatment] = {}
    for name, one in chosen.items():
        # A setting that changes no head is a level of the sweep too: the model as it is.
        with contextlib.suppress(IdentityError):
            treatments[name] = treat(method, model, one)
    steered = {
        name: one
        for name, one in treatments.items()
        if isinstance(one, Steered) and not isinstance(one, TwoPasses)
    }
    if len(steered) < len(treatments):
        answers: dict[str, list[str]] = {
            name: one.apply(model).generate(call.images, call.prompts, **options)
            for name, one in treatments.items()
        }
    else:
        answers = _in_one_batch(model, steered, call, options)
    if len(treatments) < len(chosen):
        plain: list[str] = model.generate(call.images, call.prompts, **options)
        answers = {name: answers.get(name, plain) for name in chosen}
    return SideBySide(answers, call.prompts, call.images, chosen)


def _in_one_batch(
    model: TreatedModel, steered: Mapping[str, Steered], call: Call, options: Mapping[str, Any]
) -> dict[str, list[str]]:
    """Answers every question with every setting, settings of a batch differing row by row."""
    for one in steered.values():
        steering_of([*model.treatments, one])  # says by name what sets the same part
    answers: dict[str, list[str]] = {}
    count = len(call.prompts)
    for names in _alike(steered):
        rows = [index for index in range(len(names)) for _ in range(count)]
        steering = stack([steered[name].steering for name in names], rows)
        found = model.ask(
            None if call.images is None else [*call.images] * len(names),
            [*call.prompts] * len(names),
            options,
            steering=steering,
            streams=[*range(count)] * len(names),
        )
        texts = [answer.text for answer in found]
        for index, name in enumerate(names):
            answers[name] = texts[index * count : (index + 1) * count]
    return {name: answers[name] for name in steered}


def _alike(steered: Mapping[str, Steered]) -> Iterator[list[str]]:
    """Names of settings that one compiled program can serve: of the same parts and switches."""
    kinds: dict[Any, list[str]] = {}
    for name, one in steered.items():
        kinds.setdefault(jax.tree.structure(one.steering), []).append(name)
    yield from kinds.values()


def _is_several(value: Any) -> bool:
    return isinstance(value, list | range) or (isinstance(value, np.ndarray) and value.ndim == 1)


def _values(value: Sequence[Any] | np.ndarray) -> list[Any]:
    return value.tolist() if isinstance(value, np.ndarray) else list(value)
