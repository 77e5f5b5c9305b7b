"""What a message tells a user to write exists: jobs, configs, flags, settings, extras."""

import ast
import dataclasses
import functools
import re
import tomllib
from typing import Any

import vlm_jax
from tests.docs.commands import ROOT
from vlm_jax.cli import configs, listing
from vlm_jax.cli.main import _flags
from vlm_jax.evals.suites import SUITES, benchmarks

# Sections whose names are the user's, or a method's or a benchmark's own.
FREE = ("arms", "benchmarks", "test", "sweep", "steering", "published", "recipe", "steer")
# Fields of a model's config.json, which messages call `config.<field>` where they quote code.
FILES = ("json", "py")


@functools.cache
def spoken() -> list[tuple[str, str]]:
    """(place, text) of every literal that is no docstring; where a value stands, "{}"."""
    found = []
    for path in sorted([*(ROOT / "vlm_jax").rglob("*.py"), *(ROOT / "convert").rglob("*.py")]):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        quiet = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        inside = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr)
            for part in ast.walk(node)
            if part is not node
        }
        for node in ast.walk(tree):
            if id(node) in quiet | inside:
                continue
            place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append((place, node.value))
            elif isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", "{}") for part in node.values)
                found.append((place, "".join(p if isinstance(p, str) else "{}" for p in parts)))
    return found


def named(pattern: str) -> dict[str, str]:
    """What a pattern's group finds in messages -> the first place."""
    found: dict[str, str] = {}
    for place, text in spoken():
        for name in re.findall(pattern, text):
            found.setdefault(name, place)
    return found


def missing(found: dict[str, str], known: Any) -> dict[str, str]:
    return {name: place for name, place in found.items() if name not in known}


def test_every_job_config_and_flag_exists():
    jobs, shipped = named(r"--job=(\w+)"), named(r"--config=(?:configs/)?([\w/]+)")
    flags = named(r"(?<![\w-])--([a-z_]+)(?!=?[\w]*-)")
    assert jobs
    assert shipped
    assert not missing(jobs, listing.jobs())
    assert not missing(shipped, configs.names())
    known = {*_flags(), "config", "version", "help", "helpfull", "helpshort"}
    # Of git, of CSS, of other programs.
    elsewhere = tuple(
        f"vlm_jax/{room}" for room in ("made.py", "report/", "harnesses/", "planning/")
    )
    flags = {name: place for name, place in flags.items() if not place.startswith(elsewhere)}
    assert not missing(flags, known)


def test_every_setting_exists():
    known: set[str] = set()
    for name in configs.names():
        for setting, _ in configs.settings(configs.read(name, [])):
            parts = setting.split(".")
            known |= {".".join(parts[:n]) for n in range(2, len(parts) + 1)}
    asked = named(r"(?<![\w.])(config(?:\.[a-z_]+)+)(?![\w(\[])")
    asked = {n: p for n, p in asked.items() if n.split(".")[1] not in (*FREE, *FILES)}
    assert len(asked) > 20
    for name in benchmarks():  # config.score takes a benchmark's own settings besides
        fields = dataclasses.fields(SUITES.find(name).Settings)
        known |= {f"config.score.{one.name}" for one in fields}
    assert not missing(asked, known)


def test_every_extra_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    asked = named(r"vlm[_-]jax\[(\w+)\]")
    assert asked
    assert not missing(asked, extras)


def test_every_function_of_the_package_exists():
    asked = named(r"(?<![\w`/.])vlm_jax\.([a-z]\w*)\(")
    assert not missing(asked, dir(vlm_jax))


def test_every_page_and_config_file_exists():
    asked = named(r"((?:docs|configs)/[\w/]+\.\w+)")
    assert asked
    assert not {name: place for name, place in asked.items() if not (ROOT / name).exists()}
