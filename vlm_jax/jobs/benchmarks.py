"""From a config section to a benchmark."""

from collections.abc import Callable, Mapping
from typing import Any

from vlm_jax.errors import ConfigError
from vlm_jax.evals.base import Benchmark
from vlm_jax.evals.benchmarks import Chair, Pope


def _chair(images: str, truth, questions: str = "", limit: int = 0) -> Benchmark:
    paths = [truth] if isinstance(truth, str) else list(truth)
    benchmark = Chair(images, paths, questions=questions or None)
    if limit:
        ids = [example.id for example in benchmark.examples()][:limit]
        benchmark = Chair(images, benchmark.truth, ids=ids)
    return benchmark


def _pope(images: str, questions: str, suffix: str, parser: str, limit: int = 0) -> Benchmark:
    return Pope(images, questions, suffix=suffix, parser=parser, limit=limit or None)


def _testbed_chair(**settings: Any) -> Benchmark:
    from vlm_jax.testbed.benchmark import TestbedChair

    return TestbedChair(**settings)


def _testbed_pope(**settings: Any) -> Benchmark:
    from vlm_jax.testbed.benchmark import TestbedPope

    return TestbedPope(**settings)


KINDS: dict[str, Callable[..., Benchmark]] = {
    "chair": _chair,
    "pope": _pope,
    "testbed_chair": _testbed_chair,
    "testbed_pope": _testbed_pope,
}


def read_benchmark(name: str, section: Mapping[str, Any]) -> Benchmark:
    """Makes the benchmark that a config section describes.

    Raises:
        ConfigError: its kind or one of its keys is unknown, or a path is not set.
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
    try:
        return KINDS[kind](**values)
    except TypeError as error:
        raise ConfigError(f"config.benchmarks.{name}: {error}.") from None
