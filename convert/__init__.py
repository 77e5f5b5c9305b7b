"""Hugging Face checkpoints: opened as model folders, imported to ours and exported back.

The rows of `vlm_jax.families` say how names, dims and shapes correspond. Nothing here
imports transformers or torch, and nothing in `vlm_jax` imports this room: it registers `open_hf`
under the entry-point group `vlm_jax.formats`.
"""

from convert.hf_folder import HFFolder, open_hf
from convert.jobs import export_hf, import_hf

__all__ = ["HFFolder", "export_hf", "import_hf", "open_hf"]
