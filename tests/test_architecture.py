"""The import rules of docs/architecture.md, read off every module's syntax tree."""

import ast
import pathlib
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
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in PRODUCT}


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


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("vlm_jax.errors", ()),
        ("vlm_jax.batch", ()),
        ("vlm_jax.settings", ("vlm_jax.errors",)),
        ("vlm_jax.foreign", ("vlm_jax.errors",)),
        ("vlm_jax.files", ("vlm_jax.errors",)),
        ("vlm_jax.beside", ()),
        ("vlm_jax.config", ("vlm_jax.errors", "vlm_jax.foreign", "vlm_jax.families")),
        (
            "vlm_jax.families",
            ("vlm_jax.families", "vlm_jax.config", "vlm_jax.models", "vlm_jax.processing",
             "vlm_jax.errors", "vlm_jax.foreign", "vlm_jax.listing"),
        ),
        ("vlm_jax.listing", ()),
        ("vlm_jax.attention", ("vlm_jax.attention", "vlm_jax.batch", "vlm_jax.errors")),
        ("vlm_jax.parallel", ("vlm_jax.parallel", "vlm_jax.errors")),
        (
            "vlm_jax.models",
            ("vlm_jax.models", "vlm_jax.families", "vlm_jax.attention", "vlm_jax.config",
             "vlm_jax.batch", "vlm_jax.errors"),
        ),
        (
            "vlm_jax.processing",
            ("vlm_jax.processing", "vlm_jax.families", "vlm_jax.config", "vlm_jax.batch",
             "vlm_jax.settings", "vlm_jax.foreign", "vlm_jax.errors"),
        ),
        (
            "vlm_jax.decoding",
            ("vlm_jax.decoding", "vlm_jax.models", "vlm_jax.parallel", "vlm_jax.attention",
             "vlm_jax.config", "vlm_jax.batch", "vlm_jax.settings", "vlm_jax.errors"),
        ),
        (
            "vlm_jax.answering",
            ("vlm_jax.answering", "vlm_jax.decoding", "vlm_jax.models", "vlm_jax.processing",
             "vlm_jax.parallel", "vlm_jax.attention", "vlm_jax.config", "vlm_jax.batch",
             "vlm_jax.errors"),
        ),
        (
            "vlm_jax.checkpoint",
            ("vlm_jax.checkpoint", "vlm_jax.config", "vlm_jax.errors", "vlm_jax.files",
             "vlm_jax.foreign", "vlm_jax.beside"),
        ),
        ("convert", ("convert", "vlm_jax")),
        ("configs", ("configs", "vlm_jax.errors", "vlm_jax.decoding.settings")),
    ],
)  # fmt: skip
def test_a_room_knows_only_its_own(name, allowed):
    assert not breaches(room(name), *OURS, but=allowed)


def test_attention_knows_no_network_library():
    assert not breaches(room("vlm_jax.attention"), "flax", "optax", "orbax", "transformers")


def test_the_package_never_imports_the_converters():
    assert not breaches(room("vlm_jax"), "convert", "launch", "configs", "tests", "benchmarks")


def test_scorers_import_no_jax():
    scorers = [module for module in room("vlm_jax.evals") if not module.endswith(".runner")]
    assert not breaches(scorers, "jax", "jaxlib", "flax", "optax", "orbax", "jaxtyping")
    # Nor by way of a room that does.
    light = (
        *("vlm_jax.evals", "vlm_jax.errors", "vlm_jax.files"),
        *("vlm_jax.settings", "vlm_jax.foreign"),
    )
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


def test_no_deprecated_way_of_spreading_work():
    old = ("pjit", "shard_map", "maps")
    assert not breaches(list(MODULES), *(f"jax.experimental.{name}" for name in old))


def test_importing_the_package_loads_no_jax():
    code = "import sys, vlm_jax, vlm_jax.evals; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
