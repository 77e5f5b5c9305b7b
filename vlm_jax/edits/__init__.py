"""Edits of a model's weights, one file or folder each.

A file `<name>.py` here has `EDIT`, a `WeightEdit`; another package adds one by an entry point
`<name>` of the group `vlm_jax.edits`. It says its settings, which tensors of a folder it replaces
by what, and its certificate: the file beside the edited weights that says what was done.
"""

from vlm_jax.edits.base import MadeEdit, WeightEdit
from vlm_jax.edits.certificate import Certificate
from vlm_jax.plugins import Plugins, instance

__all__ = ["EDITS", "Certificate", "MadeEdit", "WeightEdit"]

EDITS = Plugins[WeightEdit](
    __name__,
    "vlm_jax.edits",
    "edit",
    "EDIT",
    but=("base", "certificate"),
    check=instance(WeightEdit),
)
