"""What the reference makes of docstrings: run by mkdocstrings."""

import re
from typing import Any

import griffe

_JOINED = re.compile(
    r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+): (?P<said>.*(?:\n(?P=indent) +\S.*)*)", re.MULTILINE
)


def separate(docstring: str) -> str:
    """Returns a docstring in which each argument has an entry of its own.

    separate("    a, b: of it")  ->  "    a: of it\\n    b: of it"
    """

    def apart(entry: re.Match) -> str:
        names = entry["names"].split(", ")
        return "\n".join(f"{entry['indent']}{name}: {entry['said']}" for name in names)

    return _JOINED.sub(apart, docstring)


class Separate(griffe.Extension):
    """Separates arguments that share an entry, in docstrings of everything."""

    def on_object(self, *, obj: griffe.Object, **rest: Any) -> None:
        """See `griffe.Extension`."""
        if obj.docstring is not None:
            obj.docstring.value = separate(obj.docstring.value)
