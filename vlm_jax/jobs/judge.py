"""Has answers graded by a judge, a server that the user names, and scores them by its grades."""

from vlm_jax.errors import ConfigError
from vlm_jax.evals.judge import Judge, JudgeSettings
from vlm_jax.evals.score import make_suite, read_texts, score
from vlm_jax.settings import plain, read, secret
from vlm_jax.study.request import Request, several


def run(request: Request) -> None:
    """Grades `--answers` to MM-Vet's `--truth`; files in `--workdir`.

    `grades.json` is in the form of the official grader: `--config.score.grades` takes it as it
    takes a published one. A run that was stopped goes on where it was.

    Raises:
        ConfigError: the benchmark is scored by rules.
    """
    chosen = read(JudgeSettings, plain(request.config.get("judge", {})), "config.judge")
    answers, truth = several(request.need("answers")), list(request.need("truth"))
    suite = make_suite(truth)
    if suite.name != "mmvet":
        raise ConfigError(f"{suite.name} is scored by rules, not by a judge; use --job=score.")
    key = secret(chosen.key_variable)
    texts = read_texts(suite, answers)
    workdir = request.need("workdir")
    judge = Judge(chosen, key, workdir)
    grades = judge.grade([one for one in suite.examples() if one.id in texts], texts)
    resampling = {"draws": request.config.bootstrap_draws, "seed": request.config.seed}
    rules = {"grades": str(grades), "judge": chosen.name()}
    scored = score(answers, truth, "mmvet", rules=rules, **resampling)
    path = scored.results.write(workdir / "results.json")
    items = scored.write_items(workdir / "items.jsonl")
    print(scored.results.table())
    print(f"Results: {path}, {items}, {grades}")
