"""Writes what pages say of methods from the code, so that it cannot be wrong.

    python docs/settings.py

Each page of docs/methods has, between the marks `<!-- settings -->` and `<!-- end -->`, the table
of its method's settings: names and defaults as `vlm_jax.methods()` has them, and what their
docstrings say. docs/methods/index.md has the table of all methods, and of those that cannot act
together, which is found by trying every pair. A test holds both to the code.
"""

import dataclasses
import functools
import inspect
import itertools
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

import vlm_jax
from vlm_jax.decoding import named
from vlm_jax.decoding.rerankers import RERANKERS
from vlm_jax.decoding.search.beam import Beam
from vlm_jax.edits import EDITS
from vlm_jax.errors import ConfigError
from vlm_jax.steering.classes import Selection
from vlm_jax.steering.methods import METHODS

PAGES = pathlib.Path(__file__).parent / "methods"
KINDS = {"weights": "Edits of weights", "attention": "Attention", "decoding": "Decoding"}
BEAM = "beam"
"""The search that is a setting of decoding, `num_beams`, and no method of its own."""
_BETWEEN = re.compile(r"(<!-- settings -->\n).*?(<!-- end -->)", re.DOTALL)
_SECTION = re.compile(r"^(Args|Attributes):\n(.*?)(?=^\S|\Z)", re.MULTILINE | re.DOTALL)
_ENTRY = re.compile(r"^    (\w[\w, ]*): (.*?)(?=^    \w|\Z)", re.MULTILINE | re.DOTALL)
_ALIKE = re.compile(r"^as for `(\w+)`[;.] ?")


known = functools.cache(vlm_jax.methods)


@functools.cache
def documented(name: str) -> list[Any]:
    """Returns what has the docstrings of a method's settings, the first that speaks counts."""
    if name == BEAM:
        return [Beam]
    kind = known()[name].kind
    if kind == "weights":
        return [EDITS.find(name).settings]
    if kind == "attention":
        return [METHODS.find(name), Selection]
    if name in RERANKERS.names():
        return [RERANKERS.find(name)]
    return list(named.find(name).__mro__[:-1])


@functools.cache
def meanings(documented: Any) -> dict[str, str]:
    """Returns what a docstring says of each argument or attribute, on one line."""
    found: dict[str, str] = {}
    for _, section in _SECTION.findall(inspect.getdoc(documented) or ""):
        for given, text in _ENTRY.findall(section):
            for one in given.split(", "):
                found[one] = " ".join(text.split())
    return found


def defaults(name: str) -> Mapping[str, Any]:
    """Returns a method's settings and their defaults."""
    if name == BEAM:
        return {field.name: field.default for field in dataclasses.fields(Beam)}
    return known()[name].settings


def meaning(name: str, setting: str) -> str:
    """Returns what a setting of a method means, in the words of the code.

    Raises:
        LookupError: no docstring says it.
    """
    for one in documented(name):
        said = meanings(one).get(setting)
        if said is None:
            continue
        other = _ALIKE.match(said)
        if other is None:
            return said
        own = said[other.end() :]
        return f"{meaning(other[1], setting)} {own[:1].upper()}{own[1:]}".strip()
    raise LookupError(f"no docstring says what {setting} of {name} is")


