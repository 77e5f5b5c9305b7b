"""What compilers say of every released size on chips that are not there, vanilla and steered.

    python -m benchmarks.released                    # all of it: hours; goes on where stopped
    python -m benchmarks.released Qwen2.5-VL-7B --programs decode --minutes 10
    python -m benchmarks.released --layers 2         # what methods add to two layers: seconds each

For each model the smallest slice of TPU v5e by the roofline table and a slice of several hosts, 8
rows a replica, a prompt of one image of 640 x 480 and 64 further tokens, 64 new ones. With
`--layers` the decoder is cut to its first layers, the mesh and the prompt being those of the whole
model, and images are not read. A record is kept for each program as soon as it is compiled
(`benchmarks/results/plans`); tables of docs/performance.md, docs/tpu_pods.md and
docs/gpu_clusters.md are made of these. Needs libtpu (`pip install -e '.[plan-tpu]'`), and
`--generations h100` JAX's CUDA plug-in (`[plan-gpu]`); nothing here is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import pathlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from benchmarks.protocol import commit
from benchmarks.roofline import released, smallest
from tests.released import CONFIGS
from vlm_jax.decoding import DecodeSettings
from vlm_jax.planning.chips import CHIPS
from vlm_jax.planning.planner import Planner, PlanSettings, acting
from vlm_jax.planning.sizes import fewest_chips, held_bytes, param_bytes
from vlm_jax.planning.topologies import GENERATIONS, SLICES, parse

RECORDS = pathlib.Path(__file__).parent / "results" / "plans"
ROWS, CONTEXT, NEW = 8, 2048, 64
PROGRAMS = ("decode", "prefill")
HOSTS = {"v5e": "4x4", "v6e": "4x4", "v5p": "2x2x4"}
"""Slices of several hosts."""

HOST_CHIPS = 4
"""Of each of them."""

METHODS: dict[str, Any] = {
    "vanilla": None,
    "functional heads": {
        "method": "functional_heads", "reasoning_first_layer": 0, "reasoning_to": 0.5,
        "perception_from": 0.6, "perception_last_layer": -1,
    },
    "AIR": {"method": "air", "heads": "all"},
    "AD-HH": {"method": "adhh", "heads": "all"},
    "AIR* (projection)": {"method": "air_star", "heads": "all"},
    "DoLa": "dola",
    "PAI": "pai",
    "VCD": "vcd",
    "ICD": "icd",
}  # fmt: skip
"""Name -> `config.method`; functional heads and AIR in all heads, since no fewer cost more."""

STEERED = ("functional heads", "AIR", "AD-HH", "AIR* (projection)")
GOALS = {"decode": 1.02, "prefill": 1.05}
PROJECTION_GOAL = 1.10


@dataclasses.dataclass(frozen=True)
class Case:
    """A program that is compiled.

    Attributes:
        model: a released size.
        generation: of chips.
        topology: a slice of it.
        chips: of a replica.
        method: of `METHODS`.
        program: of `PROGRAMS`.
        layers: of the decoder, the first ones; 0 is the whole model.
    """

    model: str
    generation: str
    topology: str
    chips: int
    method: str
    program: str
    layers: int = 0

    @property
    def path(self) -> pathlib.Path:
        """Where its record is."""
        kind = self.method.lower().replace("*", "star").replace(" ", "_").replace("(", "")
        parts = self.model, self.topology.replace(":", "_"), kind.replace(")", ""), self.program
        cut = f"-{self.layers}_layers" if self.layers else ""
        return RECORDS / f"{'-'.join(parts)}{cut}.json"

    def record(self) -> dict[str, Any] | None:
        """Returns what is known of it, or None."""
        return json.loads(self.path.read_text()) if self.path.exists() else None


def cases(
    models: Iterable[str], generations: Iterable[str], programs: Iterable[str], layers: int = 0
) -> Iterator[Case]:
    """Yields what is to be compiled, what says most first: programs, then methods, then models."""
    placed = [
        (model, generation, topology, chips)
        for model in models
        for generation in generations
        for topology, chips in slices(model, generation)
    ]
    for program in programs:
        for method in METHODS:
            for where in placed:
                yield Case(*where, method, program, layers)


def slices(model: str, generation: str) -> list[tuple[str, int]]:
    """Returns the smallest slice that holds a model, and one of several hosts, with the chips of a
    replica.

    The latter is left out where each host runs the very program of the former: a replica of two on
    v5e:4x4 is one of the two of v5e:2x2.
    """
    chips = fewest_chips(released(model), CHIPS[GENERATIONS[generation]], ROWS, CONTEXT)
    assert chips is not None, model
    shapes, size = SLICES[generation], lambda shape: math.prod(parse(f"{generation}:{shape}")[1])
    fewest = next(shape for shape in shapes if size(shape) >= chips)
    found = [fewest]
    if generation in HOSTS and not chips <= size(fewest) == HOST_CHIPS:
        found.append(next(s for s in (HOSTS[generation], shapes[-1]) if size(s) >= chips))
    return [(f"{generation}:{shape}", chips) for shape in dict.fromkeys(found)]


def compile_case(case: Case) -> dict[str, Any]:
    """Compiles a program; returns its record."""
    config, method = released(case.model), METHODS[case.method]
    layers = case.layers or config.decoder.num_layers
    if isinstance(method, dict):  # -1 is the last layer
        method = {key: layers - 1 if value == -1 else value for key, value in method.items()}
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "config.json").write_text(json.dumps(CONFIGS[case.model]))
        planner = Planner.of(
            folder,
            PlanSettings(topology=case.topology, programs=(case.program,)),
            DecodeSettings(batch_size=ROWS, max_new_tokens=NEW),
            model=case.chips,
            method=method,
        )
        if case.layers:
            planner = shallow(planner, case.layers)
        program = planner.run().programs[case.program]
        steering, _ = acting(method, planner.config, planner.folder)
    named = Counter()
    for part in steering.parts.values() if steering else ():
        named += Counter({kind: layers * count for kind, count in part.collectives.items()})
    decoder, sizes, mesh = planner.config.decoder, planner.sizes, planner.mesh.shape
    unread = 0.0 if decoder.tie_embeddings else param_bytes(config, case.chips)["decoder/embed_vd"]
    return {
        "case": dataclasses.asdict(case),
        "slice_chips": math.prod(parse(case.topology)[1]),
        "mesh": dict(mesh),
        "rows": planner.rows,
        "length": sizes.length,
        "held_bytes": held_bytes(
            planner.config, case.chips, planner.rows // mesh["data"], sizes.length + NEW
        ),
        "unread_bytes": unread,
        "named_collectives": dict(named),
        "jax": jax.__version__,
        "libtpu": importlib.metadata.version("libtpu") if case.generation[0] == "v" else "",
        "commit": commit(),
        "processor_seconds": round(time.process_time() - begun, 1),
        "program": dataclasses.asdict(program),
    }


def shallow(planner: Planner, layers: int) -> Planner:
    """Returns a planner of the first layers of a model, on the same mesh, that reads no images.

    Its prompts have the places of images, so that they are as long.
    """
    decoder = dataclasses.replace(planner.config.decoder, num_layers=layers)
    return dataclasses.replace(
        planner,
        config=dataclasses.replace(planner.config, decoder=decoder),
        settings=dataclasses.replace(planner.settings, images=0),
        sizes=dataclasses.replace(planner.sizes, groups=0),
    )


def main() -> None:
    """Compiles what the command line names and no record has."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.released",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="*", metavar="model", help="all by default")
    parser.add_argument("--generations", nargs="+", choices=SLICES, default=["v5e"])
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--layers", type=int, default=0, help="of the decoder; all by default")
    parser.add_argument("--smallest", action="store_true", help="not on several hosts")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start nothing after these")
    args = parser.parse_args()
    unknown = [model for model in args.models if model not in CONFIGS]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; the models are {', '.join(CONFIGS)}.")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    RECORDS.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * args.minutes
    left = 0
    for case in cases(args.models or CONFIGS, args.generations, args.programs, args.layers):
        wanted = case.method in args.methods and case.record() is None
        if not wanted or (
            args.smallest and case.topology != slices(case.model, case.generation)[0][0]
        ):
            continue
        if time.monotonic() > until:
            left += 1
            continue
        try:
            found = compile_case(case)
        except Exception as error:  # of one program: the others go on
            print(f"{case.path.stem}: {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        case.path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{case.path.stem}: {found['processor_seconds']:.0f} s of processors", flush=True)
    print(f"{left} programs are left." if left else "No program is left.")


