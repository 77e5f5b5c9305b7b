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

from vlm_jax.decoding import named
from vlm_jax.edits import EDITS
from vlm_jax.errors import ConfigError
from vlm_jax.listing import Listing, make_callable
from vlm_jax.plugins import usable
from vlm_jax.settings import nearest, read, refuse_unknown
from vlm_jax.steering import methods as attention
from vlm_jax.steering.config import read_method
from vlm_jax.steering.named import identified
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


def treat(name: str, model: TreatedModel, settings: Mapping[str, Any]) -> Treatment:
    """Returns the treatment that a name and settings mean for a model.

    Raises:
        ConfigError: there is no such method, it has no such setting, or a value cannot be.
        EditError: an edit does not fit the model.
    """
    method = find_method(name)
    refuse_unknown(settings, method.settings, f"method {name!r}")
    return method.treatment(model, {key: _plain(key, value) for key, value in settings.items()})


def _plain(name: str, value: Any) -> Any:
    """A setting as a config has it: NumPy's scalars, and an array of heads, as Python's."""
    listed = name == "heads" and isinstance(value, np.ndarray)
    return value.tolist() if listed or isinstance(value, np.generic) else value


def find_method(name: str) -> Method:
    """Returns a method by its name; no other is imported.

    Raises:
        ConfigError: there is none of this name.
    """
    makers = _makers()
    if name not in makers:
        raise ConfigError(
            f"there is no method {name!r}{nearest(name, makers)}; there are {', '.join(makers)}."
        )
    return makers[name](name)


def steered(name: str, settings: Mapping[str, Any], steering: Any) -> Steered:
    """Returns the treatment of an attention method whose steering is built."""
    # Fixed gains need no pass of their own.
    two = steering.visual_gains is not None and settings.get("passes") == 2
    return (TwoPasses if two else Steered)(name, dict(settings), steering)


def summary_of(function: Callable[..., Any]) -> str:
    """The first sentence of a docstring, on one line."""
    text = inspect.getdoc(function) or ""
    return " ".join(text.split("\n\n")[0].split())


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
