"""A model's edits as a folder: what `VLM.save` writes."""

import os
import pathlib
import tempfile

from vlm_jax import checkpoint
from vlm_jax.errors import ConfigError
from vlm_jax.files import expanded
from vlm_jax.treatments import Edited, TreatedModel


def save(model: TreatedModel, target: str | os.PathLike[str]) -> None:
    """Writes a model's folder with its edits, or a plain copy; see `VLM.save`.

    Several edits, which touch different tensors, are written by way of a folder each.

    Raises:
        ConfigError: a treatment of the model is no edit, or it has no folder.
        CheckpointError: the target exists or cannot be written.
    """
    if not isinstance(target, str | os.PathLike) or not os.fspath(target):
        raise ConfigError(f"save needs the path of a new folder, not {target!r}.")
    steered = [str(one) for one in model.treatments if not isinstance(one, Edited)]
    if steered:
        raise ConfigError(
            f"{', '.join(steered)} acts while the model answers: steering is not weights, so a "
            "saved folder would lose it. Save the model as it was before, and apply it again "
            "after loading."
        )
    source, target = model.source_folder("save"), pathlib.Path(expanded(target))
    edits = [one for one in model.treatments if isinstance(one, Edited)]
    if not edits:
        source.copy(target, {})
        return
    if len(edits) == 1:
        edits[0].made.write(source, target)
        return
    with tempfile.TemporaryDirectory(dir=target.resolve().parent, prefix=".vlm_jax-") as made:
        for number, edit in enumerate(edits[:-1]):
            step = pathlib.Path(made) / str(number)
            edit.made.write(source, step)
            source = checkpoint.open_folder(step)
        edits[-1].made.write(source, target)
