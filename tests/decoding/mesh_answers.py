"""Run as a module on 8 host devices: answers behind prefixes on several meshes, as JSON.

A process of its own, because the number of host devices is fixed when jax starts.
"""

import json
import pathlib
import sys

import jax

import vlm_jax
from tests.compiles import counted
from tests.prefixes import cut
from tests.reference import picture
from vlm_jax.parallel import make_mesh

MESHES = ((1, 1), (8, 1), (4, 2))
SHARED = {"one": [0] * 8, "eight": [0, 1, 2, 3, 4, 5, 6, 7]}
"""The image of each of eight questions; eight prefixes divide over every mesh, one does not."""

QUESTIONS = ["Why?", "What is this?", "Is it red?", "How many?"] * 2


def main(target: str, folder: str) -> None:
    pictures = [[picture(56, 56, seed)] for seed in range(8)]
    found = {}
    for data, model in MESHES:
        mesh = make_mesh(data, model, jax.devices()[: data * model])
        vlm = vlm_jax.load(folder, mesh=mesh)
        for name, owners in SHARED.items():
            whole = vlm.processor.batch([pictures[owner] for owner in owners], QUESTIONS)
            firsts = sorted({owner: row for row, owner in reversed([*enumerate(owners)])}.values())
            first, suffix = cut(whole, firsts)
            options = {"max_new_tokens": 6}
            vlm.generator.warm(vlm.params, suffix, prefix=first, **options)
            with counted() as compiled:
                prefix = vlm.generator.read_prefix(vlm.params, first)
                made = vlm.generator(vlm.params, suffix, prefix=prefix, owner_b=owners, **options)
            found[f"{name} {data}x{model}"] = {
                "tokens": made.tokens_bn.tolist(),
                "compiled": len(compiled),
            }
            if data == model == 1:
                alone = vlm.generator(vlm.params, whole, **options)
                found[f"{name} whole"] = alone.tokens_bn.tolist()
    pathlib.Path(target).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
