"""Base classes of analyses: their settings, the subject that they read, their findings."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vlm_jax.answering import Answer
from vlm_jax.api import VLM
from vlm_jax.batch import Batch
from vlm_jax.checkpoint import ModelFolder
from vlm_jax.config import VLMConfig
from vlm_jax.edits.qk.folder import LAYER_ARRAYS, read_layer
from vlm_jax.errors import ConfigError, PromptError
from vlm_jax.evals.base import Example, Suite
from vlm_jax.report.tables import Table


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is analysed.

    Attributes:
        name: of the model.
        config: its architecture.
        layer: index of a decoder layer -> its attention's arrays by name.
        model: gives the model, which loads it if it is not loaded yet.
        examples: what it is asked, for analyses that ask.
        heads: file that `heads="identified"` stands for; "" if there is none.
        suite: the benchmark that the examples are of, if they are of one.
    """

    name: str
    config: VLMConfig
    layer: Callable[[int], dict[str, np.ndarray]]
    model: Callable[[], VLM]
    examples: Sequence[Example] = ()
    heads: str = ""
    suite: Suite | None = None

    @classmethod
    def of_folder(
        cls,
        folder: ModelFolder,
        load: Callable[[], VLM],
        examples: Sequence[Example],
        heads: str,
        suite: Suite | None,
    ) -> "Subject":
        """A model folder that is loaded only if an analysis asks the model."""
        layer = lambda index: read_layer(folder, index)
        return cls(folder.path.name, folder.config, layer, load, examples, heads, suite)

    @classmethod
    def of_model(
        cls, model: VLM, examples: Sequence[Example] = (), suite: Suite | None = None
    ) -> "Subject":
        """A loaded model, edits of its weights included."""

        def layer(index: int) -> dict[str, np.ndarray]:
            paths = {name: f"decoder/layers/{index}/{name}" for name in LAYER_ARRAYS}
            return {n: np.asarray(model.params[p]) for n, p in paths.items() if p in model.params}

        found = None if model.folder is None else model.folder.path / "heads.json"
        heads = str(found) if found is not None and found.is_file() else ""
        return cls(model.name, model.config, layer, lambda: model, examples, heads, suite)


class Finding:
    """What an analysis found; shows itself as its tables, in a notebook too.

    A dataclass of arrays that is one says `repr=False`.
    """

    def document(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        raise NotImplementedError

    def tables(self) -> list[Table]:
        """Returns what a reader looks at first."""
        raise NotImplementedError

    def table(self) -> str:
        """Returns all tables as text."""
        return "\n\n".join(table.text() for table in self.tables())

    def __repr__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in self.tables())


@dataclasses.dataclass(frozen=True)
class Analysis:
    """One analysis: `ANALYSIS` of its module.

    Attributes:
        line: what it finds, in one sentence.
        settings: dataclass of its settings.
        run: of a subject and settings, finds it.
        asks: whether the model answers examples for it.
    """

    line: str
    settings: type
    run: Callable[[Subject, Any], Finding]
    asks: bool = False


def read_answers(
    subject: Subject, limit: int, max_new_tokens: int
) -> Iterator[tuple[Example, Answer, Batch, np.ndarray]]:
    """Yields answers to examples, each behind its prompt again, and the rows that chose its tokens.

    Args:
        subject: whose model answers.
        limit: at most so many of the examples.
        max_new_tokens: of an answer.

    Raises:
        ConfigError: the model is steered.
        PromptError: an answer is empty, or an example cannot be read.
    """
    model = subject.model()
    if model.steering is not None:
        raise ConfigError(
            "an analysis reads what weights do, but this model is steered; give the model without "
            "its treatments, or use its `attention`."
        )
    for example in subject.examples[:limit]:
        images, prompts = [list(example.images)], [example.prompt]
        (answer,) = model.ask(images, prompts, {"max_new_tokens": max_new_tokens})
        if not answer.tokens:
            raise PromptError(f"request {example.id}: the answer is empty, so no step wrote it.")
        batch, starts_b = model.processor.batch_answers(images, prompts, [answer.tokens])
        yield example, answer, batch, starts_b[0] - 1 + np.arange(len(answer.tokens))
