"""Tables of what the Python interface returns: as text, and as HTML in a notebook.

All texts are escaped: what a model says is never markup.
"""

import html
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from vlm_jax.terminal import written

Entry = TypeVar("Entry")

_STYLE = "text-align:left;vertical-align:top;white-space:pre-wrap;max-width:40em"


def html_table(headers: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> str:
    """Returns an HTML table of texts, all escaped; cells with `_repr_html_` show themselves."""
    cell = lambda tag, value: f'<{tag} style="{_STYLE}">{_shown(value)}</{tag}>'
    head = "".join(cell("th", name) for name in headers)
    body = "".join(f"<tr>{''.join(cell('td', value) for value in row)}</tr>" for row in rows)
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _shown(value: Any) -> str:
    shown = getattr(value, "_repr_html_", None)
    return shown() if shown is not None else html.escape(str(value))


class Listing(Mapping[str, Entry]):
    """Things by name, shown as a table.

    Args:
        entries: by name.
        title: of the table.
        columns: header -> function that gives an entry's cell.
    """

    def __init__(self, entries: Mapping[str, Entry], title: str, columns: Mapping[str, Any]):
        self._entries, self._title, self._columns = dict(entries), title, dict(columns)

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _rows(self) -> list[list[str]]:
        cells = lambda entry: [str(column(entry)) for column in self._columns.values()]
        return [[name, *cells(entry)] for name, entry in self._entries.items()]

    def __repr__(self) -> str:
        return written([self._title, *self._columns], self._rows())

    def _repr_html_(self) -> str:
        return html_table([self._title, *self._columns], self._rows())


def lines(entries: Mapping[str, str], title: str) -> Listing[str]:
    """Returns a listing of things with one line each."""
    return Listing(entries, title, {"what it is": str})


def make_callable(module: str, function: Callable[[], Any]) -> None:
    """Lets a module be called, for one that has the name of a function of the package.

    `vlm_jax.families()` lists the families, though importing the room `vlm_jax.families` puts the
    module in the function's place.
    """
    call = lambda _: function()
    kind = type("CallableModule", (types.ModuleType,), {"__call__": call})
    sys.modules[module].__class__ = kind
