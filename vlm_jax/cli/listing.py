"""Lists jobs, configs, methods, families, ..., found in their folders, with a line each."""

import ast
import dataclasses
import importlib
import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

from vlm_jax import beside
from vlm_jax.cli import configs

# Settings of a job that no config of its own name has.
_CONFIGS = {"evaluate": "testbed", "train": "train_llava"}
# What else they take: for models that were not trained on the testbed.
_OTHERS = {
    "evaluate": ("chair", "pope", "chair_methods", "pope_methods"),
    "sweep": ("chair_sweep",),
    "identify": ("chair_identify",),
}
# Jobs whose work all processes share; in the others process 0 works alone.
_SHARED = ("evaluate", "generate", "sweep")
# Jobs without a device to share: they do not start JAX.
_ALONE = ("score", "verify")
# Jobs that read no weights.
_WEIGHTLESS = ("plan",)
_CONVERTERS = ("convert", "export", "verify")


@dataclasses.dataclass(frozen=True)
class Job:
    """A job by name.

    Attributes:
        name: what `--job` says.
        module: where its function is.
        function: takes a `Request`.
        line: what it does.
    """

    name: str
    module: str
    function: str
    line: str

    @property
    def config(self) -> str:
        """The config that it takes where none is named."""
        named = _CONFIGS.get(self.name, self.name)
        return named if named in configs.names() else "base"

    @property
    def others(self) -> tuple[str, ...]:
        """The configs for models that its own is not for."""
        return _OTHERS.get(self.name, ())

    @property
    def alone(self) -> bool:
        """Whether it runs without JAX, and so in one process."""
        return self.name in _ALONE

    @property
    def shared(self) -> bool:
        """Whether several processes share its work."""
        return self.name in _SHARED

    @property
    def reads_weights(self) -> bool:
        """Whether its sources need to hold any."""
        return self.name not in _WEIGHTLESS

    def load(self) -> Callable[[Any], None]:
        """Its function, which takes a `Request`."""
        own = beside.attribute(f"{self.module}:{self.function}")
        return own or getattr(importlib.import_module(self.module), self.function)


def jobs() -> dict[str, Job]:
    """Every job: a module of `vlm_jax.jobs` with `run(request)`, and those of `convert`."""
    found = {}
    for path in sorted(_folder("vlm_jax.jobs").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if _takes_a_request(tree, "run"):
            found[path.stem] = Job(path.stem, f"vlm_jax.jobs.{path.stem}", "run", _line(tree))
    tree = ast.parse((beside.folder("convert") / "run.py").read_text(encoding="utf-8"))
    for function in tree.body:
        if isinstance(function, ast.FunctionDef) and function.name in _CONVERTERS:
            found[function.name] = Job(function.name, "convert.run", function.name, _line(function))
    return dict(sorted(found.items()))


def config_lines() -> dict[str, str]:
    """Every shipped config and what it says of itself."""
    return {name: module_line(configs.FOLDER / f"{name}.py") for name in configs.names()}


def methods() -> dict[str, str]:
    """Everything that `VLM.apply` takes: attention methods and edits."""
    from vlm_jax.methods import methods

    return {name: _first(method.summary) for name, method in sorted(methods().items())}


def families() -> dict[str, str]:
    """Every model family that can be read."""
    from vlm_jax.families import families

    return {name: _first(line) for name, line in sorted(families().items())}


def benchmarks() -> dict[str, str]:
    """Every benchmark that `evaluate` asks."""
    from vlm_jax.evals.suites import benchmarks

    return {name: _first(line) for name, line in benchmarks().items()}


def analyses() -> dict[str, str]:
    """Every analysis that `explain` runs."""
    from vlm_jax.explaining import ANALYSES
    from vlm_jax.plugins import usable

    found = usable(ANALYSES.names(), lambda name: _first(ANALYSES.find(name).line))
    line = "Where answers come from: each token's support by head and part of the input"
    return dict(sorted({"contributions": line, **found}.items()))


def module_line(path: pathlib.Path) -> str:
    """The first sentence of a module's docstring, without importing it."""
    return _line(ast.parse(path.read_text(encoding="utf-8")))


def _line(node: ast.Module | ast.FunctionDef) -> str:
    return _first(ast.get_docstring(node))


def _first(docstring: str | None) -> str:
    """The first sentence, or paragraph, on one line."""
    paragraph = " ".join((docstring or "").strip().split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".")


def _takes_a_request(tree: ast.Module, name: str) -> bool:
    return any(
        isinstance(node, ast.FunctionDef)
        and node.name == name
        and [argument.arg for argument in node.args.args] == ["request"]
        for node in tree.body
    )


def _folder(package: str) -> pathlib.Path:
    """Where a package lies; nothing is imported but its parents."""
    specification = importlib.util.find_spec(package)
    assert specification is not None
    return pathlib.Path(next(iter(specification.submodule_search_locations or ())))
