"""Which questions are read together, decided before anything is decoded or compiled."""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from vlm_jax.processing import Draft

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class UniqueQuestion:
    """A prompt that is asked once.

    Attributes:
        draft: of the first sample that asks it.
        samples: numbers of all samples that do.
    """

    draft: Draft
    samples: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Batching:
    """Questions whose prompts are read together.

    Attributes:
        questions: at most as many as the batch has rows; the last is repeated to fill it.
        rows: rows of the batch.
        length: static length of the prompts, or of what follows the shared prefixes.
        groups: static number of groups of patches; 0 behind prefixes.
        words: static number of words that a Q-Former reads; 0 behind prefixes.
        owners: with prefixes, which row of them each question continues.
    """

    questions: tuple[UniqueQuestion, ...]
    rows: int
    length: int
    groups: int = 0
    words: int = 0
    owners: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Prompts read through their last image once, and the questions that continue them.

    Attributes:
        prefixes: a question for each prefix, whose images are decoded.
        rows, length, groups, words: as for `Batching`.
        batches: what follows.
    """

    prefixes: tuple[UniqueQuestion, ...]
    rows: int
    length: int
    groups: int
    words: int
    batches: tuple[Batching, ...]

    @property
    def key(self) -> Hashable:
        """Equal for chunks that read the same."""
        prefixes = tuple(question.draft.prefix for question in self.prefixes)
        return prefixes, *self.sizes

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Its rows, length, groups and words."""
        return self.rows, self.length, self.groups, self.words


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Static sizes, which need compiled programs of their own.

    Attributes:
        rows, length, groups, words: of the batch.
        prefix: the same of the prefixes that it continues, if it does.
    """

    rows: int
    length: int
    groups: int = 0
    words: int = 0
    prefix: tuple[int, int, int, int] | None = None


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """All batches of a call.

    Attributes:
        chunks: prompts that share prefixes.
        batches: prompts that are read whole.
    """

    chunks: tuple[Chunk, ...]
    batches: tuple[Batching, ...]

    @property
    def buckets(self) -> list[Bucket]:
        """The different sizes of its batches, those needed first first."""
        chunks = [
            Bucket(b.rows, b.length, prefix=chunk.sizes)
            for chunk in self.chunks
            for b in chunk.batches
        ]
        whole = [Bucket(b.rows, b.length, b.groups, b.words) for b in self.batches]
        return list(dict.fromkeys(chunks + whole))

    @property
    def questions(self) -> int:
        """How many different questions are asked."""
        whole = sum(len(batch.questions) for batch in self.batches)
        return whole + sum(len(b.questions) for chunk in self.chunks for b in chunk.batches)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How sizes become static ones.

    Attributes:
        rows: number of questions or prefixes -> rows of their batches.
        length: tokens -> bucket.
        groups: groups of patches -> bucket.
        words: words that a Q-Former reads -> bucket.
    """

    rows: Callable[[int], int]
    length: Callable[[int], int]
    groups: Callable[[int], int]
    words: Callable[[int], int] = lambda words: 0


def batch_rows(count: int, most: int, data: int) -> int:
    """Returns the rows of the batches that hold `count` prompts.

    Args:
        count: prompts.
        most: rows at most, unless the data axis needs more.
        data: size of the mesh's data axis, which the rows are a multiple of.
    """
    # Powers of two, so that few programs are compiled.
    return -(-min(most, 1 << (count - 1).bit_length()) // data) * data


def make_plan(
    drafts: Iterable[Draft], sizes: Sizes, *, once: bool, shared: Callable[[int], bool]
) -> BatchPlan:
    """Plans the batches of a call.

    Args:
        drafts: the samples.
        sizes: static sizes.
        once: whether equal questions are asked once.
        shared: whether prompts with images that so many questions begin with are read apart.
    """
    questions: dict[Hashable, list[Draft]] = {}
    for draft in drafts:
        questions.setdefault(draft.question if once else draft.number, []).append(draft)
    asked = [UniqueQuestion(same[0], tuple(d.number for d in same)) for same in questions.values()]
    families: dict[Hashable, list[UniqueQuestion]] = {}
    for question in asked:
        families.setdefault(question.draft.prefix, []).append(question)
    apart, whole = [], []
    for family in families.values():
        continued = family[0].draft.images and all(q.draft.suffix_length for q in family)
        if continued and shared(len(family)):
            apart.append(family)
        else:
            whole += family
    return BatchPlan(tuple(_chunks(apart, sizes)), tuple(_batches(whole, sizes)))


def _batches(questions: Sequence[UniqueQuestion], sizes: Sizes) -> list[Batching]:
    """Cuts questions, sorted by size so that a batch pads little, into batches."""
    length = lambda q: max(view.length for view in q.draft.all_views)
    groups = lambda q: max(view.groups for view in q.draft.all_views)
    words = lambda q: max(len(view.words) for view in q.draft.all_views)
    order = sorted(questions, key=lambda q: (length(q), groups(q)))
    return [
        Batching(
            part,
            rows,
            sizes.length(max(map(length, part))),
            sizes.groups(max(map(groups, part))),
            sizes.words(max(map(words, part))),
        )
        for part, rows in _cut(order, sizes)
    ]


def _chunks(families: Sequence[Sequence[UniqueQuestion]], sizes: Sizes) -> list[Chunk]:
    prefix = lambda draft: draft.length - draft.suffix_length
    order = sorted(families, key=lambda f: (prefix(f[0].draft), f[0].draft.groups))
    found = []
    for part, rows in _cut(order, sizes):
        owned = [(owner, q) for owner, family in enumerate(part) for q in family]
        owned.sort(key=lambda pair: pair[1].draft.suffix_length)
        batches = [
            Batching(
                tuple(question for _, question in some),
                many,
                sizes.length(max(q.draft.suffix_length for _, q in some)),
                owners=tuple(owner for owner, _ in some),
            )
            for some, many in _cut(owned, sizes)
        ]
        leaders = tuple(family[0] for family in part)
        length = sizes.length(max(prefix(q.draft) for q in leaders))
        groups = sizes.groups(max(q.draft.groups for q in leaders))
        words = sizes.words(max(len(q.draft.words) for q in leaders))
        found.append(Chunk(leaders, rows, length, groups, words, tuple(batches)))
    return found


def _cut(items: Sequence[Item], sizes: Sizes) -> Iterator[tuple[tuple[Item, ...], int]]:
    rows = sizes.rows(len(items)) if items else 1
    for start in range(0, len(items), rows):
        yield tuple(items[start : start + rows]), rows
