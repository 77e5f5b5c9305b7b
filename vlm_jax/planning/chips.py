"""Accelerators by name: what their data sheets say."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of a data sheet, and what compilers say of the chip.

    Attributes:
        flops: dense bfloat16 FLOP/s.
        bandwidth: bytes/s of memory.
        memory: bytes of memory.
        room: bytes that the compiler lets programs have; 0 where it leaves that to the runtime.
        clock: cycles/s: `flops` over what the matrix units do in a cycle (v5e 4 of 128 x 128
            products and sums, v5p 8 of them, v6e 4 of 256 x 256); 0 where nothing counts cycles.
    """

    flops: float
    bandwidth: float
    memory: float
    room: float = 0.0
    clock: float = 0.0

    @property
    def usable(self) -> float:
        """Bytes that programs may have."""
        return self.room or self.memory

    def seconds(self, flops: float, bytes_accessed: float) -> float:
        """Returns the roofline's time of a program: whatever of both bounds it."""
        return max(flops / self.flops, bytes_accessed / self.bandwidth)


CHIPS = {
    "H100 SXM": Chip(989e12, 3.35e12, 80e9),
    "H200": Chip(989e12, 4.8e12, 141e9),
    "TPU v5e": Chip(197e12, 0.819e12, 16e9, 15.75 * 2**30, 1.5e9),
    "TPU v5p": Chip(459e12, 2.765e12, 95e9, 95.73 * 2**30, 1.75e9),
    "TPU v6e": Chip(918e12, 1.64e12, 32e9, 31.24 * 2**30, 1.75e9),
}
"""NVIDIA's and Google Cloud's data sheets; room as libtpu 0.0.48 says it."""

USABLE = 0.9
"""Share of a chip's memory for weights and caches; activations and the runtime take the rest."""
