"""Functions and auxiliary models that settings of decoding methods name (scorers, detectors).

In Python such a setting takes any function. In a config it takes "package.module:name"; or, where a
model will do, the folder or hub name of a model that matches texts and images, or the JSON of a
detector.
"""

import functools
import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vlm_jax.errors import ConfigError

_NAMED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def function(
    name: str,
    value: Any,
    *,
    does: str,
    of_matcher: Callable[[Any], Callable[..., Any]] | None = None,
    detects: bool = False,
) -> Callable[..., Any]:
    """Returns the function that a setting names.

    Args:
        name: of the setting, for errors.
        value: a function, "package.module:name", a matching model's folder (with `of_matcher`), or
            a detector's JSON (with `detects`).
        does: what the function takes and returns, for errors.
        of_matcher: makes the function of a model that `vlm_jax.matching` opens.
        detects: whether a detector that `vlm_jax.detecting` opens will do.

    Raises:
        ConfigError: the value names no function.
    """
    if callable(value):
        return value
    text = isinstance(value, str) and value
    if text and _NAMED.fullmatch(value):
        return _imported(name, value)
    if text and detects and value.endswith(".json"):
        return _detector(value)
    if text and of_matcher is not None:
        return of_matcher(_matcher(value))
    folder = ", or a folder of a CLIP, SigLIP or BLIP" if of_matcher is not None else ""
    folder += ", or the .json of a CenterNet" if detects else ""
    raise ConfigError(
        f"{name} must be a function of {does}, or 'package.module:name' of one{folder}, not "
        f"{value!r}."
    )


def numbers(
    what: str, score: Callable[..., Any], texts: Sequence[str], image: Any, noun: str
) -> np.ndarray:
    """Returns float64 [texts], the scores that a function gives texts beside an image.

    Args:
        what: names the function in errors: "method 'cgd': scorer".
        score: takes a list of texts and an image, returns a number for each text.
        texts, image: its arguments.
        noun: what errors call the texts, in the plural.

    Raises:
        ConfigError: it does not return a finite number for each.
    """
    found = np.asarray(score(list(texts), image), np.float64)
    if found.shape != (len(texts),) or not np.isfinite(found).all():
        raise ConfigError(
            f"{what} must return a finite number for each of {len(texts)} {noun}, not "
            f"{found.tolist()!r}."
        )
    return found


def _imported(name: str, value: str) -> Callable[..., Any]:
    module, _, path = value.partition(":")
    try:
        found = functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{name}: {value!r} cannot be imported: {error}.") from None
    if not callable(found):
        raise ConfigError(f"{name}: {value!r} is no function, but {type(found).__name__}.")
    return found


@functools.cache
def _matcher(folder: str) -> Any:
    """Returns the matcher of a folder; opened once, since several arms may name it."""
    from vlm_jax.matching import open_matcher  # reads pictures and words: not needed without one

    return open_matcher(folder)


@functools.cache
def _detector(path: str) -> Any:
    """Returns the detector of a JSON; opened once, since several arms may name it."""
    from vlm_jax.detecting import open_detector  # not needed without one

    return open_detector(path)
