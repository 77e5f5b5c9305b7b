"""The import rules of docs/architecture.md, read off every module's syntax tree."""

import ast
import functools
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PRODUCT = [
    *sorted((ROOT / "vlm_jax").rglob("*.py")),
    *sorted((ROOT / "convert").rglob("*.py")),
    *sorted((ROOT / "configs").rglob("*.py")),
    ROOT / "launch.py",
]
PRODUCT.remove(ROOT / "convert" / "plugin" / "steering.py")  # copied for users of torch, never run
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in PRODUCT}


@functools.cache
def imports(name: str) -> set[str]:
    """Every module that a module imports, anywhere in it, as absolute dotted names."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} has a relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def inside(name: str, *rooms: str) -> bool:
    """Whether a dotted name is one of the rooms or in one."""
    return any(name == room or name.startswith(room + ".") for room in rooms)


def room(*names: str) -> list[str]:
    """The modules of some rooms."""
    found = [module for module in MODULES if inside(module, *names)]
    assert found, names
    return found


def breaches(modules: list[str], *forbidden: str, but: tuple[str, ...] = ()) -> list[str]:
    """Imports of forbidden rooms by some modules."""
    return [
        f"{module} imports {found}"
        for module in modules
        for found in sorted(imports(module))
        if inside(found, *forbidden) and not inside(found, *but)
    ]


OURS = ("vlm_jax", "convert", "configs", "launch", "tests", "benchmarks")


def test_the_rules_can_fail():
    assert breaches(["vlm_jax.api"], "vlm_jax.models")
    assert not breaches(["vlm_jax.api"], "vlm_jax.models", but=("vlm_jax.models",))


def table() -> dict[str, set[str]]:
    """Returns what each room may import, read off the table of docs/architecture.md.

    | `vlm_jax/hub.py` | a model by name | `settings` |  ->  {"vlm_jax.hub": {"vlm_jax.settings"}}
    """
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    found = {}
    for line in text.partition("## Rooms")[2].partition("\n## ")[0].splitlines():
        if not line.startswith("| `"):
            continue
        _, rooms, _, allowed, _ = line.split("|")
        names = re.findall(r"`([^`]+)`", allowed)
        for path in re.findall(r"`([^`]+)`", rooms):
            name = path.removesuffix("/").removesuffix(".py").replace("/", ".")
            found[name] = {n if n == "vlm_jax" else f"vlm_jax.{n}" for n in names}
    return found


TABLE = table()


@pytest.mark.parametrize("name", TABLE)
def test_a_room_imports_what_its_row_names(name):
    assert not breaches(room(name), *OURS, but=(name, "vlm_jax.errors", *TABLE[name]))


def test_every_room_has_a_row():
    rooms = {".".join(m.split(".")[: 1 + m.startswith("vlm_jax.")]) for m in MODULES}
    assert rooms - {"vlm_jax.__init__"} == set(TABLE), "one row a room, one room a row"
    named = {name for names in TABLE.values() for name in names}
    assert [name for name in named - {"vlm_jax"} if not inside(name, *TABLE)] == []


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Returns the sets of modules that reach one another; {a: {b}, b: {a}, c: {a}} has [[a, b]]."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        ahead = [start]
        while ahead:
            new = edges.get(ahead.pop(), set()) - found
            found |= new
            ahead += new
        return found

    reach = {module: reached(module) for module in edges}
    together = {
        tuple(sorted(other for other in found if module in reach.get(other, ())))
        for module, found in reach.items()
        if module in found
    }
    return sorted(map(list, together))


def test_cycles_are_found():
    assert cycles({"a": {"b"}, "b": {"a"}, "c": {"a"}}) == [["a", "b"]]
    assert cycles({"a": {"b", "c"}, "b": {"c"}}) == []


ROOMS = {module.removesuffix(".__init__") for module in MODULES}


def sources(module: str) -> set[str]:
    """Returns the modules, rooms' heads among them, that a module takes names from.

    from vlm_jax.families import find   ->  vlm_jax.families
    from vlm_jax.families import vit    ->  vlm_jax.families.vit
    """
    names = imports(module)
    whole = {name for name in names if not any(longer.startswith(f"{name}.") for longer in names)}
    owners = {name if name in ROOMS else name.rpartition(".")[0] for name in whole}
    return (owners & ROOMS) - {module.removesuffix(".__init__")}


def test_names_are_traced_to_their_modules():
    assert {"vlm_jax.families", "vlm_jax.batch"} <= sources("vlm_jax.processing.processor")
    assert "vlm_jax.families.vit" in sources("vlm_jax.families.llava")
    assert "vlm_jax.families" not in sources("vlm_jax.families.llava")


def test_no_modules_import_one_another():
    """Nor in a roundabout way, nor by a room's `__init__`, nor lazily, nor for types alone."""
    assert cycles({module.removesuffix(".__init__"): sources(module) for module in MODULES}) == []


