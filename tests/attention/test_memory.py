"""What long prompts hold in memory: tiles, never the map of queries by keys."""

import math
import re

import jax
import pytest

from tests.attention.dense import dense_attention
from tests.attention.dense_steering import dense_steered
from tests.attention.steered import Layout, parts
from vlm_jax.attention import Segment, Visibility, attend
from vlm_jax.attention.steering import Rows, Steering

LENGTH, DIM = 4096, 64
LAYOUT = Layout(batch=1, length=LENGTH, kv_heads=2, group=2)
MAP = LAYOUT.heads * LENGTH * LENGTH
"""Weights in the whole map, of 4 bytes each."""

STEERINGS = {
    "gains": dict(logit_gains=True, head_gains=True, visual_gains={}),
    "AIR": dict(energy_rescale={}, reallocation={}, lens=True),
    "official energy": dict(energy_rescale=dict(prefill="official")),
    "projection": dict(reallocation={}, projection=dict(zero_trace="running", prefill="causal")),
    "official projection": dict(reallocation={}, projection=dict(prefill="official")),
}


def steer(switches):
    made = parts(LAYOUT, 0, "float32")
    return Steering(**{n: made[n] if s is True else made[n](**s) for n, s in switches.items()})


def lowered(read):
    """The program of `read(queries, keys, seen, rows)` on one prompt of `LENGTH` tokens."""
    shape = lambda *sizes, dtype="float32": jax.ShapeDtypeStruct(sizes, dtype)
    seen = Visibility(order=shape(1, LENGTH, dtype="int32"))
    kv = shape(1, LAYOUT.kv_heads, LENGTH, DIM)
    keys = Segment(kv, kv, seen, shape(1, LENGTH, dtype="int8"))
    marks = shape(1, LENGTH, dtype="bool")
    rows = Rows(marks, marks, shape(1, dtype="int32"))
    return jax.jit(read).lower(shape(1, LENGTH, LAYOUT.heads, DIM), keys, seen, rows)


def temporary(program) -> int:
    return program.compile().memory_analysis().temp_size_in_bytes


def largest(program) -> int:
    """Elements of the largest array that the program speaks of."""
    shapes = re.findall(r"tensor<((?:\d+x)+)\w+>", program.as_text())
    return max(math.prod(map(int, shape.split("x")[:-1])) for shape in shapes)


@pytest.mark.parametrize("name", [None, *STEERINGS])
def test_a_long_prompt_holds_no_map(name):
    steering = steer(STEERINGS[name]) if name else None

    def read(queries, keys, seen, rows):
        rows = rows if steering else None
        return attend(queries, [keys], seen, causal=True, steering=steering, rows=rows)

    program = lowered(read)
    assert largest(program) < MAP / LAYOUT.heads
    assert temporary(program) < 4 * MAP / 4  # a quarter of the map's bytes


@pytest.mark.parametrize("name", [None, "AIR"])
def test_the_oracle_holds_the_map(name):
    """So that the test above sees one where there is one."""

    def read(queries, keys, seen, rows):
        if name is None:
            return dense_attention(queries, [keys], seen)[0]
        return dense_steered(queries, [keys], seen, steer(STEERINGS[name]), rows)

    program = lowered(read)
    assert largest(program) == MAP
    assert temporary(program) > 4 * MAP
