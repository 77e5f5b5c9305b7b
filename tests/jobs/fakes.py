"""A model that names objects by rule, so that every expected number is known by hand."""

import dataclasses
import functools
import types
from typing import Any

import numpy as np

from vlm_jax.attention.steering import Readings, Steering
from vlm_jax.decoding import StepCounts
from vlm_jax.treatments import TwoPasses, bias_of, steering_of

STOP, COMMA = 2, 7
LAYERS_HEADS = (3, 4)


@dataclasses.dataclass(frozen=True)
class Answer:
    index: int
    text: str
    readings: Readings | None = None
    counts: StepCounts | None = None


def counts(steering: Steering) -> StepCounts:
    """Two steps; every second one all reallocating heads of layer 1 fire."""
    part = steering.reallocation
    fired_sl = np.zeros((2, LAYERS_HEADS[0]), np.int16)
    fired_sl[1, 1] = 0 if part is None else np.isfinite(part.threshold[0, 1]).sum()
    return StepCounts(None if part is None else fired_sl)


def readings(steering: Steering) -> Readings:
    """Half of the rows of reallocating heads fire; head 0 of layer 0 is a perception head."""
    part = steering.reallocation
    zeros_ln = np.zeros(LAYERS_HEADS, np.float32)
    fired_ln = zeros_ln if part is None else 0.5 * np.isfinite(part.threshold[0])
    class_ln = zeros_ln.copy()
    class_ln[0, 0] = steering.visual_gains is not None
    parts: Any = (zeros_ln, zeros_ln, zeros_ln, fired_ln, class_ln, zeros_ln)
    return Readings(*parts)


class FakeVLM:
    """Captions image n of 10 with a dog, a car and, for some n, a cat that is not there.

    The pristine model sees a cat in 6 of 10 images. An edit takes away as many as half its ||dW||,
    rounded; steering that reallocates takes one in each head of layer 1; a bias of b on the stop id
    takes b cats, and 2 b cars. An edited model answers "no" to questions about images of even
    number, as is right; the pristine one always answers "yes".

    Args:
        params: arrays by path.
        calls: the images asked about, shared by edited copies.
    """

    def __init__(self, params, calls=None, pristine=None, treatments=()):
        self.treatments = treatments
        self.params, self.pristine = params, pristine or params
        self.calls = calls if calls is not None else []
        self.config = types.SimpleNamespace(decoder=types.SimpleNamespace(vocab_size=16))
        tokenizer = types.SimpleNamespace(encode=self._encode, unk_token_id=0)
        self.processor = types.SimpleNamespace(
            stop_ids=(STOP,),
            tokenizer=tokenizer,
            generation={},
            identity={"template": "plain"},
            template=lambda prompt, images, system: f"{system}{images} {prompt}",
        )
        self.generator = types.SimpleNamespace(compilations=0)

    @staticmethod
    def _encode(text, add_special_tokens=True):
        return {",": [COMMA], "two": [3, 4]}.get(text, [0])

    def keep_prefixes(self, limit_bytes):
        """Nothing is read, so nothing is kept."""

    def room(self, images, prompts, asked):
        """It has positions without end."""
        return asked

    def treated(self, treatment, replace=None):
        changed = {path: make() for path, make in (replace or {}).items()}
        treatments = (*self.treatments, treatment)
        return FakeVLM({**self.params, **changed}, self.calls, self.pristine, treatments)

    def change(self) -> float:
        """||dW|| of the edit."""
        squares = [
            np.sum((np.asarray(new, np.float64) - np.asarray(self.pristine[path], np.float64)) ** 2)
            for path, new in self.params.items()
            if new is not self.pristine[path]
        ]
        return float(np.sqrt(sum(squares)))

    def answer(self, images, prompts, *, steering=None, **settings):
        steering = steering or steering_of(self.treatments)
        for one in (one for one in self.treatments if isinstance(one, TwoPasses)):
            plain = FakeVLM(self.params, self.calls, self.pristine)
            yield from one.answer(plain, images, prompts, steering=steering, **settings)
            return
        logit_bias = bias_of(self.treatments)
        bias = 0.0 if logit_bias is None else float(logit_bias[STOP])
        cats = 6 - round(self.change() / 2) - round(bias)
        if steering is not None and steering.reallocation is not None:
            cats -= int(np.isfinite(steering.reallocation.threshold[0, 1]).sum())
        say = Answer
        if steering is not None:
            say = functools.partial(Answer, readings=readings(steering), counts=counts(steering))
        for index, (listed, prompt) in enumerate(zip(images, prompts)):
            number = listed[0]
            self.calls.append(number)
            if prompt.startswith("Is "):
                yield say(index, "yes" if number % 2 or not self.change() else "no")
                continue
            objects = ["dog"] if number % 10 < 2 * round(bias) else ["dog", "car"]
            objects += ["cat"] if number % 10 < cats else []
            yield say(index, f"a {' and a '.join(objects)}.")
