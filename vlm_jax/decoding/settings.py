"""How answers are decoded: one value from a config, or Python keywords, to the compiled loop.

A new setting is a field here and whatever acts on it; configs, the command line, `VLM.answer`, the
identity of answers and the programs take it from the field.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_jax.errors import ConfigError
from vlm_jax.settings import (
    check_fields,
    listed,
    number,
    optional,
    read,
    setting,
    text,
    whole,
    word,
)


def _share(name: str, value: Any) -> float:
    """Returns a number above 0 and at most 1."""
    found = number(name, value, low=0, high=1)
    if not found:
        raise ConfigError(f"{name} must be above 0 and at most 1, not {value!r}.")
    return found


def _positive(name: str, value: Any) -> float:
    """Returns a number above 0."""
    found = number(name, value, low=0)
    if not found:
        raise ConfigError(f"{name} must be above 0 (1 does nothing), not {value!r}.")
    return found


def stopping(name: str, value: Any) -> bool | str:
    """Returns True, False or "never".

    Raises:
        ConfigError: the value is none of these.
    """
    if value is not True and value is not False and value != "never":
        raise ConfigError(f"{name} must be True, False or 'never', not {value!r}.")
    return value


FOLLOWED = "repetition_penalty", "no_repeat_ngram_size", "min_new_tokens"
"""Fields of a folder's generation_config.json that settings of None take their values from."""

_ELSEWHERE = (
    "eos_token_id", "bos_token_id", "pad_token_id", "transformers_version", "_from_model_config",
    "use_cache", "cache_implementation", "output_attentions", "output_hidden_states",
    "output_scores", "output_logits", "return_dict_in_generate", "max_length", "max_new_tokens",
)  # fmt: skip
_UNUSED = {"num_beams": 1, "length_penalty": 1.0}  # values that ask for nothing
_SAMPLING = ("do_sample", "temperature", "top_k", "top_p")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """Every setting of decoding that is the same for all samples of a call.

    Sampling is in the order of transformers: temperature, then top-k, then top-p of what is left.

    Attributes:
        max_new_tokens: limit of each answer.
        temperature: 0 is greedy.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the smallest set whose probability reaches p; 1 keeps all.
        repetition_penalty: of tokens that the prompt or the answer holds: their logits are divided
            by it where positive, and multiplied elsewhere. None: as the model folder's
            generation_config.json says, as in transformers.
        no_repeat_ngram_size: no sequence of so many tokens comes twice in prompt and answer; 0 lets
            all. None: as the folder says.
        min_new_tokens: no answer ends before so many tokens. None: as the folder says.
        num_beams: more than 1 is beam search, as transformers does it; not with sampling.
        length_penalty: beams are compared by the sum of their log-probabilities over their length
            to this power.
        early_stopping: when beam search ends. True: once as many answers as beams have ended.
            False: once the best beam, scored at its present length, is worse than these. "never":
            once it is worse even at the length that would score best.
        stop: an answer ends before the first of these strings; one alone needs no list.
        system: a system message before the first turn; the template's own by default.
        seed: of the run. Each sample draws from its own stream, so that its answer does not depend
            on the batch it is in.
        batch_size: samples read at once; 0 is 8 on CPU and 32 elsewhere. Answers do not depend on
            it.

    Raises:
        ConfigError: a value is out of range.
    """

    max_new_tokens: int = setting(128, whole, low=1)
    temperature: float = setting(0.0, number, low=0)
    top_k: int = setting(0, whole, low=0)
    top_p: float = setting(1.0, _share)
    repetition_penalty: float | None = setting(None, optional, each=_positive)
    no_repeat_ngram_size: int | None = setting(None, optional, each=whole, low=0)
    min_new_tokens: int | None = setting(None, optional, each=whole, low=0)
    num_beams: int = setting(1, whole, low=1)
    length_penalty: float = setting(1.0, number)
    early_stopping: bool | str = setting(False, stopping)
    stop: tuple[str, ...] = setting((), listed, each=word, alone=True)
    system: str = setting("", text)
    seed: int = setting(0, whole, low=0)
    batch_size: int = setting(0, whole, low=0)

    def __post_init__(self):
        check_fields(self)
        if self.num_beams > 1 and not self.greedy:
            raise ConfigError(
                f"num_beams={self.num_beams} with temperature={self.temperature:g}: beam search "
                "draws nothing; set num_beams to 1, or temperature to 0."
            )

    @classmethod
    def of_config(cls, config: Any) -> "DecodeSettings":
        """Returns the settings of a job's config, which has them at its top level."""
        names = [field.name for field in dataclasses.fields(cls) if field.name in config]
        return read(cls, {name: config[name] for name in names}, "config")

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Returns each setting's default, for configs to start from."""
        return dataclasses.asdict(cls())

    def replace(self, **changes: Any) -> "DecodeSettings":
        """Returns the settings with some changed.

        Raises:
            ConfigError: one is unknown or out of range.
        """
        if "do_sample" in changes:
            raise ConfigError(
                "generation has no setting 'do_sample': a temperature above 0 samples, 0 is greedy."
            )
        return read(DecodeSettings, {**dataclasses.asdict(self), **changes}, "generation")

    def following(self, generation: Mapping[str, Any]) -> "DecodeSettings":
        """Returns the settings with each None replaced by a generation_config.json's value.

        Args:
            generation: its fields.

        Raises:
            ConfigError: a field is out of range.
        """
        nothing = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": 0}
        asked = {name: generation[name] for name in FOLLOWED if generation.get(name) is not None}
        folder = read(DecodeSettings, asked, "generation_config.json")
        found = {}
        for name in FOLLOWED:
            if getattr(self, name) is None:
                found[name] = nothing[name] if name not in asked else getattr(folder, name)
        return self.replace(**found)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that answers depend on, as JSON values."""
        named = dataclasses.asdict(self)
        del named["batch_size"]
        return named

    def traced(self) -> dict[str, np.generic]:
        """Returns the numbers that the compiled loop reads, by name, without those that do nothing.

        A new set of names compiles a new program; new values do not.
        """
        acting: dict[str, np.generic] = {}
        if not self.greedy:
            acting["temperature"] = np.float32(self.temperature)
            acting["top_k"], acting["top_p"] = np.int32(self.top_k), np.float32(self.top_p)
        if self.repetition_penalty not in (None, 1.0):
            acting["repetition_penalty"] = np.float32(self.repetition_penalty)
        if self.no_repeat_ngram_size:
            acting["no_repeat_ngram_size"] = np.int32(self.no_repeat_ngram_size)
        if self.min_new_tokens:
            acting["min_new_tokens"] = np.int32(self.min_new_tokens)
        return acting


def unfollowed(generation: Mapping[str, Any]) -> str | None:
    """Returns one line that names the fields of a generation_config.json that are not obeyed.

    None where all are. Sampling is by our own settings, greedy by default.
    """
    sampling = _SAMPLING if generation.get("do_sample") else ()
    known = {*FOLLOWED, *_ELSEWHERE, *_SAMPLING}
    named = [name for name in sampling if name in generation]
    named += [
        name
        for name, value in generation.items()
        if name not in known and not _does_nothing(value) and value != _UNUSED.get(name)
    ]
    if not named:
        return None
    listed = ", ".join(f"{name}={generation[name]!r}" for name in named)
    return (
        f"generation_config.json asks for {listed}, which is not obeyed: decoding is greedy unless "
        "temperature, top_k and top_p are set."
    )


def _does_nothing(value: Any) -> bool:
    """Returns whether a field that we do not know is certainly switched off."""
    return value is None or value is False or value == [] or value == {}
