"""Scores answers that someone else generated. Needs no model."""

from collections.abc import Mapping
from typing import Any

from vlm_jax.errors import ConfigError
from vlm_jax.evals.pope import PARSERS
from vlm_jax.evals.score import score
from vlm_jax.evals.vocabulary import Vocabulary, read_double_words, read_synonyms
from vlm_jax.jobs.request import Request
from vlm_jax.settings import one_of, switch

_KEYS = ("synonyms", "double_words", "parser", "allow_missing")


def run(request: Request) -> None:
    """Scores `--answers` against `--truth`: a table, and `results.json` in `--workdir`.

    `config.score` says by which rules.
    """
    section = request.config.get("score", {})
    for key in section:
        if key not in _KEYS:
            raise ConfigError(f"config.score has no key {key!r}; it knows {', '.join(_KEYS)}.")
    results = score(
        request.need("answers"),
        list(request.need("truth")),
        vocabulary=read_vocabulary(section),
        parser=one_of("config.score.parser", section.get("parser", "rucaibox"), PARSERS),
        baseline=request.baseline,
        allow_missing=switch("config.score.allow_missing", section.get("allow_missing", False)),
        draws=request.config.bootstrap_draws,
        seed=request.config.seed,
    )
    print(results.table())
    if request.workdir is not None:
        print(f"Results: {results.write(request.workdir / 'results.json')}")


def read_vocabulary(section: Mapping[str, Any]) -> Vocabulary | None:
    """Returns CHAIR's words from the files that a config names; None for this project's own.

    Raises:
        ConfigError: a file cannot be read, or two-word rules stand alone.
    """
    words, pairs = section.get("synonyms", ""), section.get("double_words", "")
    if pairs and not words:
        raise ConfigError(
            f"config.score.double_words={pairs!r} changes the rules of a synonyms file; name it by "
            "config.score.synonyms."
        )
    if not words:
        return None
    try:
        return read_synonyms(words, double_words=read_double_words(pairs) if pairs else None)
    except ValueError as error:
        raise ConfigError(f"config.score: {error}") from None
