"""Everything that `VLM.apply` takes, by name: attention methods, strategies, edits of weights.

A method is found in the rooms of this package, or in another package by an entry point of the group
`vlm_jax.methods`: a function of the model's config and of settings that returns a `Steering`. Its
name there is its name here; the first sentence of its docstring is its line in `vlm_jax.methods()`.

    vlm_jax.methods()["air"].settings["text_gain"]     # 0.1, the default

A method with its settings is a `Treatment` of a model.
"""

import dataclasses
import functools
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm_jax import checkpoint
from vlm_jax.attention.steering import Steering
from vlm_jax.decoding import strategies
from vlm_jax.decoding.strategies import Strategy
from vlm_jax.edits.energy_rescale import ENERGIES, energy_edit, fold_energy
from vlm_jax.edits.head_gains import fold_gains, gains_edit
from vlm_jax.edits.qk import QKEdit
from vlm_jax.errors import ConfigError
from vlm_jax.listing import Listing, html_table, make_callable
from vlm_jax.progress import Progress
from vlm_jax.settings import nearest, number, one_of, refuse_unknown
from vlm_jax.steering import methods as attention
from vlm_jax.steering.combine import PARTS, merge
from vlm_jax.steering.config import read_method
from vlm_jax.steering.layers import layer_range
from vlm_jax.steering.methods import settings_of

if TYPE_CHECKING:
    from vlm_jax.api import VLM

HEADS = "heads.json"
IDENTIFIED = "identified"


@dataclasses.dataclass(frozen=True)
class Treatment:
    """A method with its settings, as it was applied to a model.

    Attributes:
        method: its name.
        settings: those that were given.
    """

    method: str
    settings: Mapping[str, Any]

    def identity(self) -> dict[str, Any]:
        """JSON values that say what this is: the method and the settings that were given.

        Apart, since an edit has a setting `method` of its own.
        """
        settings = json.loads(json.dumps(self.settings, default=_plain))
        return {"method": self.method, "settings": settings}

    def apply(self, model: "VLM") -> "VLM":
        """Returns the model with this treatment added to those that it has.

        Raises:
            ConfigError: another one sets the same part.
        """
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{self.method}({', '.join(f'{k}={v!r}' for k, v in self.settings.items())})"


@dataclasses.dataclass(frozen=True)
class Steered(Treatment):
    """What a method does to attention while a model answers.

    Attributes:
        steering: leaves float32 [1, L, N].
    """

    steering: Steering = dataclasses.field(default=Steering(), compare=False, repr=False)

    @property
    def two_passes(self) -> bool:
        """Whether classes of heads are read in a pass of their own; fixed gains need none."""
        return self.steering.visual_gains is not None and self.settings.get("passes") == 2

    def apply(self, model: "VLM") -> "VLM":
        """See `Treatment.apply`."""
        return model.treated(self)


@dataclasses.dataclass(frozen=True)
class Decoded(Treatment):
    """How a model chooses tokens, from several views of a sample.

    Attributes:
        strategy: see `vlm_jax.decoding.strategies`.
    """

    strategy: Strategy = dataclasses.field(default=Strategy(), compare=False, repr=False)

    def apply(self, model: "VLM") -> "VLM":
        """See `Treatment.apply`."""
        for other in (one for one in model.treatments if isinstance(one, Decoded)):
            raise ConfigError(
                f"methods {other.method!r} and {self.method!r} both choose tokens, so they cannot "
                "act together; use one of them."
            )
        return model.treated(self)


@dataclasses.dataclass(frozen=True)
class Edited(Treatment):
    """An edit of a model's weights, worked out for its folder.

    Attributes:
        replace: our path -> function that gives the edited tensor in its stored dtype.
        document: gives the certificate once all tensors were made.
        write: writes the edited copy of a folder to a target, as the job does.
    """

    replace: Mapping[str, Callable[[], np.ndarray]] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )
    document: Callable[[], bytes] = dataclasses.field(default=bytes, compare=False, repr=False)
    write: Callable[[checkpoint.ModelFolder, str | os.PathLike[str]], Any] = dataclasses.field(
        default=lambda source, target: None, compare=False, repr=False
    )

    @functools.cached_property
    def certificate(self) -> "Certificate":
        """What was done to every head, as the file beside the edited weights says it."""
        return Certificate(self.document())

    def apply(self, model: "VLM") -> "VLM":
        """See `Treatment.apply`."""
        for other in (one for one in model.treatments if isinstance(one, Edited)):
            shared = sorted(set(other.replace) & set(self.replace))
            if shared:
                raise ConfigError(
                    f"methods {other.method!r} and {self.method!r} both change {shared[0]}, so "
                    "they cannot act together; use one of them."
                )
        return model.treated(self, replace=self.replace)


