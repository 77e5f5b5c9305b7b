"""The certificate of an edit, read: what was done to the weights of a folder."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from vlm_jax.edits.qk.spec import QKEdit
from vlm_jax.listing import html_table

_SHOWN = ("k", "strength", "method")
_USUAL = json.loads(json.dumps({field.name: field.default for field in dataclasses.fields(QKEdit)}))


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
        for name, value in edit.items() if isinstance(edit, Mapping) else ():
            if name in _SHOWN or value != _USUAL.get(name):
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
