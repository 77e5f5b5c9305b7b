"""What a plan says: each program, whether it fits, and the least that holds all of them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vlm_jax.listing import html_table
from vlm_jax.planning.compiled import CompiledProgram
from vlm_jax.terminal import shown


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """The least that holds what was planned.

    Attributes:
        topology: the smallest slice of the same generation.
        data, model: replicas of the slice, and chips of each.
        compiled: whether this is what was compiled; otherwise it is computed from sizes.
    """

    topology: str
    data: int
    model: int
    compiled: bool

    def __str__(self) -> str:
        how = "as compiled" if self.compiled else "computed from sizes; plan it to be sure"
        count = lambda number, what: f"{number} {what}{'s' * (number != 1)}"
        return (
            f"{self.topology} with --config.mesh.model={self.model} "
            f"({count(self.data, 'replica')} of {count(self.model, 'chip')}; {how})"
        )


@dataclasses.dataclass(frozen=True)
class HardwarePlan:
    """What some hardware makes of a model's programs.

    Attributes:
        identity: what was planned, as JSON values.
        programs: by name.
        suggestion: the least that holds it; None where nothing that is known does.
    """

    identity: Mapping[str, Any]
    programs: Mapping[str, CompiledProgram]
    suggestion: Suggestion | None = None

    @property
    def fits(self) -> bool:
        """Whether every program fits."""
        return all(program.fits for program in self.programs.values())

    def document(self) -> dict[str, Any]:
        """Returns JSON values."""
        suggestion = None if self.suggestion is None else dataclasses.asdict(self.suggestion)
        programs = {name: dataclasses.asdict(one) for name, one in self.programs.items()}
        return {"identity": dict(self.identity), "programs": programs, "suggestion": suggestion}

    def _table(self) -> tuple[list[str], list[list[str]]]:
        headers = [
            "program", "fits", "arguments", "temporary", "peak, GB", "GFLOP", "GB accessed",
            "GB moved", "roofline, ms", "compiler, ms", "collectives", "compiled, s",
        ]  # fmt: skip
        return headers, [_row(name, program) for name, program in self.programs.items()]

    def _kinds(self) -> list[list[str]]:
        return [
            [name, kind, _figure(one.accessed, 1e9), _figure(one.moved, 1e9)]
            for name, program in self.programs.items()
            for kind, one in program.by_kind.items()
        ]

    def __str__(self) -> str:
        what = self.identity
        mesh, sizes = what["mesh"], what["sizes"]
        head = (
            f"{what['source']} on {what['topology']}, a machine's mesh of data {mesh['data']} x "
            f"model {mesh['model']}: {what['rows']} rows of {sizes['length']} tokens "
            f"({sizes['image_tokens']} of images), {what['new_tokens']} new; figures a chip, the "
            "bodies of loops once."
        )
        lines = [head, "", shown(*self._table()), ""]
        kinds = self._kinds()
        lines += [shown(["program", "kind", "GB accessed", "GB moved"], kinds), ""] if kinds else []
        why = [f"{name}: {one.reason}" for name, one in self.programs.items() if one.reason]
        lines += [f"Does not fit: {'; '.join(why)}.", ""] if why else []
        least = self.suggestion or "nothing that is known of this generation holds it"
        return "\n".join([*lines, f"Smallest: {least}."])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(*self._table())


def _figure(value: float | None, scale: float, digits: int = 2) -> str:
    return "-" if value is None else f"{value / scale:,.{digits}f}"


def _row(name: str, program: CompiledProgram) -> list[str]:
    collectives = ", ".join(f"{count} {kind}" for kind, count in program.collectives.items())
    limit = "" if program.memory_bytes is None else f" of {program.memory_bytes / 1e9:.1f}"
    return [
        name,
        "yes" if program.fits else "NO",
        _figure(program.argument_bytes, 1e9),
        _figure(program.temp_bytes, 1e9),
        _figure(program.peak_bytes, 1e9) + limit,
        _figure(program.flops, 1e9, 0),
        _figure(program.bytes_accessed, 1e9),
        _figure(program.moved_bytes, 1e9),
        _figure(program.roofline_seconds, 1e-3),
        _figure(program.compiler_seconds, 1e-3),
        collectives or ("-" if program.argument_bytes is None else "none"),
        f"{program.compile_seconds:.0f}",
    ]
