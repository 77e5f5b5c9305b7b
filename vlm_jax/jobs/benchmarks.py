"""From a config section to a benchmark."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from vlm_jax.errors import ConfigError
from vlm_jax.evals.base import Benchmark
from vlm_jax.evals.benchmarks import Chair, Pope


def _chair(images: str, truth, questions: str = "", limit: int = 0) -> Benchmark:
    paths = [truth] if isinstance(truth, str) else list(truth)
    return Chair(images, paths, questions=questions or None, limit=limit or None)


def _pope(images: str, questions: str, suffix: str, parser: str, limit: int = 0) -> Benchmark:
    return Pope(images, questions, suffix=suffix, parser=parser, limit=limit or None)


def _testbed_chair(set: str, split: str, n: int, seed: int = 0, family: str = "llava") -> Benchmark:
    from vlm_jax.testbed.benchmark import TestbedChair

    return TestbedChair(set, split, n, seed=seed, family=family)


def _testbed_pope(
    negatives: str,
    set: str,
    split: str,
    n: int,
    pairs: int = 2,
    seed: int = 0,
    family: str = "llava",
) -> Benchmark:
    from vlm_jax.testbed.benchmark import TestbedPope

    return TestbedPope(negatives, set, split, n, pairs=pairs, seed=seed, family=family)


KINDS: dict[str, Callable[..., Benchmark]] = {
    "chair": _chair,
    "pope": _pope,
    "testbed_chair": _testbed_chair,
    "testbed_pope": _testbed_pope,
}


def read_benchmark(name: str, section: Mapping[str, Any], family: str = "llava") -> Benchmark:
    """Makes the benchmark that a config section describes.

    Args:
        name: of the benchmark in the config.
        section: `kind`, a key of `KINDS`, and the arguments of that function.
        family: of the model; sets the size of testbed scenes.

    Raises:
        ConfigError: its kind or one of its keys is unknown, or a value cannot be.
    """
    values = dict(section)
    kind = values.pop("kind", None)
    if kind not in KINDS:
        raise ConfigError(
            f"config.benchmarks.{name}.kind must be one of {', '.join(KINDS)}, not {kind!r}."
        )
    for key in ("images", "truth", "questions"):
        optional = kind == "chair" and key == "questions"
        if key in values and not optional and values[key] in ("", ("",)):
            raise ConfigError(f"Set config.benchmarks.{name}.{key}: the {kind} benchmark needs it.")
    if kind.startswith("testbed_"):
        values = {"family": family, **values}
    known = inspect.signature(KINDS[kind]).parameters
    unknown = [key for key in values if key not in known]
    if unknown:
        raise ConfigError(
            f"config.benchmarks.{name} has no key {unknown[0]!r}; a {kind} benchmark knows "
            f"{', '.join(known)}."
        )
    missing = [key for key, one in known.items() if one.default is one.empty and key not in values]
    if missing:
        raise ConfigError(f"Set config.benchmarks.{name}.{missing[0]}: {kind} needs it.")
    try:
        return KINDS[kind](**values)
    except ConfigError as error:
        raise ConfigError(f"config.benchmarks.{name}: {error}") from None
