"""The families of vision-language models: one file each, found by `model_type`.

A family says how its `config.json` is read, how its tensors are called, which tower and connector
its network has, how its images are cut and what an image looks like in a prompt. No other place
knows a family by name.

A file in this package that defines `FAMILY` is a family. Another package adds one through the
entry-point group `vlm_jax.families`:

    [project.entry-points."vlm_jax.families"]
    my_vlm = "my_package.my_vlm:FAMILY"
"""

from vlm_jax.families.base import Family, Row
from vlm_jax.families.lookup import families, find, parse_config, read_config
from vlm_jax.listing import lines, make_callable

__all__ = ["Family", "Row", "families", "find", "parse_config", "read_config"]

make_callable(__name__, lambda: lines(families(), "family"))
