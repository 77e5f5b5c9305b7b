"""Scores answers that someone else generated. Needs no model."""

from vlm_jax.evals.score import score
from vlm_jax.jobs.request import Request


def run(request: Request) -> None:
    """Scores `--answers` against `--truth`: a table, and `results.json` in `--workdir`."""
    results = score(
        request.need("answers"),
        list(request.need("truth")),
        baseline=request.baseline,
        draws=request.config.bootstrap_draws,
        seed=request.config.seed,
    )
    print(results.table())
    if request.workdir is not None:
        print(f"Results: {results.write(request.workdir / 'results.json')}")
