"""What a tiny model answers on a mesh of eight host devices, and how it lies on it."""

import logging

import jax
from absl import logging as absl_logging

import vlm_jax
from tests.reference import IMAGES, PROMPTS
from vlm_jax.families import find
from vlm_jax.parallel import make_mesh, sharding

MESHES = ((1, 1), (8, 1), (4, 2), (2, 4), (1, 8))


class Kept(logging.Handler):
    """Keeps formatted log lines."""

    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def on_mesh(folder, data: int, model: int):
    """Loads a model onto a mesh of the first devices."""
    return vlm_jax.load(folder, mesh=make_mesh(data, model, jax.devices()[: data * model]))


def answers(folder, data: int, model: int) -> dict:
    """Returns the tokens and the logits of eight samples."""
    vlm = on_mesh(folder, data, model)
    most = find(vlm.config.family).most_images
    images, prompts = [some[:most] for some in IMAGES] * 2, PROMPTS + PROMPTS[::-1]
    made = vlm.answer(images, prompts, max_new_tokens=8, batch_size=8)
    return {
        # Answers come batch by batch, and rows are dealt into batches by the mesh.
        "tokens": [answer.tokens for answer in sorted(made, key=lambda answer: answer.index)],
        "logits": vlm.logits(images, prompts)[0],
    }


def layouts(folders: dict) -> tuple[dict, list[str]]:
    """Returns how parameters lie: {(name, mesh): specs and shards}; and what the log says."""
    kept, logger = Kept(), absl_logging.get_absl_logger()
    logger.addHandler(kept)
    absl_logging.set_verbosity(absl_logging.INFO)
    sharding._said.clear()  # as where nothing was loaded before
    found = {}
    for name, folder in folders.items():
        for mesh in MESHES:
            params = on_mesh(folder, *mesh).params
            found[name, mesh] = {
                "specs": {path: list(a.sharding.spec) for path, a in params.items()},
                "shards": {
                    path: list(a.addressable_shards[0].data.shape) for path, a in params.items()
                },
            }
    logger.removeHandler(kept)
    return found, kept.lines
