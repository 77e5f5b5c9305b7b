"""What a testbed model is like before anything is done to it: one number a metric, no intervals."""

from vlm_jax.api import VLM
from vlm_jax.evals.base import Suite
from vlm_jax.evals.items import tabulate_items
from vlm_jax.testbed.suites.testbed_chair import TestbedChair
from vlm_jax.testbed.suites.testbed_pope import TestbedPope

_METRICS = {
    "chair": ("C_S", "C_I", "recall", "length", "C_S/partner", "C_S/other"),
    "pope": ("F1", "accuracy", "yes_ratio"),
}
_MAX_NEW_TOKENS = 48  # a caption of seven objects has 25
_BATCH = 50


def standard_benchmarks(family: str, split: str, count: int, seed: int = 0) -> list[Suite]:
    """Returns CHAIR and the three POPEs on normal and on broken scenes.

    Args:
        family: `model_type` of the testbed.
        split: "dev" or "test".
        count: scenes of CHAIR; POPE asks four questions about each of half as many.
        seed: of the scenes.
    """
    options = {"seed": seed, "family": family}
    made: list[Suite] = []
    for kind in ("normal", "broken"):
        made.append(TestbedChair(kind, split, count, **options))
        for negatives in ("random", "popular", "adversarial"):
            made.append(TestbedPope(negatives, kind, split, max(1, count // 2), **options))
    return made


def measure(model: VLM, benchmarks: list[Suite]) -> dict[str, dict[str, float]]:
    """Returns the main metrics of greedy answers: benchmark -> metric -> value, rounded to 1e-4."""
    results = {}
    for benchmark in benchmarks:
        examples = list(benchmark.examples())
        texts = model.generate(
            [list(example.images) for example in examples],
            [example.prompt for example in examples],
            max_new_tokens=_MAX_NEW_TOKENS,
            batch_size=_BATCH,
        )
        judged = [benchmark.judge(*pair) for pair in zip(examples, texts, strict=True)]
        totals = tabulate_items(benchmark, judged).totals()
        report = benchmark.report(totals)
        wanted = _METRICS[benchmark.name.partition("_")[0]]
        results[benchmark.name] = {name: round(report[name], 4) for name in wanted}
    return results
