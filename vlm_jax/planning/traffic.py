"""Bytes that a compiled program moves to and from a chip's main memory, read off its text.

What a compiler calls "bytes accessed" is a sum over operations, and above this: operands in the
chip's fast memory count like others; a weight that is brought there first counts as it is read,
written, waited for and read again; a gather counts its whole table, and a write of one slot into a
cache the whole cache, twice. Here

    a step reads w, 8 MB in main memory:    copy-start(w) 8, fusion of the copy 0
    it looks up 8 rows of a table of 1 GB:  8 rows
    it writes a slot of a cache in place:   the slot

Bodies of loops count once, as compilers count them.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
)  # fmt: skip
_BYTES = {
    "pred": 1, "s4": 1, "u4": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2,
    "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8,
}  # fmt: skip
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"  (ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_OPERAND = re.compile(r"%([\w.\-]+)")
_RUN = re.compile(r"\b(?:body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_FUSED = re.compile(r"calls=%?([\w.\-]+)")
_FAST = "S("
"""Of a layout: a memory space of its own, of which the main memory, 0, has none."""

_NAMES = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "call",
    "conditional", "partition-id", "replica-id", "opt-barrier", "iota",
})  # fmt: skip
"""What does nothing by itself."""

_ENDS = frozenset({
    "copy-done", "slice-done", "all-reduce-done", "all-gather-done", "collective-permute-done",
    "async-done", "async-update",
})  # fmt: skip
"""Ends of what was counted at its start."""

_PICKS = frozenset({"dynamic-slice", "slice", "gather"})
_BETWEEN = frozenset({"copy-start", "copy-done", "slice-start", "slice-done"})
"""Copies to fast memory, and from it, beside what runs meanwhile."""

_OP_NAME = re.compile(r'op_name="([^"]*)"')
_SPACE = re.compile(r"S\(\d+\)")
_KERNEL = re.compile(r'"bytes_accessed":"(\d+)"')
_CALLED = re.compile(r"jit\(([a-z]\w*)\)")


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool


def moved_bytes(text: str) -> int:
    """Returns the bytes that a program moves to and from main memory, loops' bodies once.

    Args:
        text: of an optimised program, as `compiled.as_text()` gives it.
    """
    computations, entry = _parsed(text)
    return sum(
        _moved(computations, one, given)
        for name in _run(computations, entry)
        for one, given in _with_operands(computations.get(name, []))
    )


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes of some instructions of a program.

    Attributes:
        accessed: operands and results wherever they lie, as compilers count them.
        moved: to and from main memory.
    """

    accessed: int
    moved: int


COPIES = "copies to fast memory"


def traffic_by_kind(text: str, accessed: float) -> dict[str, Traffic]:
    """Returns what each kind of instruction accesses and moves, the most first.

    Kinds are products, kernels, each collective, copies to fast memory, and of other instructions
    the function or the operation that they come from; what is less than 1 % is put together.

    Args:
        text: as of `moved_bytes`.
        accessed: of the whole program by its compiler. Copies have what no other kind has of it: a
            copy is an instruction that starts it and one that awaits it, and the compiler counts
            what both name, six times its bytes where it is made in one piece.
    """
    computations, entry = _parsed(text)
    found, moved = Counter[str](), Counter[str]()
    for name in _run(computations, entry):
        for one, given in _with_operands(computations.get(name, [])):
            kind = _kind(computations, one)
            found[kind] += 0 if kind == COPIES else _accessed(computations, one, given)
            moved[kind] += _moved(computations, one, given)
    found[COPIES] = round(accessed) - found.total()
    least = accessed / 100, moved.total() / 100
    small = [kind for kind in found if found[kind] < least[0] and moved[kind] < least[1]]
    for counter in (found, moved):
        counter["other"] += sum(counter.pop(kind, 0) for kind in small if kind != "other")
    return {
        kind: Traffic(count, moved[kind])
        for kind, count in found.most_common()
        if count or moved[kind]
    }


