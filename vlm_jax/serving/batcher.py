"""Answers requests that wait together in one batch, rows of several arms beside one another."""

import copy
import queue
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from vlm_jax.answering import Answer
from vlm_jax.api import VLM
from vlm_jax.attention.steering import Steering
from vlm_jax.errors import ConfigError, PromptError
from vlm_jax.serving.chat import ChatRequest
from vlm_jax.steering.combine import stack
from vlm_jax.treatments import Steered, TwoPasses


@dataclass(frozen=True)
class _Waiting:
    """A request that waits: what it asks, of which model, who is told, where its answer goes."""

    chat: ChatRequest
    model: VLM
    told: Callable[[str], None] | None = None
    answer: Future[Answer] = field(default_factory=Future)


class Batcher:
    """A thread that owns the model: takes what waits, answers it, and takes again.

    Args:
        rows: requests answered at once at most.
        wait: seconds for which the first of a batch waits for others.

    Attributes:
        batches: how many requests each batch so far had.
    """

    def __init__(self, rows: int = 64, wait: float = 0.01):
        self.rows, self.wait = rows, wait
        self.batches: list[int] = []
        self._queue: queue.Queue[_Waiting | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    def ask(
        self, chat: ChatRequest, model: VLM, told: Callable[[str], None] | None = None
    ) -> "Future[Answer]":
        """Queues a request; a future that is cancelled before its batch begins is left out.

        Args:
            chat, model: what is asked of which arm.
            told: called with the text so far, every few tokens, by the thread of the batches.
        """
        waiting = _Waiting(chat, model, told)
        self._queue.put(waiting)
        return waiting.answer

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return self._queue.qsize()

    def close(self) -> None:
        """Answers what waits, and ends the thread."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while True:
            taken, last = self._take()
            groups: dict[Hashable, list[_Waiting]] = {}
            for one in taken:
                if one.answer.set_running_or_notify_cancel():
                    groups.setdefault(_kind(one), []).append(one)
            for group in groups.values():
                self.batches.append(len(group))
                _answer(group)
            if last:
                return

    def _take(self) -> tuple[list[_Waiting], bool]:
        """What waits now, once something does; and whether it is the last."""
        found, until = [], None
        while len(found) < self.rows:
            try:
                left = None if until is None else max(until - time.monotonic(), 0)
                one = self._queue.get(timeout=left)
            except queue.Empty:
                break
            if one is None:
                return found, True
            found.append(one)
            until = until or time.monotonic() + self.wait
        return found, False


def _steers_only(model: VLM) -> bool:
    """Whether a model is the loaded one with nothing but steering of attention."""
    return all(isinstance(t, Steered) and not isinstance(t, TwoPasses) for t in model.treatments)


def _kind(one: _Waiting) -> Hashable:
    """What rows of one batch share: settings, and the weights or all of the model."""
    shared = id(one.model.params) if _steers_only(one.model) else id(one.model)
    return one.chat.settings, shared


def _answer(group: Sequence[_Waiting]) -> None:
    """Answers requests of one kind; rows whose steering does not fit together take turns."""
    model = group[0].model
    steering: dict[str, Any] = {}
    if _steers_only(model) and any(one.model.steering is not None for one in group):
        try:
            steering = {"steering": stack([one.model.steering or Steering() for one in group])}
        except ConfigError:
            by_model: dict[int, list[_Waiting]] = {}
            for one in group:
                by_model.setdefault(id(one.model), []).append(one)
            if len(by_model) > 1:
                for own in by_model.values():
                    _answer(own)
                return
        else:
            model = copy.copy(model)
            model.treatments, model.steering = (), None
    settings, more = group[0].chat.settings, dict(steering)
    if any(one.told is not None for one in group):

        def tell(index: int, text: str) -> None:
            told = group[index].told
            if told is not None:
                told(text)

        more["told"] = tell
    try:
        found = model.answer(
            [list(one.chat.images) for one in group],
            [one.chat.prompt for one in group],  # pyright: ignore[reportArgumentType]
            settings=settings,
            on_error="yield",
            streams=[0] * len(group),  # a request's draws do not depend on who waits beside it
            **more,
        )
        for made in found:
            one = group[made.index]
            if isinstance(made, Answer):
                one.answer.set_result(made)
            else:
                one.answer.set_exception(PromptError(made.reason))
    except Exception as error:  # a request must not end the thread that answers all others
        for one in group:
            if not one.answer.done():
                one.answer.set_exception(error)


Arms = Mapping[str, VLM]
"""Id of a model -> the loaded model, treated."""
