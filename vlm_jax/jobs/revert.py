"""Writes the model that an edited folder was made from, bit for bit."""

from vlm_jax import checkpoint
from vlm_jax.edits.qk.folder import revert_folder
from vlm_jax.study.request import Request


def run(request: Request) -> None:
    """Takes the edit of `--source` back into `--target`; needs no original folder."""
    source, target = checkpoint.open_folder(request.need("source")), request.need("target")
    revert_folder(source, target)
    print(f"Original model: {target}")
