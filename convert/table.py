"""A family's rows as a table, read forwards by import and backwards by export.

A row (`vlm_jax.families.Row`) pairs a checkpoint name with one of our parameter paths and an einops
pattern from the checkpoint's dims to ours. `{i}` stands for the layer number in both. Binding the
rows to a config writes every one out for every layer, with shapes: so each name on disk matches
exactly one row or is unknown, and each row is either on disk or missing. `{x}` stands for the
number of an expert: ours holds a layer's experts stacked, so several names share one path.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from convert import layout
from convert.safetensors_io import STRIP_BYTES, in_order
from vlm_jax.checkpoint import TensorInfo
from vlm_jax.config import VLMConfig
from vlm_jax.errors import CheckpointError
from vlm_jax.families import Family, find

GAP_BYTES = 4096
"""A page: smaller gaps between bytes that are wanted are read with them."""

FLOATS = ("float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A row written out for one layer, and one expert, of one config.

    Attributes:
        pattern: from the checkpoint's dims to those of our array, or of its slice.
        expert: which slice of our array it is; None for the whole.
    """

    name: str
    path: str
    pattern: str
    sizes: Mapping[str, int]
    alias: bool
    expert: int | None = None

    @property
    def disk_shape(self) -> tuple[int, ...]:
        """Its shape in the checkpoint."""
        return layout.shape(self.pattern.split("->")[0], self.sizes)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of our array."""
        stack = () if self.expert is None else (self.sizes["x"],)
        return stack + layout.shape(self.pattern.split("->")[1], self.sizes)

    def disk_rows(self, array: np.ndarray) -> np.ndarray:
        """Our array's memory as integers, in rows of the checkpoint's order: `layout.disk_rows`."""
        part = array if self.expert is None else array[self.expert]
        return layout.disk_rows(layout.bits(part), self.pattern, self.sizes)

    def on_disk(self, array: np.ndarray, index: Sequence[slice]) -> "DiskPart | None":
        """Returns where a part of our array lies in the checkpoint; None if none of it is there.

        Args:
            array: the part.
            index: which it is of our array, as `readable` gives it.

        Raises:
            ValueError: the tensor cannot be read in such parts.
        """
        parts = self._own(index)[1]
        if parts is None:
            raise ValueError(f"{self.name}: {index} cannot be read by itself.")
        if self.expert is not None:
            if not index[0].start <= self.expert < index[0].stop:
                return None
            array = array[self.expert - index[0].start]
        sizes = {letter: part.stop - part.start for letter, part in parts.items()}
        rows = layout.disk_rows(layout.bits(array), self.pattern, sizes)
        return DiskPart(rows, *layout.runs(self.pattern, self.sizes, parts))

    def readable(self, index: Sequence[slice], itemsize: int) -> tuple[slice, ...]:
        """Returns the least part of our array that holds another and can be read by itself.

        That is the part itself, but for dims that the checkpoint mixes with others (all of the
        array then), and for gaps between runs of its bytes that are smaller than a page: a file
        system would read them anyhow.

        Args:
            index: a slice with start and stop of each dim of our array.
            itemsize: bytes of an element.
        """
        own, parts = self._own(index)
        if parts is None:
            return tuple(slice(0, size) for size in self.shape)
        disk, ours = map(layout.groups, self.pattern.split("->"))
        for letter in reversed([letter for group in disk for letter in group]):
            starts, length = layout.runs(self.pattern, self.sizes, parts)
            if len(starts) == 1 or (starts[1] - starts[0] - length) * itemsize >= GAP_BYTES:
                break
            parts[letter] = slice(0, self.sizes[letter])  # the gaps are what it leaves out
        read = (parts[g[0]] if len(g) == 1 else part for g, part in zip(ours, own))
        return (*index[: len(index) - len(own)], *read)

    def _own(self, index: Sequence[slice]) -> tuple[list[slice], dict[str, slice] | None]:
        """The part of our array's dims that the pattern has, and that of the pattern's letters."""
        own = list(index if self.expert is None else index[1:])
        return own, layout.letter_slices(self.pattern, self.sizes, own)

    def to_disk(self, array: np.ndarray) -> Iterator[np.ndarray]:
        """Gives our array's bytes in the checkpoint's order, in pieces.

        Yields:
            contiguous integers.
        """
        rows = self.disk_rows(np.ascontiguousarray(array))
        if rows.flags.c_contiguous:
            yield rows
            return
        step = max(1, STRIP_BYTES // (rows.shape[1] * rows.itemsize))

        def strip(row: int) -> np.ndarray:
            piece = np.empty_like(rows[row : row + step], order="C")
            layout.copy_rows(piece, rows[row : row + step])
            return piece

        yield from in_order(strip, range(0, len(rows), step))


@dataclasses.dataclass(frozen=True)
class DiskPart:
    """Where a part of a tensor lies in a checkpoint, and where it goes.

    Attributes:
        rows: memory of ours, in rows of the checkpoint's order.
        starts: the first element of each run of them in the checkpoint's tensor.
        length: elements of a run.
    """

    rows: np.ndarray
    starts: np.ndarray
    length: int


def bind(config: VLMConfig) -> "Binding":
    """Writes the rows of a config's family out for it."""
    family = find(config.family)
    letters, stacks = family.letters(config), family.stacks(config)
    tensors = []
    for row in family.rows:
        part = row.path.split("/", 1)[0]
        for i in range(stacks[part]) if "{i}" in row.path else (0,):
            if row.when is not None and not row.when(config, i):
                continue
            name, path = row.name.replace("{i}", str(i)), row.path.replace("{i}", str(i))
            sizes = letters[part]
            if "{x}" not in name:
                tensors.append(Tensor(name, path, row.pattern, sizes, row.alias))
                continue
            pattern = row.pattern.replace("-> x ", "-> ")
            for x in range(sizes["x"]):
                one = name.replace("{x}", str(x))
                tensors.append(Tensor(one, path, pattern, sizes, row.alias, x))
    return Binding(family, tensors)


