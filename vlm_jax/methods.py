"""Everything that `VLM.apply` takes, by name: edits of weights, attention methods, strategies.

Each is one file of `vlm_jax/edits`, `vlm_jax/steering/methods`, `vlm_jax/decoding/strategies` or
`vlm_jax/decoding/search`, or an entry point of another package; this module knows none by name. The
first sentence of what is found is its line in `vlm_jax.methods()`.

    vlm_jax.methods()["air"].settings["text_gain"]     # 0.1, the default
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vlm_jax.attention.steering import Steering
from vlm_jax.decoding import named
from vlm_jax.edits import EDITS
from vlm_jax.errors import ConfigError
from vlm_jax.listing import Listing, make_callable
from vlm_jax.plugins import usable
from vlm_jax.settings import nearest, read, refuse_unknown
from vlm_jax.steering import methods as attention
from vlm_jax.steering.config import read_method
from vlm_jax.steering.named import identified
from vlm_jax.steering.validate import validate
from vlm_jax.treatments import (
    Decoded,
    Edited,
    Reranked,
    Steered,
    TreatedModel,
    Treatment,
    TwoPasses,
    decoded,
)


@dataclasses.dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        name: what `VLM.apply` calls it.
        kind: "attention" acts while the model answers, "decoding" on how it chooses tokens,
            "weights" changes its parameters.
        summary: one line.
        settings: their defaults.
        treatment: of a model and settings, makes the `Treatment`.
        random_control: value of its setting `control` that acts elsewhere, drawn at random; "" if
            it has none.
    """

    name: str
    kind: str
    summary: str
    settings: Mapping[str, Any]
    treatment: Callable[[TreatedModel, Mapping[str, Any]], Treatment]
    random_control: str = ""

    def __repr__(self) -> str:
        listed = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"{self.name}({listed}): {self.summary}"


def methods() -> Listing[Method]:
    """Returns all methods by name: a line, the settings and their defaults of each."""
    makers = _makers()
    listed = usable(makers, lambda name: makers[name](name))
    settings = lambda method: ", ".join(f"{k}={v!r}" for k, v in method.settings.items())
    columns = {"acts on": lambda m: m.kind, "what it does": lambda m: m.summary}
    return Listing(listed, "method", {**columns, "settings": settings})


def treat(
    name: str | Callable[..., Steering], model: TreatedModel, settings: Mapping[str, Any]
) -> Treatment:
    """Returns the treatment that a name and settings mean for a model.

    Args:
        name: of a method; or a function as an attention method is one, of the model's config and
            settings.
        model: that is treated.
        settings: of the method.

    Raises:
        ConfigError: there is no such method, it has no such setting, or a value cannot be; or the
            function returns no steering.
        EditError: an edit does not fit the model.
    """
    if inspect.isfunction(name):
        return _of_function(name, model, settings)
    method = find_method(name)
    refuse_unknown(settings, method.settings, f"method {name!r}")
    return method.treatment(model, {key: _plain(key, value) for key, value in settings.items()})


def _plain(name: str, value: Any) -> Any:
    """A setting as a config has it: NumPy's scalars, and an array of heads, as Python's."""
    listed = name == "heads" and isinstance(value, np.ndarray)
    return value.tolist() if listed or isinstance(value, np.generic) else value


def find_method(name: Any) -> Method:
    """Returns a method by its name; no other is imported.

    Raises:
        ConfigError: there is none of this name.
    """
    makers = _makers()
    if not isinstance(name, str):
        raise ConfigError(
            f"a method is given by its name, or as a function, not as {type(name).__name__}; a "
            "function is called with the model's config and the settings, and returns a Steering."
        )
    if name not in makers:
        raise ConfigError(
            f"there is no method {name!r}{nearest(name, makers)}; there are {', '.join(makers)}."
        )
    return makers[name](name)


def settings_of(method: str | Callable[..., Any]) -> list[str]:
    """Returns the names of the settings of a method, by its name, or that is a function.

    Raises:
        ConfigError: there is no such method.
    """
    if inspect.isfunction(method):
        return list(inspect.signature(method).parameters)[1:]
    return list(find_method(method).settings)


def steered(name: str, settings: Mapping[str, Any], steering: Any) -> Steered:
    """Returns the treatment of an attention method whose steering is built."""
    # Fixed gains need no pass of their own.
    two = steering.visual_gains is not None and settings.get("passes") == 2
    return (TwoPasses if two else Steered)(name, dict(settings), steering)


def summary_of(function: Callable[..., Any]) -> str:
    """The first sentence of a docstring, on one line."""
    text = inspect.getdoc(function) or ""
    return " ".join(text.split("\n\n")[0].split())


def _of_function(
    function: Callable[..., Any], model: TreatedModel, settings: Mapping[str, Any]
) -> Steered:
    """The treatment of an attention method that has no name yet.

    Raises:
        ConfigError: it has no such setting, or does not return a steering of the model.
    """
    # The dot keeps it apart from methods that are found by their name.
    called = f"{function.__module__}.{function.__name__}"
    refuse_unknown(settings, settings_of(function), f"method {called!r}")
    given = {key: _plain(key, value) for key, value in settings.items()}
    folder = None if model.folder is None else model.folder.path
    steering = function(model.config, **identified(given, folder))
    if not isinstance(steering, Steering):
        raise ConfigError(f"{called} must return a Steering, not {type(steering).__name__}.")
    validate(steering, model.config.decoder)
    return steered(called, given, steering)


def _makers() -> dict[str, Callable[[str], Method]]:
    """What makes the method of each name."""
    return {
        **dict.fromkeys(EDITS.names(), _edit),
        **dict.fromkeys(attention.METHODS.names(), _attention_method),
        **dict.fromkeys(named.names(), _strategy),
    }


def _edit(name: str) -> Method:
    edit = EDITS.find(name)

    def treatment(model: TreatedModel, settings: Mapping[str, Any]) -> Edited:
        chosen = read(edit.settings, settings, f"method {name!r}")
        made = edit.make(model.source_folder("an edit of its weights"), chosen)
        return Edited(name, dict(settings), made)

    random = edit.random_control
    return Method(name, "weights", edit.line, edit.defaults(), treatment, random)


def _attention_method(name: str) -> Method:
    settings = attention.settings_of(name)

    def treatment(model: TreatedModel, settings: Mapping[str, Any]) -> Steered:
        given = identified(settings, None if model.folder is None else model.folder.path)
        return steered(name, settings, read_method({"method": name, **given}, model.config))

    line, random = summary_of(attention.METHODS.find(name)), attention.random_control(name)
    return Method(name, "attention", line, settings, treatment, random)


def _strategy(name: str) -> Method:
    found = named.find(name)
    settings = {field.name: field.default for field in dataclasses.fields(found)}

    def treatment(model: TreatedModel, settings: Mapping[str, Any]) -> Decoded | Reranked:
        return decoded(name, settings)

    random = next((w for w in named.controls(name) if w in attention.RANDOM_CONTROLS), "")
    return Method(name, "decoding", summary_of(found), settings, treatment, random)


make_callable(__name__, methods)
