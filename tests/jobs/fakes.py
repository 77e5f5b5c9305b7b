"""A model that names objects by rule, so that every expected number is known by hand."""

import dataclasses
import types

import numpy as np

STOP, COMMA = 2, 7


@dataclasses.dataclass(frozen=True)
class Answer:
    index: int
    text: str


class FakeVLM:
    """Captions image n of 10 with a dog, a car and, for some n, a cat that is not there.

    The pristine model sees a cat in 6 of 10 images. An edit takes away as many as half its ||dW||,
    rounded; a bias of b on the stop id takes b cats, and 2 b cars. An edited model answers "no" to
    questions about images of even number, as is right; the pristine one always answers "yes".

    Args:
        params: arrays by path.
        calls: the images asked about, shared by edited copies.
    """

    def __init__(self, params, calls=None, pristine=None):
        self.params, self.pristine = params, pristine or params
        self.calls = calls if calls is not None else []
        self.config = types.SimpleNamespace(decoder=types.SimpleNamespace(vocab_size=16))
        tokenizer = types.SimpleNamespace(encode=self._encode, unk_token_id=0)
        self.processor = types.SimpleNamespace(stop_ids=(STOP,), tokenizer=tokenizer)
        self.generator = types.SimpleNamespace(compilations=0)

    @staticmethod
    def _encode(text, add_special_tokens=True):
        return {",": [COMMA], "two": [3, 4]}.get(text, [0])

    def with_params(self, params):
        return FakeVLM(params, self.calls, self.pristine)

    def change(self) -> float:
        """||dW|| of the edit."""
        squares = [
            np.sum((np.asarray(new, np.float64) - np.asarray(self.pristine[path], np.float64)) ** 2)
            for path, new in self.params.items()
            if new is not self.pristine[path]
        ]
        return float(np.sqrt(sum(squares)))

    def answer(self, images, prompts, *, logit_bias=None, **settings):
        bias = 0.0 if logit_bias is None else float(logit_bias[STOP])
        cats = 6 - round(self.change() / 2) - round(bias)
        for index, (listed, prompt) in enumerate(zip(images, prompts)):
            number = listed[0]
            self.calls.append(number)
            if prompt.startswith("Is "):
                yield Answer(index, "yes" if number % 2 or not self.change() else "no")
                continue
            objects = ["dog"] if number % 10 < 2 * round(bias) else ["dog", "car"]
            objects += ["cat"] if number % 10 < cats else []
            yield Answer(index, f"a {' and a '.join(objects)}.")
