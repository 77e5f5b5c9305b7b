"""Base class of benchmarks: examples to ask, verdicts on answers, tallies of items, metrics.

One class serves `evaluate`, which asks a model, and `score`, which reads a file of answers:

    class Parity(Suite):                                   # vlm_jax/evals/suites/parity.py
        name = "parity"

        def judge(self, example, answer):
            right = int(answer.strip() == example.meta["label"])
            return Judged(example, {"questions": 1, "correct": right}, {"correct": right})

        def metrics(self, totals):
            right = lambda t: ratio(t["correct"], t["questions"])
            return {"accuracy": Metric(right, primary=True)}

    SUITE = Parity
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from vlm_jax.errors import ConfigError
from vlm_jax.evals.records import MAX_DIGITS, Record
from vlm_jax.evals.sheets import ANSWERS
from vlm_jax.evals.tallies import Statistic, Totals
from vlm_jax.settings import read, setting, text, whole

FRACTION = "%"
"""The unit of a metric that is a fraction and shown in percent."""


@dataclass(frozen=True)
class Example:
    """One thing to ask a model.

    Attributes:
        id: distinct within the benchmark; the key of its answer.
        images: paths or PIL images, in the order the prompt refers to them; none where a file of
            answers is scored.
        prompt: the user's turn, before any chat template; or turns that begin and end with the
            user's.
        meta: what scoring or writing the answer needs besides, for example the label of a question.
    """

    id: int | str
    images: tuple[Any, ...]
    prompt: Any
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """The verdict on one answer.

    Attributes:
        example: what was asked.
        counts: integers that add up over answers.
        details: what `items.jsonl` shows besides: the verdict, the rule that found it, words.
    """

    example: Example
    counts: Mapping[str, int]
    details: Mapping[str, Any] = field(default_factory=dict)

    def cut_off(self) -> "Judged":
        """The same of an answer that ended at the limit of tokens: it counts as truncated."""
        counts = dict(self.counts)
        for name in counts:
            kind, slash, part = name.partition("/")
            if kind == "truncated":  # of the answer's own split, where there are several
                counts[name] = counts.get(f"questions{slash}{part}", 1)
        return replace(self, counts=counts, details={**self.details, "truncated": True})


@dataclass(frozen=True)
class Metric:
    """A function of totals, with how it is to be read.

    Attributes:
        of: the value of some totals, or the values of arrays of totals.
        better: which direction is; "" where neither is.
        unit: `FRACTION`, or the unit of a value that is shown as it is.
        primary: whether the benchmark is judged by it.
        shown: whether tables show it.
        outcome: the tally (0 or 1 an answer) whose mean over answers it is, if it is one: pairs of
            outcomes are then tested exactly.
    """

    of: Statistic
    better: Literal["low", "high", ""] = "high"
    unit: str = FRACTION
    primary: bool = False
    shown: bool = True
    outcome: str = ""

    @property
    def plain(self) -> bool:
        """Whether values are shown as they are, not in percent."""
        return self.unit != FRACTION


def primary_metric(metrics: Mapping[str, Metric]) -> str:
    """The name of the metric that a benchmark is judged by; the first where none says so."""
    return next((name for name, one in metrics.items() if one.primary), next(iter(metrics)))


def paths(name: str, value: Any) -> tuple[str, ...]:
    """Returns the files of a setting that is a path or a list of paths.

    Raises:
        ConfigError: it is neither.
    """
    listed = [value] if isinstance(value, str | Path) else value
    if not isinstance(listed, list | tuple) or not all(isinstance(p, str | Path) for p in listed):
        raise ConfigError(f"{name} must be a path or a list of paths, not {value!r}.")
    return tuple(str(path) for path in listed if str(path))


@dataclass(frozen=True, kw_only=True)
class SuiteSettings:
    """What every benchmark's section of a config may say.

    Attributes:
        images: the folder of image files; none where answers are scored.
        limit: examples to take from the front; 0 is all.
    """

    images: str = setting("", text)
    limit: int = setting(0, whole, low=0)


class Suite:
    """A benchmark. Subclasses set `self._examples` and say how an answer is judged.

    Attributes:
        name: of the kind of benchmark: its file's name.
        Settings: the dataclass of its section of a config.
        truth: the setting that names its files of truth.
        answer_key: the field of an answers line that holds the answer.
        answer_keys: fields that may hold it in files of others, the surest first.
        sure_keys: of these, the fields that, where any row of a file has one, hold the answer in
            all of its rows.
        numbers_are_text: whether an answer in a file may be a number, or nothing.
        whole_items: whether an item counts only if all of its examples were answered.
        harness_names: harness -> what it calls the benchmark.
        sheet_names: field of `document` -> VLMEvalKit's column, where they differ.
        malformed: rows of the question file that could not be read -> what is wrong with them.
    """

    name: str = ""
    Settings: ClassVar[Any] = SuiteSettings
    truth: ClassVar[str] = "truth"
    answer_key: ClassVar[str] = "text"
    answer_keys: ClassVar[tuple[str, ...]] = (*ANSWERS, "answer", "caption", "text")
    sure_keys: ClassVar[tuple[str, ...]] = ANSWERS
    numbers_are_text: ClassVar[bool] = False
    whole_items: ClassVar[bool] = False
    harness_names: ClassVar[Mapping[str, str]] = {}
    sheet_names: ClassVar[Mapping[str, str]] = {}
    malformed: Mapping[str, str] = {}
    _examples: Sequence[Example] = ()

    @classmethod
    def read(cls, section: Mapping[str, Any], where: str, family: str = "llava") -> "Suite":
        """Makes the benchmark that a config section describes.

        Args:
            section: settings, see `Settings`.
            where: what messages call it, such as "config.benchmarks.pope".
            family: of the model; sets the size of testbed scenes.

        Raises:
            ConfigError: a setting is unknown or cannot be, or one that must be set is not.
        """
        chosen = read(cls.Settings, section, where)
        for key in ("images", cls.truth):
            if not getattr(chosen, key):
                raise ConfigError(f"Set {where}.{key}: the {cls.name} benchmark needs it.")
        return cls.of(chosen)

    @classmethod
    def of(cls, chosen: Any) -> "Suite":
        """The benchmark of some settings; without images where they name none.

        Raises:
            AnswersError: a file cannot be read.
        """
        raise NotImplementedError(f"{cls.__name__} cannot be made from settings")

    @classmethod
    def recognises(cls, row: Record) -> bool:
        """Whether the first row of a file of truth can only be this benchmark's."""
        return False

    def missing_note(self, count: int) -> str | None:
        """What is noted where `count` examples have no answer; None where that is an error."""
        return None

    def notes(self) -> tuple[str, ...]:
        """Returns notes on the truth that a reader of the metrics needs, one sentence each."""
        return ()

    def examples(self) -> Iterator[Example]:
        """The examples, in the same order every time."""
        return iter(self._examples)

    def identify(self, row: Record) -> Any:
        """The id of the example that a row of a file of answers answers.

        Raises:
            AnswersError: the row does not say.
        """
        return row_id(row)

    def identify_all(self, rows: Sequence[Record]) -> list[Any]:
        """The ids of the examples that a file's rows answer, in order.

        An id may be a tuple: the row answers each of them; an empty one, none that is asked.
        """
        return [self.identify(row) for row in rows]

    def item(self, example: Example) -> Any:
        """Returns the item of an example, the unit of resampling: its image, if there is one."""
        return example.meta.get("image", example.id)

    def judge(self, example: Example, answer: str) -> Judged:
        """Returns the verdict on an answer: its integers, and details for `items.jsonl`."""
        raise NotImplementedError

    def tally(self, judged: Sequence[Judged]) -> dict[str, int]:
        """Returns the tallies of an item: integers, which add up over items in any order."""
        return add_counts(one.counts for one in judged)

    def metrics(self, totals: Totals) -> Mapping[str, Metric]:
        """The metrics that these totals allow."""
        raise NotImplementedError

    def report(self, totals: Totals) -> dict[str, float]:
        """The metrics' values."""
        return {name: metric.of(totals) for name, metric in self.metrics(totals).items()}

    def answer_row(self, example: Example, answer: str) -> dict[str, Any]:
        """The line of `answers.jsonl` for an answer, in the form that `score` reads back."""
        return {"question_id": example.id, "prompt": example.prompt, self.answer_key: answer}

    def document(self, example: Example) -> dict[str, Any]:
        """What a harness's data says of an example, pictures left out, by the harness's names."""
        asked = str(example.meta.get("question", example.prompt))
        label = example.meta.get("label", example.meta.get("answer", ""))
        return {"question_id": example.id, "question": asked, "answer": label}

    def lmms_metrics(self) -> Mapping[str, str]:
        """Our metric -> lmms-eval's, of those that mean the same as judged here."""
        return {}

    def rules(self) -> dict[str, Any]:
        """Returns the rules behind verdicts (parser, vocabulary) as JSON values."""
        return {}

    def protocol(self) -> dict[str, Any]:
        """Returns JSON values that must be equal for two results to be comparable."""
        asked = self._examples
        truth = [{k: v for k, v in one.meta.items() if k != "picture"} for one in asked]
        return {
            "benchmark": self.name,
            **self.rules(),
            "ids": [one.id for one in asked],
            "prompts": [one.prompt for one in asked],
            "truth": truth,
        }


def add_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sums of some tallies, field by field."""
    total: dict[str, int] = {}
    for one in counts:
        for name, count in one.items():
            total[name] = total.get(name, 0) + count
    return total


ID_KEYS = ("question_id", "id", "index", "pid")
"""Fields that may say which question a row is about, the surest first."""


def row_id(row: Record, keys: Sequence[str] = ID_KEYS) -> int | str:
    """A row's question id; digits given as text count as the number.

    Raises:
        AnswersError: it has none, or one that is neither a whole number nor text.
    """
    for key in keys:
        value = row.fields.get(key)
        if isinstance(value, str) and value.strip():
            digits = value.isascii() and value.isdigit() and len(value) <= MAX_DIGITS
            return int(value) if digits else value
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if key in row.fields:
            raise row.error(f"needs a field {key!r} with a number or a name, found {value!r}")
    have = ", ".join(repr(key) for key in row.fields) or "nothing"
    listed = " or ".join(repr(key) for key in keys)
    raise row.error(f"needs a field {listed} that names the question; has {have}")
