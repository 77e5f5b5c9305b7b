"""What a compiler says of a program: memory, work, collectives; or that it does not fit."""

import dataclasses
import math
import re
import time
from collections import Counter
from typing import Any

import jax

from vlm_jax.planning.chips import Chip
from vlm_jax.planning.traffic import COLLECTIVES, Traffic, moved_bytes, traffic_by_kind

_CALL = re.compile(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# Of libtpu: "... Used 17.42G of 15.75G hbm. ...", or "... the total memory required for HLO
# temporaries (298.12G) exceeds available HBM (15.75G)."
_USED = re.compile(
    r"(?:Used |temporaries \()([\d.]+)([KMG])\)? (?:of|exceeds available HBM) \(?([\d.]+)([KMG])"
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
_EXHAUSTED = ("RESOURCE_EXHAUSTED", "Ran out of memory", "out of memory")


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """One program, a chip's share of it; None of what no compiler said.

    Attributes:
        fits: whether it fits the chip's memory.
        argument_bytes: weights, caches and inputs that it reads.
        idle_bytes: weights that lie beside them: a decode step reads no vision tower.
        temp_bytes: what it needs while it runs.
        peak_bytes: all that is there at once: arguments, weights beside them, temporary, and
            results that do not take an argument's place.
        memory_bytes: of the chip that programs may have.
        flops, bytes_accessed: of one run, the bodies of loops once: of decode a step.
        moved_bytes: of these, what goes to and from the chip's main memory by the program's text
            (`vlm_jax.planning.traffic`).
        roofline_seconds: the least time that flops and bytes accessed take by the chip's data
            sheet.
        compiler_seconds: the sum of what the compiler expects of each instruction.
        collectives: kind -> how many instructions of it there are.
        compile_seconds: on this machine.
        reason: why it does not fit, in one line; "" if it does.
        by_kind: kind of instruction -> its share of the bytes; empty where nobody asked.
    """

    fits: bool
    argument_bytes: int | None = None
    idle_bytes: int | None = None
    temp_bytes: int | None = None
    peak_bytes: int | None = None
    memory_bytes: int | None = None
    flops: float | None = None
    bytes_accessed: float | None = None
    moved_bytes: int | None = None
    roofline_seconds: float | None = None
    compiler_seconds: float | None = None
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)
    compile_seconds: float = 0.0
    reason: str = ""
    by_kind: dict[str, Traffic] = dataclasses.field(default_factory=dict)


def compile_program(
    lowered: Any, chip: Chip | None, given: Any = (), *, by_kind: bool = False
) -> CompiledProgram:
    """Compiles a lowered program.

    Args:
        lowered: of `jax.jit(...).lower` or `jax.pmap(...).lower`.
        chip: that it is for; None: nothing is known of its peaks.
        given: the shapes that it was lowered for, those too that it does not read; with shardings.
        by_kind: whether to tell kinds of instructions apart.
    """
    begun = time.monotonic()
    try:
        compiled = lowered.compile()
    except Exception as error:
        said = str(error)
        if not any(word in said for word in _EXHAUSTED):
            raise
        return _too_large(said, time.monotonic() - begun)
    seconds = time.monotonic() - begun
    memory, cost, text = compiled.memory_analysis(), _cost(compiled), compiled.as_text() or ""
    held, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    idle = max(sum(map(_shard_bytes, jax.tree.leaves(given))) - held, 0)
    peak = held + idle + temporary + memory.output_size_in_bytes - memory.alias_size_in_bytes
    flops, accessed = cost.get("flops"), cost.get("bytes accessed")
    known = chip is not None and flops is not None and accessed is not None
    cycles = sum(map(int, _CYCLES.findall(text)))
    fits = chip is None or peak <= chip.usable
    return CompiledProgram(
        fits=fits,
        argument_bytes=held,
        idle_bytes=idle,
        temp_bytes=temporary,
        peak_bytes=peak,
        memory_bytes=None if chip is None else int(chip.usable),
        flops=flops,
        bytes_accessed=accessed,
        moved_bytes=moved_bytes(text) if text else None,
        roofline_seconds=chip.seconds(flops, accessed) if known else None,  # type: ignore[union-attr]
        compiler_seconds=cycles / chip.clock if chip is not None and chip.clock else None,
        collectives=dict(sorted(Counter(_CALL.findall(text)).items())),
        compile_seconds=round(seconds, 2),
        reason="" if fits else f"{peak / 1e9:.1f} GB of {chip.usable / 1e9:.1f}",  # type: ignore[union-attr]
        by_kind=traffic_by_kind(text, accessed) if by_kind and text and accessed else {},
    )


def _shard_bytes(leaf: Any) -> int:
    """Returns the bytes of one device's share of an array."""
    sharding = getattr(leaf, "sharding", None)
    shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize


def _cost(compiled: Any) -> dict[str, float]:
    found = compiled.cost_analysis()
    return (found[0] if isinstance(found, list) else found) or {}


def _too_large(said: str, seconds: float) -> CompiledProgram:
    """What is left of a program that the compiler found no room for."""
    used = _USED.search(said)
    amount = lambda at: int(float(used[at]) * _UNITS[used[at + 1].upper()])  # type: ignore[index]
    return CompiledProgram(
        fits=False,
        peak_bytes=amount(1) if used else None,
        memory_bytes=amount(3) if used else None,
        compile_seconds=round(seconds, 2),
        reason=f"{amount(1) / 1e9:.1f} GB of {amount(3) / 1e9:.1f}" if used
        else said.splitlines()[0][:200],
    )  # fmt: skip
