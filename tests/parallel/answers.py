"""Run as a module on 8 host devices: the answers of tiny models on every mesh, as JSON and arrays.

A process of its own, because the number of host devices is fixed when jax starts.
"""

import json
import logging
import pathlib
import sys

import jax
import numpy as np
from absl import logging as absl_logging

import vlm_jax
from tests.reference import IMAGES, PROMPTS
from vlm_jax.parallel import make_mesh

MESHES = ((1, 1), (8, 1), (4, 2), (2, 4), (1, 8))


class Kept(logging.Handler):
    """Keeps formatted log lines."""

    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main(target: str, *folders: str) -> None:
    kept = Kept()
    absl_logging.get_absl_logger().addHandler(kept)
    absl_logging.set_verbosity(absl_logging.INFO)
    found, logits = {}, {}
    for folder in folders:
        for data, model in MESHES:
            mesh = make_mesh(data, model, jax.devices()[: data * model])
            vlm = vlm_jax.load(folder, mesh=mesh)
            images, prompts = IMAGES * 2, PROMPTS + PROMPTS[::-1]
            answers = vlm.answer(images, prompts, max_new_tokens=8, batch_size=8)
            key = f"{vlm.config.family} {data}x{model}"
            logits[key] = vlm.logits(images, prompts)[0]
            found[key] = {
                "tokens": [answer.tokens for answer in answers],
                "specs": {path: list(a.sharding.spec) for path, a in vlm.params.items()},
                "shards": {
                    path: a.addressable_shards[0].data.shape for path, a in vlm.params.items()
                },
            }
    np.savez(pathlib.Path(target) / "logits.npz", **logits)
    report = {"found": found, "log": kept.lines, "devices": jax.device_count()}
    (pathlib.Path(target) / "found.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