def test_a_public_class_has_a_name_of_its_own():
    owners: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                owners.setdefault(node.name, []).append(module)
    assert {name: found for name, found in owners.items() if len(found) > 1} == {}


def test_every_dim_letter_is_in_the_glossary():
    from vlm_jax.parallel.sharding import AXES

    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    known = {
        letter.strip()
        for line in text.splitlines()
        if line.startswith("| ")
        for cell in line.split("|")[1::2]
        for letter in cell.split(",")
    }
    used = {letter.upper() for letter in AXES}
    for path in PRODUCT:
        for dims in re.findall(r'(?:Float|Int|Bool)\[\w+, "([^"]*)"\]', path.read_text()):
            used |= {dim for dim in dims.split() if re.fullmatch("[A-Z]", dim)}
    assert used - known == set()


def test_attention_knows_no_network_library():
    assert not breaches(room("vlm_jax.attention"), "flax", "optax", "orbax", "transformers")


def test_the_package_never_imports_the_converters():
    assert not breaches(room("vlm_jax"), "convert", "launch", "configs", "tests", "benchmarks")


def test_scorers_import_no_jax():
    scorers = [module for module in room("vlm_jax.evals") if not module.endswith(".runner")]
    assert not breaches(scorers, "jax", "jaxlib", "flax", "optax", "orbax", "jaxtyping")
    # Nor by way of a room that does.
    rooms = ("errors", "evals", "files", "foreign", "plugins", "progress", "settings", "terminal")
    light = tuple(f"vlm_jax.{name}" for name in rooms)
    assert not breaches(scorers, *OURS, but=light)


def test_only_three_places_import_transformers():
    places = [m for m in MODULES if breaches([m], "transformers", "tokenizers")]
    assert [m for m in places if not inside(m, "vlm_jax.processing", "convert")] in (
        [],
        ["vlm_jax.testbed.companions"],
    )


def test_only_the_command_reads_flags():
    others = [module for module in MODULES if not inside(module, "vlm_jax.cli")]
    assert not breaches(others, "absl.flags", "absl.app", "argparse")


def test_the_product_needs_no_torch_and_no_pickle():
    assert not breaches(
        list(MODULES), "torch", "torchvision", "pickle", "cloudpickle", "dill", "joblib", "shelve"
    )


def test_a_job_opens_its_source_once():
    opens = {
        module: sum(
            isinstance(node, ast.Call) and ast.unparse(node.func).endswith("open_folder")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
        for module, path in MODULES.items()
        if not inside(module, "vlm_jax.checkpoint", "vlm_jax.loading", "vlm_jax.saving", "convert")
    }
    assert {module: count for module, count in opens.items() if count > 1} == {}
    assert [
        m for m in opens if opens[m] and not inside(m, "vlm_jax.jobs", "vlm_jax.planning")
    ] == []


def test_no_deprecated_way_of_spreading_work():
    old = ("pjit", "shard_map", "maps")
    assert not breaches(list(MODULES), *(f"jax.experimental.{name}" for name in old))


def test_importing_the_package_loads_no_jax():
    code = "import sys, vlm_jax, vlm_jax.evals; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_jobs_that_read_no_words_load_no_transformers(tmp_path):
    """A start of a second, where transformers with torch beside it takes six."""
    words = ["convert", "--source=llava-0", f"--target={tmp_path / 'model'}"]
    code = f"""
import sys
from vlm_jax.cli import main
from vlm_jax import methods
methods.methods()
main({words})
sys.exit(any(name in sys.modules for name in ("torch", "transformers")))
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