class Binding:
    """A family's rows written out for a config, in order.

    Attributes:
        by_name: every tensor.
        by_path: one tensor of each of our arrays.
        parameters: every tensor but the aliases.
    """

    def __init__(self, family: Family, tensors: list[Tensor]):
        self.family = family
        self.by_name = {tensor.name: tensor for tensor in tensors}
        self.parameters = [tensor for tensor in tensors if not tensor.alias]
        self.by_path = {tensor.path: tensor for tensor in self.parameters}
        if len(self.by_name) != len(tensors):
            raise ValueError(f"two rows of the family {family.name} share a name")

    def canonical(self, name: str) -> str:
        """The hub's spelling of a name on disk."""
        return _respelt(name, self.family.spellings)

    def spell(self, name: str, names: str) -> str:
        """A name on disk in another spelling: "hub", or "saved" as transformers 5 does."""
        hub = self.canonical(name)
        return _respelt(hub, self.family.saved) if names == "saved" else hub

    def is_buffer(self, name: str) -> bool:
        """Whether a name on disk is a known non-parameter."""
        return any(re.search(pattern, name) for pattern in self.family.buffers)

    def match(self, found: Mapping[str, TensorInfo], where: str) -> dict[str, Tensor]:
        """Pairs the names on disk with the table's tensors.

        Args:
            found: shape and dtype of every tensor on disk.
            where: the folder, for the error.

        Returns:
            disk name -> tensor, for every name that is not a buffer.

        Raises:
            CheckpointError: some are unknown, missing, misshapen or not floating point; the message
                lists every one.
        """
        matched: dict[str, Tensor] = {}
        unknown, misshapen, mistyped = [], [], []
        spelt: dict[str, str] = {}
        for name, info in found.items():
            canonical = self.canonical(name)
            tensor = self.by_name.get(canonical)
            if tensor is None:
                if not self.is_buffer(name):
                    unknown.append(name)
                continue
            if canonical in spelt:
                unknown.append(f"{name} (a second spelling of {spelt[canonical]})")
                continue
            spelt[canonical] = name
            matched[name] = tensor
            if info.shape != tensor.disk_shape:
                misshapen.append(f"{name} has {list(info.shape)}, needs {list(tensor.disk_shape)}")
            elif info.dtype.name not in FLOATS:
                mistyped.append(f"{name} is {info.dtype.name}")
        missing = [t.name for t in self.parameters if t.name not in spelt]
        problems = [
            f"{len(lines)} {title}: {'; '.join(lines)}"
            for title, lines in (
                ("unknown", unknown),
                ("missing", missing),
                ("misshapen", misshapen),
                (f"not {', '.join(FLOATS[:-1])} or {FLOATS[-1]}", mistyped),
            )
            if lines
        ]
        if problems:
            raise CheckpointError(
                f"{where} does not hold the {self.family.name} model that its config.json "
                f"describes. {'. '.join(problems)}. Does config.json belong to these weights?"
            )
        return matched


def _respelt(name: str, rules: Iterable[tuple[str, str]]) -> str:
    """A name by the first rule that matches it, or as it is."""
    for pattern, replacement in rules:
        spelt, count = re.subn(pattern, replacement, name, count=1)
        if count:
            return spelt
    return name
