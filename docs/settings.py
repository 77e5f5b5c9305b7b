"""Writes what pages say of methods from the code, so that it cannot be wrong.

    python docs/settings.py

Each page of docs/methods has, between the marks `<!-- settings -->` and `<!-- end -->`, the table
of its method's settings: names and defaults as `vlm_jax.methods()` has them, and what their
docstrings say. docs/methods/index.md has the table of all methods. A test holds both to the code.
"""

import dataclasses
import functools
import inspect
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import vlm_jax
from vlm_jax import edits
from vlm_jax.decoding import named
from vlm_jax.decoding.rerankers import RERANKERS
from vlm_jax.decoding.search.beam import Beam
from vlm_jax.steering import methods as attention
from vlm_jax.steering.classes import Selection

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
        return [edits.find(name).settings]
    if kind == "attention":
        return [attention.find(name), Selection]
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


def pages() -> dict[pathlib.Path, str]:
    """Returns each page of docs/methods with its table as the code has it."""
    found = {}
    for path in sorted(PAGES.glob("*.md")):
        made = overview() if path.stem == "index" else table(path.stem)
        text = path.read_text(encoding="utf-8")
        found[path] = _BETWEEN.sub(lambda m, made=made: f"{m[1]}\n{made.strip()}\n\n{m[2]}", text)
    return found


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
