"""QK product steering: edit the query weights so that dominant query-key modes lose strength.

The query-key product of a head, `M = Wq^T Wk` in the residual stream, has rank at most head_dim.
Its singular modes are found from head_dim x head_dim cores, a few are suppressed, and the change is
mapped back onto the query weights alone, so that keys shared by a group of query heads stay as they
are.

`folder` edits a model folder, `original` sees an edited one as it was, `sidecar_file` keeps what
takes an edit back; the rest is array mathematics on NumPy and JAX arrays, which knows no model
class and no file format. Nothing here chooses a setting by looking at benchmark results: whatever
is selected is selected from spectra.

Idea: Tiwari, Chordia and Prathosh, "QK product steering" (arXiv 2606.20419). Only the idea is
public: the parametrisation, the channel map-back and the controls here are a reconstruction, and
certificates say which one was used.
"""

from vlm_jax.edits.qk.folder import EDIT
from vlm_jax.edits.qk.layers import EditedLayer, edit_layers, edit_many
from vlm_jax.edits.qk.rope import Rope
from vlm_jax.edits.qk.sidecar import Sidecar
from vlm_jax.edits.qk.spec import CONTROLS, METHODS, QKEdit
from vlm_jax.edits.qk.weights import LayerWeights

__all__ = [
    "CONTROLS",
    "EDIT",
    "METHODS",
    "EditedLayer",
    "LayerWeights",
    "QKEdit",
    "Rope",
    "Sidecar",
    "edit_layers",
    "edit_many",
]
