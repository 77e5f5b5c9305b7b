"""What compilers say of every released size on chips that are not there, vanilla and steered.

    python -m benchmarks.released                    # all of it: hours; goes on where stopped
    python -m benchmarks.released Qwen2.5-VL-7B --programs decode --minutes 10
    python -m benchmarks.released --layers 2         # what methods add to two layers: seconds each

For each model the smallest slice of TPU v5e by the roofline table and a slice of several hosts, 8
rows dealt out over the replicas, a prompt of one image of 640 x 480 and 64 further tokens, 64 new
ones. With `--layers` the decoder is cut to its first layers, the mesh and the prompt being those of
the whole model, and images are not read. A record is kept of each program as soon as it is compiled
(`benchmarks/results/plans`); tables of docs/performance.md, docs/tpu_pods.md and
docs/gpu_clusters.md are made of these. Needs libtpu (`pip install -e '.[plan-tpu]'`), and
`--generations h100` JAX's CUDA plug-in (`[plan-gpu]`); nothing here is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from benchmarks.protocol import commit
from benchmarks.roofline import released, smallest
from tests.released import CONFIGS
from vlm_jax.decoding import DecodeSettings
from vlm_jax.planning.chips import CHIPS
from vlm_jax.planning.planner import Planner, PlanSettings, acting
from vlm_jax.planning.sizes import fewest_chips, param_bytes
from vlm_jax.planning.topologies import GENERATIONS, SLICES, parse

RECORDS = pathlib.Path(__file__).parent / "results" / "plans"
ROWS, CONTEXT, NEW = 8, 2048, 64
PROGRAMS = ("decode", "prefill")
HOSTS = {"v5e": "4x4", "v6e": "4x4", "v5p": "2x2x4"}
"""Slices of several hosts."""

HOST_CHIPS, LARGEST_HOST = 4, 8
"""Chips of each of these hosts, and of the largest machine that is a slice of its own."""

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
}  # fmt: skip
"""Name -> `config.method`; functional heads and AIR in all heads, since no fewer cost more.