def records() -> list[dict[str, Any]]:
    """Returns all records: by program, models in the order of the released sizes, methods."""
    names, methods = list(CONFIGS), list(METHODS)
    order = lambda one: (
        PROGRAMS.index(one["case"]["program"]),
        names.index(one["case"]["model"]),
        one["slice_chips"],
        methods.index(one["case"]["method"]),
    )
    return sorted((json.loads(path.read_text()) for path in RECORDS.glob("*.json")), key=order)


def released_table() -> str:
    """What compilers say of the programs without methods."""
    lines = [
        "| model | slice | data x model | program | fits | weights and caches, GB a chip "
        "| temporary, GB | GFLOP | GB accessed | over weights and caches | compiler's ms "
        "| collectives | compiled in s | commit |",
        "|---" * 14 + "|",
    ]
    for one in records():
        case, program = one["case"], one["program"]
        if case["method"] != "vanilla":
            continue
        mesh = f"{one['mesh']['data']} x {one['mesh']['model']}"
        start = [case["model"], case["topology"], mesh, case["program"]]
        if program["argument_bytes"] is None:
            cells = [*start, "no: " + program["reason"], *["-"] * 8, one["commit"][:7]]
            lines.append(f"| {' | '.join(cells)} |")
            continue
        found = [f"{count} {kind}" for kind, count in program["collectives"].items()]
        show = lambda value, digits: "-" if value is None else f"{value / 1e9:,.{digits}f}"
        accessed, seconds = program["bytes_accessed"], program["compiler_seconds"]
        over = accessed / one["held_bytes"] if accessed and case["program"] == "decode" else None
        cells = [
            *start,
            "yes" if program["fits"] else f"no: {program['reason']}",
            f"{program['argument_bytes'] / 1e9:.2f}",
            f"{program['temp_bytes'] / 1e9:.2f}",
            show(program["flops"], 0),
            show(accessed, 1),
            "" if over is None else f"{over:.2f}",
            f"{1e3 * seconds:.1f}" if seconds else "-",
            ", ".join(found) or "none",
            f"{program['compile_seconds']:.0f}",
            one["commit"][:7],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else "Not compiled yet."


def meshes_table(generation: str, *chips: str) -> str:
    """The fewest chips of some kinds for every released size, no machine having more than 8, and
    what was compiled for the smallest slice of one generation."""
    peaks = [f"{program}, GB a chip" for program in PROGRAMS]
    headers = ["model", *chips, "compiled for", "data x model", *peaks]
    lines = [f"| {' | '.join(headers)} |", "|---" * len(headers) + "|"]
    for name in CONFIGS:
        counts = [smallest(released(name), CHIPS[chip]).model for chip in chips]
        cells = [str(count) if count <= 8 else f"({count})" for count in counts]
        where = slices(name, generation)[0]
        known = [Case(name, generation, *where, "vanilla", one).record() for one in PROGRAMS]
        mesh = next((one["mesh"] for one in known if one), None)
        cells += [where[0], f"{mesh['data']} x {mesh['model']}"] if mesh else ["-", "-"]
        lines.append(f"| {' | '.join([name, *cells, *map(_peak, known)])} |")
    return "\n".join(lines)


def _peak(record: dict[str, Any] | None) -> str:
    """Memory that a program takes, of what there is."""
    if record is None:
        return "not compiled"
    program = record["program"]
    if program["peak_bytes"] is None:
        return f"does not fit: {program['reason']}"
    peak = f"{program['peak_bytes'] / 1e9:.1f} of {program['memory_bytes'] / 1e9:.1f}"
    return peak if program["fits"] else f"does not fit: {peak}"


def steered_table() -> str:
    """What methods add to programs, by the compilers."""
    lines = [
        "| model | slice | program | method | flops over vanilla | bytes | compiler's time | goal "
        "| verdict | further collectives | commit |",
        "|---" * 11 + "|",
    ]
    found = records()
    key = lambda one: (one["case"]["model"], one["case"]["topology"], one["case"]["program"])
    vanilla = {key(one): one["program"] for one in found if one["case"]["method"] == "vanilla"}
    for one in found:
        method, base, program = one["case"]["method"], vanilla.get(key(one)), one["program"]
        if method == "vanilla" or not base or not base["flops"] or not program["flops"]:
            continue
        ratios = [program[name] / base[name] for name in ("flops", "bytes_accessed")]
        goal = PROJECTION_GOAL if "projection" in method else GOALS["prefill"]
        goal = GOALS["decode"] if one["case"]["program"] == "decode" else goal
        judged = method in STEERED
        times = program["compiler_seconds"], base["compiler_seconds"]
        more = {
            kind: count - base["collectives"].get(kind, 0)
            for kind, count in program["collectives"].items()
            if count != base["collectives"].get(kind, 0)
        }
        cells = [
            one["case"]["model"], one["case"]["topology"], one["case"]["program"], method,
            *(f"{ratio:.3f}" for ratio in ratios),
            f"{times[0] / times[1]:.3f}" if all(times) else "-",
            f"<= {goal:g}" if judged else "",
            ("met" if max(ratios) <= goal else "missed") if judged else "",
            ", ".join(f"{count:+d} {kind}" for kind, count in more.items()) or "none",
            one["commit"][:7],
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else "Not compiled yet."


TABLES: dict[str, Callable[[], str]] = {
    "released": released_table,
    "released steered": steered_table,
    "tpu meshes": functools.partial(meshes_table, "v5e", "TPU v5e", "TPU v5p", "TPU v6e"),
    "gpu meshes": functools.partial(meshes_table, "h100", "H100 SXM", "H200"),
}
"""Name in a page's mark -> what is put there."""


if __name__ == "__main__":
    main()
