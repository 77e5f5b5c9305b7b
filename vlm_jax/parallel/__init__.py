"""Devices: one mesh helper, one table from logical dims to mesh axes."""

from vlm_jax.parallel.layouts import lay_out, param_formats
from vlm_jax.parallel.mesh import knows_mesh, make_mesh
from vlm_jax.parallel.sharding import (
    AXES,
    batch_sharding,
    collect,
    fetch,
    images_lie_whole,
    param_shardings,
    put,
    reads_images,
    replicated,
    spec,
)

__all__ = [
    "AXES",
    "batch_sharding",
    "collect",
    "fetch",
    "images_lie_whole",
    "knows_mesh",
    "lay_out",
    "make_mesh",
    "param_formats",
    "param_shardings",
    "put",
    "reads_images",
    "replicated",
    "spec",
]