class Certificate(dict[str, Any]):
    """The certificate of an edit: its fields, shown as a table of what was done.

    Attributes:
        content: the bytes of its file.
    """

    def __init__(self, content: bytes):
        super().__init__(json.loads(content))
        self.content = content

    def _summary(self) -> dict[str, str]:
        shown = {"kind": str(self.get("kind", ""))}
        edit = self.get("edit", {})
        usual = {field.name: field.default for field in dataclasses.fields(QKEdit)}
        for name, value in edit.items() if isinstance(edit, Mapping) else ():
            if name in ("k", "strength", "method") or value != json.loads(
                json.dumps(usual.get(name))
            ):
                shown[name] = str(value)
        if "layers" in self:
            shown["layers"] = ", ".join(map(str, self["layers"]))
        totals = self.get("summary", {})
        done = totals.get("edit", {})
        if "heads" in totals:
            shown["heads"] = str(totals["heads"])
        if "energy_removed" in done:
            shown["energy removed, median"] = f"{100 * done['energy_removed']:.1f} %"
        if "dw_norm" in done:
            shown["norm of the change"] = f"{done['dw_norm']:.4g}"
        return shown

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self._summary().items())

    def _repr_html_(self) -> str:
        return html_table(["certificate", ""], list(self._summary().items()))


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
    """

    name: str
    kind: str
    summary: str
    settings: Mapping[str, Any]
    treatment: Callable[["VLM", Mapping[str, Any]], Treatment] = dataclasses.field(repr=False)

    def __str__(self) -> str:
        listed = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"{self.name}({listed}): {self.summary}"


def methods() -> Listing[Method]:
    """Returns all methods by name: a line, the settings and their defaults of each."""
    listed = {edit.name: edit for edit in (_qk_method(), _gains_method(), _energy_method())}
    listed |= {name: _attention_method(name) for name in attention.names()}
    listed |= {name: _decoding_method(name) for name in strategies.names()}
    settings = lambda method: ", ".join(f"{k}={v!r}" for k, v in method.settings.items())
    columns = {"acts on": lambda m: m.kind, "what it does": lambda m: m.summary}
    return Listing(listed, "method", {**columns, "settings": settings})


def treat(name: str, model: "VLM", settings: Mapping[str, Any]) -> Treatment:
    """Returns the treatment that a name and settings mean for a model.

    Raises:
        ConfigError: there is no such method, it has no such setting, or a value cannot be.
        EditError: an edit does not fit the model.
    """
    method = methods()[check_method(name)]
    refuse_unknown(settings, method.settings, f"method {name!r}")
    return method.treatment(model, settings)


def check_method(name: str) -> str:
    """Returns the name of a method.

    Raises:
        ConfigError: there is none of this name.
    """
    known = methods()
    if name not in known:
        raise ConfigError(
            f"there is no method {name!r}{nearest(name, known)}; there are {', '.join(known)}."
        )
    return name


def steering_of(treatments: Sequence[Treatment]) -> Steering | None:
    """Returns what some treatments do to attention together; None if they leave it alone.

    Raises:
        ConfigError: two set the same part.
    """
    named = [(one.method, one.steering) for one in treatments if isinstance(one, Steered)]
    return merge(named) if named else None


def summary_of(function: Callable[..., Any]) -> str:
    """The first sentence of a docstring, on one line."""
    text = inspect.getdoc(function) or ""
    return " ".join(text.split("\n\n")[0].split())


def _attention_method(name: str) -> Method:
    def treatment(model: "VLM", settings: Mapping[str, Any]) -> Steered:
        given = with_heads(settings, model.folder)
        steering = read_method({"method": name, **given}, model.config)
        return Steered(name, dict(settings), steering)

    return Method(name, "attention", summary_of(attention.find(name)), settings_of(name), treatment)


def _decoding_method(name: str) -> Method:
    found = strategies.find(name)
    settings = {field.name: field.default for field in dataclasses.fields(found)}

    def treatment(model: "VLM", settings: Mapping[str, Any]) -> Decoded:
        return Decoded(name, dict(settings), strategies.read_strategy(name, settings))

    return Method(name, "decoding", summary_of(found), settings, treatment)


def _qk_method() -> Method:
    settings = {field.name: field.default for field in dataclasses.fields(QKEdit)}

    def treatment(model: "VLM", settings: Mapping[str, Any]) -> Edited:
        from vlm_jax.edits.qk.folder import FolderEdit, edit_folder

        spec = QKEdit(**settings)
        source = model.source_folder("an edit of its weights")
        made = FolderEdit(source, spec, Progress(None, "layers", enabled=False))
        write = lambda source, target: edit_folder(source, target, spec)
        return Edited("qk", dict(settings), made.replacements(), made.certificate_bytes, write)

    summary = "Suppresses the strongest modes of each head's query-key product, in its weights."
    return Method("qk", "weights", summary, settings, treatment)


def _gains_method() -> Method:
    def treatment(model: "VLM", settings: Mapping[str, Any]) -> Edited:
        source = model.source_folder("an edit of its weights")
        gain_ln, about = _fixed_gains(model, settings.get("gains"))
        replace, certificate = gains_edit(source, gain_ln, about)
        write = lambda source, target: fold_gains(source, target, gain_ln, about)
        return Edited("head_gains", dict(settings), replace, lambda: certificate, write)

    summary = "Scales heads by fixed gains, in their output weights."
    return Method("head_gains", "weights", summary, {"gains": None}, treatment)


def _fixed_gains(model: "VLM", gains: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns gains [L, N], and what their certificate says of where they are from."""
    if not isinstance(gains, Mapping):
        if gains is None or isinstance(gains, str):
            raise ConfigError(
                "method 'head_gains' needs gains: an array [layers, heads], or a method of fixed "
                "gains such as {'method': 'functional_heads', 'mode': 'dataset_static', "
                "'heads': 'identified'}."
            )
        return np.asarray(gains, np.float64), {}
    steering = read_method(with_heads(gains, model.folder), model.config)
    parts = [part for part in PARTS if getattr(steering, part) is not None]
    if parts != ["head_gains"]:
        raise ConfigError(
            f"gains: {gains.get('method')!r} acts by {' and '.join(parts)}, but weights can hold "
            "gains that are fixed and nothing else; use functional_heads or policy with "
            "mode='dataset_static'."
        )
    assert steering.head_gains is not None
    return np.asarray(steering.head_gains.gain)[0], {"methods": [dict(sorted(gains.items()))]}


