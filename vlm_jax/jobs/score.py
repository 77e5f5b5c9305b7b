"""Scores answers that someone else generated. Needs no model."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from vlm_jax.evals.answers import Keys
from vlm_jax.evals.score import MAX_UNPARSABLE, score
from vlm_jax.made import made
from vlm_jax.settings import number, plain, read, setting, switch, text
from vlm_jax.study.request import Request


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """What `config.score` says of any benchmark; it takes the benchmark's own settings besides.

    Attributes:
        suite: kind of benchmark; "" tells it by the form of the truth.
        image_key: field of the answers that names the image or question; "" is a usual name.
        text_key: field that holds the answer; "" is a usual name.
        allow_missing: whether questions may be unanswered.
        allow_extra: whether answers may have no truth; they are left out.
        max_unparsable: share of answers without a verdict from which on they are refused.
    """

    suite: str = setting("", text)
    image_key: str = setting("", text)
    text_key: str = setting("", text)
    allow_missing: bool = setting(False, switch)
    allow_extra: bool = setting(False, switch)
    max_unparsable: float = setting(MAX_UNPARSABLE, number, low=0, high=1)


def run(request: Request) -> None:
    """Scores `--answers` against `--truth`: a table, and files in `--workdir`.

    These are `results.json`, and `items.jsonl` with what was found in each answer. `config.score`
    says by which rules.
    """
    chosen, rules = split_section(request.config.get("score", {}))
    scored = score(
        files(request.need("answers")),
        list(request.need("truth")),
        chosen.suite,
        rules=rules,
        keys=Keys(chosen.image_key, chosen.text_key),
        baseline=None if request.baseline is None else files(request.baseline),
        allow_missing=chosen.allow_missing,
        allow_extra=chosen.allow_extra,
        max_unparsable=chosen.max_unparsable,
        draws=request.config.bootstrap_draws,
        seed=request.config.seed,
    )
    scored = dataclasses.replace(scored, results=dataclasses.replace(scored.results, made=made()))
    print(scored.results.table())
    if request.workdir is not None:
        path = scored.results.write(request.workdir / "results.json")
        items = scored.write_items(request.workdir / "items.jsonl")
        print(f"Results: {path}, {items}")


def split_section(section: Mapping[str, Any]) -> tuple[ScoreSettings, dict[str, Any]]:
    """The settings of any benchmark, and the benchmark's own."""
    own = {field.name for field in dataclasses.fields(ScoreSettings)}
    values = {key: plain(value) for key, value in section.items()}
    general = {key: value for key, value in values.items() if key in own}
    rules = {key: value for key, value in values.items() if key not in own and value != ""}
    return read(ScoreSettings, general, "config.score"), rules


def files(path: pathlib.Path) -> list[pathlib.Path]:
    """The files of a flag that names one, or several separated by commas."""
    return [path] if path.exists() else [pathlib.Path(one) for one in str(path).split(",")]
