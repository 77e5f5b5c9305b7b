"""The certificate of an edit, read: what was done to the weights of a folder."""

import dataclasses
import json
from typing import Any

import msgspec

from vlm_jax.edits.qk.spec import QKEdit
from vlm_jax.foreign import convert, parse_json
from vlm_jax.listing import html_table

_SHOWN = ("k", "strength", "method")
_USUAL = json.loads(json.dumps({field.name: field.default for field in dataclasses.fields(QKEdit)}))


class _Done(msgspec.Struct):
    energy_removed: float | None = None
    dw_norm: float | None = None


class _Norm(msgspec.Struct):
    reinflation: float | None = None


class _Totals(msgspec.Struct):
    heads: int | None = None
    norm: _Norm = msgspec.field(default_factory=_Norm)
    edit: _Done = msgspec.field(default_factory=_Done)


class _Shown(msgspec.Struct):
    """What is shown of a certificate."""

    kind: str = ""
    edit: dict[str, Any] = {}
    layers: list[int] | None = None
    summary: _Totals = msgspec.field(default_factory=_Totals)


class Certificate(dict[str, Any]):
    """The certificate of an edit: its fields, shown as a table of what was done.

    Attributes:
        content: the bytes of its file.

    Raises:
        CheckpointError: it is no certificate.
    """

    def __init__(self, content: bytes):
        super().__init__(parse_json(content, dict[str, Any], "the certificate"))
        self.content = content
        self._shown = convert(dict(self), _Shown, "the certificate")

    def _summary(self) -> dict[str, str]:
        known = self._shown
        shown = {"kind": known.kind}
        for name, value in known.edit.items():
            if name in _SHOWN or value != _USUAL.get(name):
                shown[name] = str(value)
        if known.layers is not None:
            shown["layers"] = ", ".join(map(str, known.layers))
        if known.summary.heads is not None:
            shown["heads"] = str(known.summary.heads)
        done = known.summary.edit
        if done.energy_removed is not None:
            shown["energy removed, median"] = f"{100 * done.energy_removed:.1f} %"
        if done.dw_norm is not None:
            shown["norm of the change"] = f"{done.dw_norm:.4g}"
        grown = known.summary.norm.reinflation
        if grown is not None:
            shown["the norm of queries scales the rest up by"] = f"{grown:.3g}"
        return shown

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self._summary().items())

    def _repr_html_(self) -> str:
        return html_table(["certificate", ""], list(self._summary().items()))