def _energy_method() -> Method:
    def treatment(model: "VLM", settings: Mapping[str, Any]) -> Edited:
        source = model.source_folder("an edit of its weights")
        depth, layers = source.config.decoder.num_layers, settings.get("layers")
        chosen = range(depth) if layers is None else layer_range("layers", layers, depth)
        energy = one_of("energy", settings.get("energy", "frobenius"), ENERGIES)
        asked = chosen, energy, number("xi", settings.get("xi", 0.01), 0)
        replace, certificate, _ = energy_edit(source, *asked)
        write = lambda source, target: fold_energy(source, target, *asked)
        return Edited("energy_rescale", dict(settings), replace, lambda: certificate, write)

    summary = "Brings heads to the mean energy of their layer, in their query weights."
    settings = {"layers": None, "energy": "frobenius", "xi": 0.01}
    return Method("energy_rescale", "weights", summary, settings, treatment)


def with_heads(
    settings: Mapping[str, Any], folder: checkpoint.ModelFolder | None
) -> dict[str, Any]:
    """Returns settings with the file that heads="identified" stands for: the folder's heads.json.

    Raises:
        ConfigError: there is none.
    """
    if settings.get("heads") != IDENTIFIED:
        return dict(settings)
    path = None if folder is None else folder.path / HEADS
    if path is None or not path.is_file():
        where = "a model without a folder has none" if path is None else f"{path} does not exist"
        raise ConfigError(
            f"heads={IDENTIFIED!r} stands for the model folder's {HEADS}, but {where}; make one "
            "with --job=identify and give its path as heads."
        )
    return {**settings, "heads": str(path)}


def _plain(value: Any) -> Any:
    """A setting as a JSON value."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value.document() if hasattr(value, "document") else str(value)


make_callable(__name__, methods)
