"""A model of lmms-eval, found by its entry point: `lmms_eval --model vlm_jax --model_args ...`.

    python -m lmms_eval --model vlm_jax --tasks pope --batch_size 32 --log_samples \\
        --model_args pretrained=llava-hf/llava-1.5-7b-hf,method=air,heads=llava-1.5-7b

`pretrained` is what `vlm_jax.load` takes, `method` what `VLM.apply` takes, and whatever else is
named is a setting of the method; lists are JSON. A task's `until` ends an answer, as lmms-eval
means it: it is a blank line where a task does not say, which cuts captions of several paragraphs.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lmms_eval.api.instance import (  # pyright: ignore[reportMissingImports]
    GenerationResult,
    TokenCounts,
)
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

import vlm_jax
from vlm_jax.answering import Answer
from vlm_jax.decoding import DecodeSettings
from vlm_jax.errors import ConfigError, PromptError

_SAMPLING = ("temperature", "top_p", "top_k")


def manifest() -> ModelManifest:
    """What lmms-eval finds at the entry point `vlm_jax` of the group `lmms_eval.models`."""
    name = f"{__name__}.{VlmJax.__name__}"
    return ModelManifest(model_id="vlm_jax", chat_class_path=name)


class VlmJax(lmms):
    """A model of this package, with a method applied.

    Args:
        pretrained: see `vlm_jax.load`.
        method: see `VLM.apply`; "" is the model as it is.
        dtype: of weights and activations; "" is float32 on CPU and bfloat16 elsewhere.
        batch_size: samples read at once; lmms-eval's 1 stands for what suits the device. Answers
            do not depend on it.
        device, max_batch_size: lmms-eval gives them; JAX has the devices there are.
        settings: of the method.

    Raises:
        UserError: the folder cannot be read, or a method or setting is unknown.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        method: str = "",
        dtype: str = "",
        batch_size: int | str = 1,
        device: Any = None,
        max_batch_size: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if settings and not method:
            named = ", ".join(settings)
            raise ConfigError(f"--model_args has {named}, settings of no method: name a method.")
        count = int(batch_size) if str(batch_size).isdigit() else 0
        self.batch_size = count if count > 1 else 0
        self.vlm = vlm_jax.load(str(pretrained), dtype=dtype or None)
        if method:
            self.vlm = self.vlm.apply(method, **{n: _plain(v) for n, v in settings.items()})

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Answers the requests, those of the same settings together, in their order.

        Raises:
            PromptError: a request holds what is neither text nor a picture, or cannot be read.
        """
        together: dict[DecodeSettings, list[int]] = {}
        asked = []
        for place, request in enumerate(requests):
            _, messages_of, chosen, number, task, split = request.args
            system, images, prompt = read_messages(messages_of(self.task_dict[task][split][number]))
            asked.append((images, prompt))
            settings = read_settings(chosen, system, self.batch_size)
            together.setdefault(settings, []).append(place)
        made: dict[int, Answer] = {}
        for settings, places in together.items():
            images, prompts = zip(*(asked[place] for place in places))
            answers = self.vlm.ask(images, prompts, {}, settings=settings)
            made |= dict(zip(places, answers))
        counts = lambda one: TokenCounts(output_tokens=len(one.tokens))
        return [GenerationResult(made[n].text, counts(made[n])) for n in range(len(asked))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuses: what is measured here are answers."""
        raise NotImplementedError("vlm_jax generates answers; choose a task of generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuses tasks of several rounds."""
        raise NotImplementedError("vlm_jax answers in one round; choose a task of generate_until")


def read_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[Any], str]:
    """The system message, the pictures and the text of a request of one user turn.

    Raises:
        PromptError: it has another turn, or a part that is neither text nor a picture.
    """
    system, images, words = "", [], []
    for message in messages:
        role = message["role"]
        for part in message["content"]:
            if part["type"] == "text" and role == "system":
                system += part["text"]
            elif part["type"] == "text" and role == "user":
                words.append(part["text"])
            elif part["type"] == "image" and role == "user":
                images.append(part["url"])
            else:
                raise PromptError(f"vlm_jax reads no {part['type']!r} of the role {role!r}.")
    return system, images, "\n".join(words)


def read_settings(chosen: Mapping[str, Any], system: str, batch_size: int) -> DecodeSettings:
    """The settings of decoding that a task's `generation_kwargs` say.

    Sampling settings are dropped where nothing is drawn: POPE's tasks say top_p=0 beside
    temperature=0.

    Raises:
        ConfigError: a value is out of range.
    """
    until = chosen.get("until") or ()
    found: dict[str, Any] = {
        "max_new_tokens": chosen.get("max_new_tokens") or 128,
        "num_beams": chosen.get("num_beams") or 1,
        "stop": [until] if isinstance(until, str) else list(until),
        "system": system,
        "batch_size": batch_size,
    }
    if chosen.get("do_sample", True) and chosen.get("temperature"):
        found |= {name: chosen[name] for name in _SAMPLING if chosen.get(name) is not None}
    return DecodeSettings().replace(**found)


def _plain(value: Any) -> Any:
    """A value of `--model_args`, whose lists are JSON text."""
    if isinstance(value, str) and value.startswith(("[", "{")):
        try:
            return json.loads(value)
        except ValueError:
            raise ConfigError(f"--model_args has {value!r}, which is not JSON.") from None
    return value