def _parsed(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    found: dict[str, list[_Instruction]] = {}
    entry, here = "", []
    for line in text.splitlines():
        if opened := _COMPUTATION.match(line):
            here = found.setdefault(opened[2], [])
            entry = opened[2] if opened[1] else entry
        elif one := _INSTRUCTION.match(line):
            root, name, shape, kind, rest = one.groups()
            named = tuple(_OPERAND.findall(_arguments(rest)))
            here.append(_Instruction(name, shape, kind, named, rest, bool(root)))
    return found, entry


def _arguments(rest: str) -> str:
    """Returns what stands before the parenthesis that closes a call."""
    depth = 1
    for at, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return rest[:at]
    return rest


def _run(computations: dict[str, list[_Instruction]], entry: str) -> list[str]:
    """Returns the computations that run by themselves, each once: no fusions, no reducers."""
    found = [entry]
    for name in found:
        for one in computations.get(name, ()):
            if one.kind not in ("while", "call", "conditional"):
                continue
            branches = _BRANCHES.search(one.rest)
            inner = [*_RUN.findall(one.rest), *_OPERAND.findall(branches[1] if branches else "")]
            found += [other for other in inner if other not in found]
    return found


def _size(shape: str) -> int:
    """Returns the bytes of a shape's arrays that lie in main memory."""
    return sum(
        _BYTES.get(kind, 0) * math.prod(int(dim) for dim in dims.split(",") if dim)
        for kind, dims, layout in _ARRAY.findall(shape)
        if _FAST not in layout
    )


def _parts(shape: str) -> list[str]:
    """Returns the arrays of a tuple's shape, or the one that there is."""
    return [found[0] for found in _ARRAY.finditer(shape)]


def _with_operands(here: list[_Instruction]) -> Iterator[tuple[_Instruction, list[str]]]:
    """Yields what a computation does, with the shapes of what it is done to."""
    shapes = {one.name: one.shape for one in here}
    for one in here:
        if one.kind not in _NAMES:
            yield one, [shapes.get(operand, "") for operand in one.operands]


def _moved(
    computations: dict[str, list[_Instruction]], one: _Instruction, given: Sequence[str]
) -> int:
    if one.kind in _ENDS:
        return 0
    if one.kind in ("copy-start", "slice-start"):
        # Results are what is made and, beside it, what it is made of.
        made = _parts(one.shape)[0 if one.kind == "copy-start" else len(given)]
        source = re.sub(r"\{[^}]*\}", "", made) if _size(given[0]) else ""
        return _size(made) + _size(source)
    if one.kind == "fusion":
        fused = _FUSED.search(one.rest)
        return _fusion(computations.get(fused[1], []) if fused else [], given, one.shape)
    if one.kind.endswith("-start"):
        return 2 * sum(map(_size, given))
    if one.kind in _PICKS:
        return 2 * _size(one.shape) if _size(given[0]) else _size(one.shape)
    if one.kind == "dynamic-update-slice":
        return _size(given[1]) + (_plain(given[1]) if _size(one.shape) else 0)
    return _size(one.shape) + sum(map(_size, given))


def _accessed(
    computations: dict[str, list[_Instruction]], one: _Instruction, given: Sequence[str]
) -> int:
    if one.kind == "custom-call" and (kernel := _KERNEL.search(one.rest)):
        return int(kernel[1])
    anywhere = dataclasses.replace(one, shape=_SPACE.sub("", one.shape))
    return _moved(computations, anywhere, [_SPACE.sub("", shape) for shape in given])


def _kind(computations: dict[str, list[_Instruction]], one: _Instruction) -> str:
    """Returns what an instruction is called in `traffic_by_kind`."""
    if one.kind in _BETWEEN or '"ConcatBitcast"' in one.rest:
        return COPIES
    if one.kind == "custom-call" and _KERNEL.search(one.rest):
        return "kernels"
    fused = _FUSED.search(one.rest)
    inside = {each.kind for each in computations.get(fused[1] if fused else "", ())} | {one.kind}
    for collective in COLLECTIVES:
        if collective in inside or f"{collective}-start" in inside:
            return collective
    if inside & {"dot", "convolution"}:
        return "products"
    named = _OP_NAME.search(one.rest)
    if named is None:
        return "other"
    called = _CALLED.findall(named[1])[1:]  # the program itself is the first
    return called[-1] if called else named[1].rsplit("/", 1)[-1].split(".")[0]


def _plain(shape: str) -> int:
    """Returns the bytes of a shape, wherever it lies."""
    return _size(re.sub(r"\{[^}]*\}", "", shape))


def _fusion(inside: list[_Instruction], given: Sequence[str], made: str) -> int:
    """Returns what a fusion moves: of what it only picks from, or writes into, that part alone."""
    shapes = {one.name: one.shape for one in inside}
    numbers: dict[str, int] = {}
    for one in inside:
        if one.kind == "parameter" and (number := re.match(r"\d+", one.rest)):
            numbers[one.name] = int(number[0])
    written: dict[str, str] = {}  # what is changed in place -> what is written into it
    total = 0
    for name, number in numbers.items():
        shape = given[number] if number < len(given) else ""
        if not _size(shape):
            continue
        uses = [one for one in inside if name in one.operands]
        updates = [one for one in uses if one.kind == "dynamic-update-slice"]
        if uses and all(one.kind in _PICKS and one.operands[0] == name for one in uses):
            total += min(_size(shape), sum(_plain(one.shape) for one in uses))
        elif len(uses) == len(updates) == 1 and updates[0].operands[0] == name:
            written[updates[0].name] = shapes[updates[0].operands[1]]
        else:
            total += _size(shape)
    root = next((one for one in inside if one.is_root), None)
    parts, ends = _parts(made), [] if root is None else [root.name]
    if root is not None and root.kind == "tuple":
        ends = list(root.operands)
    if len(ends) != len(parts):
        return total + _size(made)
    for end, part in zip(ends, parts):
        total += (_plain(written[end]) if _size(part) else 0) if end in written else _size(part)
    return total
