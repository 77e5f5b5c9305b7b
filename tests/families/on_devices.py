"""What the tests of new decoders run on eight host devices."""

import re

import jax
import jax.numpy as jnp

from vlm_jax.models.mlp import run_experts
from vlm_jax.parallel import make_mesh
from vlm_jax.parallel.sharding import spec


def collectives_of_experts() -> tuple[list[str], list[str]]:
    """Returns the gathers and the reductions in the program of eight experts on a mesh of 8."""
    mesh = make_mesh(1, 8)
    shapes = {"w_gate_xfd": (8, 64, 32), "w_up_xfd": (8, 64, 32), "w_down_xdf": (8, 32, 64)}
    stacks = [
        jax.ShapeDtypeStruct(
            shape,
            jnp.float32,
            sharding=jax.NamedSharding(mesh, spec(name.rsplit("_", 1)[1], shape, mesh)),
        )
        for name, shape in shapes.items()
    ]
    given = [
        jax.ShapeDtypeStruct((16, 32), jnp.float32),
        jax.ShapeDtypeStruct((16, 3), jnp.float32),
        jax.ShapeDtypeStruct((16, 3), jnp.int32),
    ]
    text = str(jax.jit(run_experts).lower(*given, *stacks).compile().as_text())
    lines = lambda what: re.findall(rf"^.*= .* {what}(?:-start)?\(.*$", text, re.MULTILINE)
    return lines("all-gather"), lines("all-reduce")
