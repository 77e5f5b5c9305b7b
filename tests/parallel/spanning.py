"""Run as a module, once a process: what the two processes of one replica find, as JSON and arrays.

python -m tests.parallel.spanning <folder for results> <model folder> <port> <process>
"""

import json
import pathlib
import sys

import jax
import numpy as np

import vlm_jax
from tests.reference import IMAGES, PROMPTS
from vlm_jax.decoding import DecodeSettings
from vlm_jax.errors import UserError
from vlm_jax.parallel import fetch, make_mesh, processes, put
from vlm_jax.parallel.sharding import param_shardings
from vlm_jax.parallel.team import team_of


def main(target: str, folder: str, port: str, process: str) -> None:
    processes.start(f"localhost:{port}", 2, int(process))
    mesh = make_mesh(model=4)
    team = team_of(mesh)
    array = np.arange(24.0, dtype=np.float32).reshape(3, 8)
    placed = put({"a_dn": array}, param_shardings({"a_dn": array}, mesh)["a_dn"])["a_dn"]
    vlm = vlm_jax.load(folder, mesh=mesh)
    logits, _ = vlm.logits(IMAGES, PROMPTS)
    found = {
        "members": team.members,
        "leads": team.leads,
        "same_team": team is processes.replica_team(4),
        "shards": [shard.data.shape for shard in placed.addressable_shards],
        "fetched": fetch(placed, mesh).tolist(),
        "number": team.exchange(jax.process_index() + 10),
        "different": _error(lambda: team.check_same(process, "questions")),
        # Process 1 fails where process 0 goes on to the next meeting.
        "failed": _error(lambda: processes.agree(lambda: team.in_step(lambda: _work(team)))),
        "steered": steered(vlm),
    }
    np.save(pathlib.Path(target) / f"logits{process}.npy", logits)
    (pathlib.Path(target) / f"found{process}.json").write_text(json.dumps(found))


def steered(vlm) -> dict:
    """Returns what AIR does in all heads: tokens, heads that fired, masses on images."""
    made = vlm.generator(
        vlm.params,
        vlm.processor.batch(IMAGES, PROMPTS),
        DecodeSettings(max_new_tokens=4),
        steering=vlm.apply("air", heads="all", text_threshold=0.2).steering,
    )
    return {
        "tokens": made.tokens_bn.tolist(),
        "fired": made.counts.fired.tolist(),
        "image": made.readings.image_bn.tolist(),
    }


def _work(team) -> None:
    team.agree(lambda: "all is well")
    if not team.leads:
        raise UserError("the disk is full.")
    team.agree(lambda: "the next batch")


def _error(work) -> str:
    try:
        work()
    except UserError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(*sys.argv[1:])
