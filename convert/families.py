"""The conversion tables by family."""

from convert import llava, qwen2_5_vl
from convert.table import Binding
from vlm_jax.config import VLMConfig

TABLES = {table.family: table for table in (llava.TABLE, qwen2_5_vl.TABLE)}


def bind(config: VLMConfig) -> Binding:
    """The table of a config's family, written out for it."""
    return TABLES[config.family].bind(config)
