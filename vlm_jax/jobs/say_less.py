"""The say-less sweep of a config: which token ids are biased, and by how much."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_jax.api import VLM
from vlm_jax.errors import ConfigError
from vlm_jax.evals.base import Suite
from vlm_jax.evals.suites.chair import Chair

STOP = "<stop>"


@dataclasses.dataclass(frozen=True)
class SayLess:
    """A sweep of a plain bias on the logits that end a caption.

    Attributes:
        biases: added to the logits, rising; 0, the unedited model, is among them.
        tokens: words that are biased, each one token; `<stop>` stands for all ids that end an
            answer.
        benchmarks: names of the caption benchmarks, pooled.
    """

    biases: tuple[float, ...]
    tokens: tuple[str, ...]
    benchmarks: tuple[str, ...]

    def logit_bias(self, model: VLM, bias: float) -> np.ndarray:
        """Returns float32 [V] with `bias` at the biased ids.

        Raises:
            ConfigError: a word is not exactly one token of the model.
        """
        vector = np.zeros(model.config.decoder.vocab_size, np.float32)
        vector[self._ids(model)] = bias
        return vector

    def _ids(self, model: VLM) -> list[int]:
        ids: list[int] = []
        for token in self.tokens:
            found = list(model.processor.stop_ids) if token == STOP else _encode(model, token)
            if model.processor.tokenizer.unk_token_id in found:
                raise ConfigError(
                    f"config.frontier.tokens: this model's tokenizer does not know {token!r}."
                )
            if not found or (token != STOP and len(found) != 1):
                raise ConfigError(
                    f"config.frontier.tokens: {token!r} is {len(found)} tokens of this model; name "
                    f"words that are one token, or {STOP!r}."
                )
            ids += found
        return sorted(set(ids))


def _encode(model: VLM, token: str) -> list[int]:
    return model.processor.tokenizer.encode(token, add_special_tokens=False)


def read_say_less(section: Mapping[str, Any], benchmarks: Mapping[str, Suite]) -> SayLess | None:
    """Reads `config.frontier`; no biases is no frontier.

    Raises:
        ConfigError: an unknown key, a bias that is no number, no biased token, or no caption
            benchmark to measure.
    """
    values = dict(section)
    biases, tokens = values.pop("biases", ()), values.pop("tokens", (STOP,))
    if values:
        raise ConfigError(
            f"config.frontier has no key {next(iter(values))!r}; it knows biases and tokens."
        )
    if not biases:
        return None
    if not all(_is_number(bias) for bias in biases):
        raise ConfigError(f"config.frontier.biases must be finite numbers, not {tuple(biases)}.")
    rising = tuple(sorted({0.0, *map(float, biases)}))
    if len(rising) < 2:
        raise ConfigError("config.frontier.biases needs a bias other than 0, the unedited model.")
    if isinstance(tokens, str) or not tokens:
        raise ConfigError(
            f"config.frontier.tokens must list at least one word or {STOP!r}, not {tokens!r}."
        )
    captions = tuple(name for name, benchmark in benchmarks.items() if isinstance(benchmark, Chair))
    if not captions:
        raise ConfigError(
            "config.frontier needs a caption benchmark (chair or testbed_chair) among "
            f"config.benchmarks, which holds {', '.join(benchmarks)}; set config.frontier.biases=()"
            " to do without."
        )
    return SayLess(rising, tuple(tokens), captions)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