def table(name: str) -> str:
    """Returns the table of a method's settings as Markdown."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for setting, default in defaults(name).items():
        said = meaning(name, setting).replace("|", "\\|")
        rows.append(f"| `{setting}` | `{default!r}` | {said} |")
    return "\n".join(rows) + "\n"


def overview() -> str:
    """Returns the table of all methods, by what they act on, as Markdown."""
    parts = []
    for kind, title in KINDS.items():
        parts += [f"### {title}\n", "| method | what it does |", "|---|---|"]
        for name, method in known().items():
            if method.kind == kind:
                summary = method.summary.replace("|", "\\|")
                parts.append(f"| [`{name}`]({name}.md) | {summary} |")
        if kind == "decoding":
            line = (inspect.getdoc(Beam) or "").splitlines()[0]
            parts.append(f"| [`num_beams`]({BEAM}.md) | {line} |")
        parts.append("")
    return "\n".join(parts)


def trials(layers: int, heads: int, width: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Returns every method, and variants that differ in what they go with, as they are tried.

    What pages call each -> its name, and settings with which it acts on a model of these sizes.
    """
    vectors = np.ones((layers, width))
    needed = {
        "agla": {"mask": _whole},
        "cgd": {"scorer": _lengths},
        "halc": {"detector": _middle, "tagger": bool, "matcher": _lengths},
        "head_gains": {"gains": np.full((layers, heads), 0.5)},
        "activation_addition": {"vectors": vectors},
        "vti": {"vectors": vectors},
        **{name: {"heads": "all"} for name in ("air", "air_star", "adhh")},
        "functional_heads": {"perception_from": 0.3, "perception_gain": 1.2},
        "farsight": {"mode": "budget"},
        "pai": {"first_layer": 1},
        "qk": {"band": (0.0, 1.0)},
    }
    found = {name: (name, needed.get(name, {})) for name in known()}
    variants = {
        "air": {"zero_trace": "running"}, "air_star": {"faithful": True},
        "functional_heads": {"passes": 2},
    }  # fmt: skip
    for name, settings in variants.items():
        ((setting, value),) = settings.items()
        found[f"{name}({setting}={value!r})"] = name, {**found[name][1], **settings}
    return found


def _whole(image: Any, prompt: Any) -> np.ndarray:
    """A mask that keeps the whole image."""
    return np.ones((image.height, image.width), int)


def _middle(image: Any, word: str) -> list[tuple[float, float, float, float]]:
    """One box in the middle of an image."""
    return [(0.2, 0.2, 0.8, 0.8)]


def _lengths(texts: Any, image: Any) -> list[float]:
    """Scores of texts: longer ones fit better."""
    return [float(len(text)) for text in texts]


def refusals(model: Any) -> dict[str, dict[str, str]]:
    """Returns which methods a model does not take together: name -> later one -> the error."""
    decoder = model.config.decoder
    tried = trials(decoder.num_layers, decoder.num_heads, decoder.hidden_size)
    made = {
        label: model.apply(name, **settings).treatments[0]
        for label, (name, settings) in tried.items()
    }
    found: dict[str, dict[str, str]] = {label: {} for label in made}
    for one, other in itertools.permutations(made, 2):
        try:
            made[other].check_beside([made[one]])
        except ConfigError as error:
            found[one][other] = str(error)
    return found


def together() -> str:
    """Returns the table of methods that cannot act together, as Markdown."""
    refused = refusals(vlm_jax.load("llava-0"))
    decoding = {name for name, method in known().items() if method.kind == "decoding"}
    of = {label: label.split("(")[0] for label in refused}
    rows = ["| method | not beside |", "|---|---|"]
    for label, others in refused.items():
        listed = sorted(other for other in others if of[other] != of[label])
        said = []
        if label in decoding and decoding - {label} <= set(listed):
            listed = [other for other in listed if other not in decoding]
            said = ["any other of decoding"]
        if said or listed:
            names = ", ".join([*said, *(f"`{other}`" for other in listed)])
            rows.append(f"| `{label}` | {names} |")
    return "\n".join(rows) + "\n"


def pages() -> dict[pathlib.Path, str]:
    """Returns each page of docs/methods with its table as the code has it."""
    found = {}
    for path in sorted(PAGES.glob("*.md")):
        made = iter([overview(), together()] if path.stem == "index" else [table(path.stem)])
        text = path.read_text(encoding="utf-8")
        found[path] = _BETWEEN.sub(
            lambda m, made=made: f"{m[1]}\n{next(made).strip()}\n\n{m[2]}", text
        )
    return found


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