ICD is left out, whose decode step is that of VCD."""

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
        """Where its record is, among those of the same program on other slices and of methods."""
        cut = f"-{self.layers}_layers" if self.layers else ""
        return RECORDS / f"{self.model}-{self.program}{cut}.json"

    @property
    def name(self) -> str:
        """What its record is called there."""
        return f"{self.topology} {self.method}"

    def record(self) -> dict[str, Any] | None:
        """Returns what is known of it, or None."""
        return self._known().get(self.name)

    def keep(self, record: dict[str, Any]) -> None:
        """Writes what was found beside what is known of others."""
        known = self._known() | {self.name: record}
        self.path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")

    def _known(self) -> dict[str, Any]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}


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

    The latter is left out where the former is one already, and where each host runs the very
    program of the former: a replica of two on v5e:4x4 is one of the two of v5e:2x2.
    """
    chips = fewest_chips(released(model), CHIPS[GENERATIONS[generation]], ROWS, CONTEXT)
    assert chips is not None, model
    shapes, size = SLICES[generation], lambda shape: math.prod(parse(f"{generation}:{shape}")[1])
    fewest = next(shape for shape in shapes if size(shape) >= chips)
    found = [fewest]
    same = chips <= size(fewest) == HOST_CHIPS or size(fewest) > LARGEST_HOST
    if generation in HOSTS and not same:
        found.append(HOSTS[generation])
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
    tied = config.decoder.tie_embeddings
    unread = 0.0 if tied else param_bytes(config, case.chips)["decoder/embed_vd"]
    return {
        "case": dataclasses.asdict(case),
        "slice_chips": math.prod(parse(case.topology)[1]),
        "mesh": dict(planner.mesh.shape),
        "rows": planner.rows,
        "length": planner.sizes.length,
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
            said = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            print(f"{case.path.stem}, {case.name}: {said}")
            continue
        case.keep(found)
        print(
            f"{case.path.stem}, {case.name}: {found['processor_seconds']:.0f} s of processors",
            flush=True,
        )
    print(f"{left} programs are left." if left else "No program is left.")


def records(program: str, layers: int = 0) -> list[dict[str, Any]]:
    """Returns the records of a program, of whole models or of so many layers: models in the order
    of the released sizes, then slices, then methods."""
    names, methods = list(CONFIGS), list(METHODS)
    of_case = lambda one: one["case"]["program"] == program and one["case"]["layers"] == layers
    order = lambda one: (
        names.index(one["case"]["model"]),
        list(GENERATIONS).index(one["case"]["generation"]),
        one["slice_chips"],
        methods.index(one["case"]["method"]),
    )
    files = (json.loads(path.read_text()) for path in RECORDS.glob("*.json"))
    found = itertools.chain.from_iterable(known.values() for known in files)
    return sorted(filter(of_case, found), key=order)


def released_table(program: str, layers: int = 0) -> str:
    """What compilers say of a program without methods."""
    lines = []
    for one in records(program, layers):
        case, found = one["case"], one["program"]
        if case["method"] != "vanilla":
            continue
        known = found["argument_bytes"] is not None
        read = found["argument_bytes"] - one["unread_bytes"] if known else 0
        show = lambda value, digits: "-" if value is None else f"{value / 1e9:,.{digits}f}"
        moved, seconds = found["moved_bytes"], found["compiler_seconds"]
        seconds_of = one["processor_seconds"]
        kinds = [f"{count} {kind}" for kind, count in found["collectives"].items()]
        cells = {
            "model": case["model"],
            "slice": case["topology"],
            "data x model": f"{one['mesh']['data']} x {one['mesh']['model']}",
            "fits": "yes" if found["fits"] else f"no: {found['reason']}",
            "weights and caches, GB a chip": show(found["argument_bytes"], 2),
            "temporary, GB": show(found["temp_bytes"], 2),
            "GFLOP": show(found["flops"], 0),
            "GB moved": show(moved, 2),
            "over what is to be read": f"{moved / read:.3f}" if moved and known else "-",
            "GB accessed": show(found["bytes_accessed"], 1),
            "compiler's ms": f"{1e3 * seconds:.1f}" if seconds else "-",
            "collectives": ", ".join(kinds) or ("none" if known else "-"),
            "processor s": "-" if seconds_of is None else f"{seconds_of:.0f}",
            "commit": one["commit"][:7],
        }
        left_out = ["over what is to be read"] if program == "prefill" else []
        if layers:
            left_out += ["fits", "temporary, GB", "compiler's ms", "collectives", "processor s"]
        for column in left_out:
            del cells[column]
        lines.append(cells)
    return _table(lines)


def _table(lines: list[dict[str, str]]) -> str:
    """Returns rows of the same columns as a table."""
    if not lines:
        return "Not compiled yet."
    rows = [list(lines[0]), ["---"] * len(lines[0]), *(list(line.values()) for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def steered_table(program: str, layers: int, methods: Sequence[str]) -> str:
    """What methods add to a program, by the compilers: operations, bytes moved and accessed."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for one in records(program, layers):
        place = one["case"]["model"], one["case"]["topology"]
        found.setdefault(place, {})[one["case"]["method"]] = one
    lines = []
    for (model, topology), known in found.items():
        base = known.get("vanilla")
        if base is None or not base["program"]["flops"] or len(known) == 1:
            continue
        cells, missed, further = {"model": model, "slice": topology}, [], {}
        for method in methods:
            cells[method] = "-"
            if method not in known or not known[method]["program"]["flops"]:
                continue
            ratios = [
                known[method]["program"][name] / base["program"][name]
                for name in ("flops", "moved_bytes", "bytes_accessed")
            ]
            cells[method] = " / ".join(f"{ratio:.3f}" for ratio in ratios)
            if max(ratios[:2]) > goal(program, method):
                missed.append(method)
            more = Counter(known[method]["program"]["collectives"])
            more -= Counter(base["program"]["collectives"])
            further[method] = more - Counter(known[method]["named_collectives"])
        if not further:
            continue
        if set(methods) <= set(STEERED):
            cells["goals"] = f"missed: {', '.join(missed)}" if missed else "met"
        cells["further collectives"] = _further(further)
        used = [one for method, one in known.items() if method in ("vanilla", *methods)]
        cells["commits"] = ", ".join(dict.fromkeys(one["commit"][:7] for one in used))
        lines.append(cells)
    return _table(lines)


def goal(program: str, method: str) -> float:
    """The most that a method may do or move, over vanilla."""
    if method not in STEERED:
        return math.inf
    return PROJECTION_GOAL if program == "prefill" and "projection" in method else GOALS[program]


def _further(found: dict[str, Counter]) -> str:
    """Collectives that methods have besides those that they name, equal ones together."""
    grouped: dict[str, list[str]] = {}
    for method, more in found.items():
        said = ", ".join(f"{count} {kind}" for kind, count in sorted(more.items())) or "none"
        grouped.setdefault(said, []).append(method)
    if len(grouped) == 1:
        return next(iter(grouped))
    return "; ".join(f"{', '.join(methods)}: {said}" for said, methods in grouped.items())


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


LAYERS = 2
"""Of the decoders that methods are compiled for in every size."""

DECODING = tuple(method for method in METHODS if method not in ("vanilla", *STEERED))

TABLES: dict[str, Callable[[], str]] = {
    **{f"released {name}": functools.partial(released_table, name) for name in PROGRAMS},
    "released layers": functools.partial(released_table, "decode", LAYERS),
    **{
        f"{kind} {name}": functools.partial(steered_table, name, LAYERS, methods)
        for name in PROGRAMS
        for kind, methods in (("steered", STEERED), ("strategies", DECODING))
    },
    "tpu meshes": functools.partial(meshes_table, "v5e", "TPU v5e", "TPU v5p", "TPU v6e"),
    "gpu meshes": functools.partial(meshes_table, "h100", "H100 SXM", "H200"),
}
"""Name in a page's mark -> what is put there."""


if __name__ == "__main__":
    main()
