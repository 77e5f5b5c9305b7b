"""The say-less sweep of a config: which token ids are biased, and by how much."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax.api import VLM
from vlm_jax.errors import ConfigError
from vlm_jax.evals.base import Suite
from vlm_jax.evals.suites.chair import Chair
from vlm_jax.settings import listed, number, read, setting, word
from vlm_jax.study.arms import Arm, Draw
from vlm_jax.treatments import Biased

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

    def arms(self, model: VLM) -> dict[float, Arm]:
        """Returns the source under every bias but 0, by the bias.

        Raises:
            ConfigError: a word is not exactly one token of the model.
        """
        ids = self._ids(model)
        return {bias: self._arm(model, ids, bias) for bias in self.biases if bias}

    def _arm(self, model: VLM, ids: Sequence[int], bias: float) -> Arm:
        bias_v = np.zeros(model.config.decoder.vocab_size, np.float32)
        bias_v[ids] = bias
        treatment = Biased("say_less", {"bias": bias, "tokens": self.tokens}, bias_v)
        return Arm(
            f"say-less bias {bias:+g}",
            (Draw(0, treatments=(treatment,)),),
            f"frontier/bias_{bias:+g}",
            self.benchmarks,
        )

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Section:
    """What `config.frontier` says."""

    biases: tuple[float, ...] = setting((), listed, each=number)
    tokens: tuple[str, ...] = setting((STOP,), listed, each=word, least=1)


def read_say_less(section: Mapping[str, Any], benchmarks: Mapping[str, Suite]) -> SayLess | None:
    """Reads `config.frontier`; no biases is no frontier.

    Raises:
        ConfigError: an unknown key, a bias that is no number, no biased token, or no caption
            benchmark to measure.
    """
    asked = read(_Section, section, "config.frontier")
    if not asked.biases:
        return None
    rising = tuple(sorted({0.0, *asked.biases}))
    if len(rising) < 2:
        raise ConfigError("config.frontier.biases needs a bias other than 0, the unedited model.")
    captions = tuple(name for name, benchmark in benchmarks.items() if isinstance(benchmark, Chair))
    if not captions:
        raise ConfigError(
            "config.frontier needs a caption benchmark (chair or testbed_chair) among "
            f"config.benchmarks, which holds {', '.join(benchmarks)}; set config.frontier.biases=()"
            " to do without."
        )
    return SayLess(rising, asked.tokens, captions)
