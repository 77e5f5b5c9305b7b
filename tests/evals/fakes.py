"""A benchmark of numbers and a model that doubles them."""

import dataclasses
import random
from collections.abc import Collection

from vlm_jax.evals.base import Example, Judged, Suite

COUNT = 60


class Numbers(Suite):
    """Two questions on each image: what is twice n?"""

    name = "numbers"

    def __init__(self, count: int = COUNT):
        self.count = count

    def examples(self):
        for n in range(self.count):
            yield Example(f"q{n}", (n,), "Twice?", {"image": n // 2})

    def judge(self, example, answer):
        right = int(int(answer) == 2 * example.images[0])
        return Judged(example, {"right": right, "asked": 1}, {"right": right})

    def answer_row(self, example, answer):
        return {"text": answer, "image": example.meta["image"]}

    def protocol(self):
        return {"count": self.count}


@dataclasses.dataclass(frozen=True)
class Made:
    index: int
    text: str


@dataclasses.dataclass(frozen=True)
class Failed:
    index: int
    reason: str


class FakeModel:
    """Doubles the number in the image place.

    Args:
        fails: numbers that cannot be read.
        shuffled: whether answers come in any order.
        breaks: number at which the model itself fails.
    """

    def __init__(
        self, fails: Collection[int] = (), shuffled: bool = False, breaks: int | None = None
    ):
        self.fails, self.shuffled, self.breaks = fails, shuffled, breaks
        self.asked: list[int] = []
        self.streams: dict[int, int] = {}

    def answer(self, images, prompts, *, on_error, streams):
        assert on_error == "yield"
        order = list(range(len(prompts)))
        if self.shuffled:
            random.shuffle(order)
        for index in order:
            (number,) = images[index]
            self.asked.append(number)
            self.streams[number] = streams[index]
            if number == self.breaks:
                raise RuntimeError("the model broke")
            if number in self.fails:
                yield Failed(index, f"Sample {index}, image 0 (n{number}) is corrupt.")
            else:
                yield Made(index, str(2 * number))
