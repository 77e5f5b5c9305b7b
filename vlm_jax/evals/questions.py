"""Benchmarks whose truth is a file of questions: their rows, their pictures, their answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from vlm_jax.errors import AnswersError
from vlm_jax.evals.base import Example, Suite, SuiteSettings, paths
from vlm_jax.evals.pictures import EMBEDDED, embedded, find_images
from vlm_jax.evals.records import Record, read_rows, shorten, some
from vlm_jax.settings import setting, text


@dataclass(frozen=True, kw_only=True)
class QuestionSettings(SuiteSettings):
    """A section on a file of questions.

    Attributes:
        truth: the benchmark's files.
        suffix: added to every question.
        parser: reads answers, a name in the suite's `parsers`; "" is its first.
    """

    truth: tuple[str, ...] = setting((), paths)
    suffix: str = setting("", text)
    parser: str = setting("", text)


class QuestionSuite(Suite):
    """A file of questions; subclasses say what a row asks and how its answer is judged.

    Args:
        chosen: its settings.

    Attributes:
        parsers: names of the rules that read answers, the default first.
    """

    Settings: ClassVar[Any] = QuestionSettings
    parsers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, chosen: Any) -> None:
        self.chosen = chosen
        self.parser = chosen.parser or (self.parsers[0] if self.parsers else "")
        if self.parsers and self.parser not in self.parsers:
            raise AnswersError(
                f"parser must be one of {', '.join(self.parsers)}, not {self.parser!r}."
            )
        examples: dict[Any, Example] = {}
        self.prepare()
        for path in chosen.truth:
            for row in read_rows(path):
                self.take(row, examples)
        if not examples:
            raise AnswersError(f"{', '.join(chosen.truth)} holds no question of {self.name}.")
        self._examples = tuple(examples.values())[: chosen.limit or None]
        if chosen.images and chosen.images != EMBEDDED:
            self._examples = _with_files(self._examples, chosen.images)

    @classmethod
    def of(cls, chosen: Any) -> "QuestionSuite":
        """The benchmark of some settings."""
        return cls(chosen)

    def prepare(self) -> None:
        """Called before the first row."""

    def take(self, row: Record, examples: dict[Any, Example]) -> None:
        """Adds what a row asks.

        Raises:
            AnswersError: it lacks a field, or its id is taken.
        """
        example = self.example(row)
        if example is None:
            return
        if example.id in examples:
            raise row.error(f"second question {example.id}; keep one")
        if self.chosen.images == EMBEDDED:
            picture = embedded(row)
            example = replace(example, images=() if picture is None else (picture,))
        examples[example.id] = replace(example, prompt=example.prompt + self.chosen.suffix)

    def example(self, row: Record) -> Example | None:
        """What a row asks; None where it is of no interest."""
        raise NotImplementedError

    def rules(self) -> dict[str, Any]:
        """The parser."""
        return {"parser": self.parser}


def need(row: Record, *keys: str) -> Any:
    """The first of some fields that a row has.

    Raises:
        AnswersError: it has none.
    """
    for key in keys:
        if row.fields.get(key) is not None:
            return row.fields[key]
    have = ", ".join(map(repr, row.fields)) or "nothing"
    raise row.error(f"needs a field {' or '.join(map(repr, keys))}, has {have}")


def need_list(row: Record, key: str) -> list[Any]:
    """A field that is a list, or absent: then an empty one.

    Raises:
        AnswersError: it is something else.
    """
    found = row.fields.get(key)
    if found is not None and not isinstance(found, list):
        raise row.error(f"{key} must be a list, found {shorten(found)}")
    return found or []


def _with_files(examples: Sequence[Example], folder: str) -> tuple[Example, ...]:
    """Examples with the files that their `image` names, below a folder; none where it is ""."""
    found: Mapping[Any, Any] = find_images(folder, by_path=True)
    names: dict[str, list[Path]] = {}
    for path in found.values():
        names.setdefault(path.name, []).append(path)

    def file_of(name: str) -> Path | None:
        if name in found:
            return found[name]
        same = names.get(Path(name).name, [])
        return same[0] if len(same) == 1 else None

    placed, missing = [], []
    for example in examples:
        name = str(example.meta.get("image") or "")
        path = file_of(name) if name else None
        if name and path is None:
            missing.append(name)
        placed.append(replace(example, images=(path,) if path else ()))
    if missing:
        raise AnswersError(
            f"{len(missing)} of {len(examples)} questions lack image files ({folder}): "
            f"{some(missing)}"
        )
    return tuple(placed)
