"""A family that lives outside the package: Qwen2.5-VL's parts under names of its own."""

from vlm_jax.families import Row
from vlm_jax.families.qwen2_5_vl import Qwen25VL


class Outside(Qwen25VL):
    name = "outside"
    model_types = ("outside_vl", "outside_vl_2")
    line = "A family of the tests"
    spellings = ()
    rows = tuple(
        Row("outside." + row.name, row.path, row.pattern, row.when, row.alias)
        for row in Qwen25VL.rows
    )
    buffers = ()


FAMILY = Outside()
