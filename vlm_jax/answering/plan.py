"""Which questions are read together, decided before anything is decoded or compiled."""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from vlm_jax.processing import Draft

Item = TypeVar("Item")

ASKED = 0.9
"""Share of rows that hold a question, at least, where neighbouring rows are to share a prefix."""


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
        questions: at most as many as the batch has rows.
        places: the row of each of them, ascending.
        rows: rows of the batch.
        length: static length of the prompts, or of what follows the shared prefixes.
        groups: static number of groups of patches; 0 behind prefixes.
        words: static number of words that a Q-Former reads; 0 behind prefixes.
        owners: with prefixes, which row of them each question continues.
        sharing: with prefixes, how many neighbouring rows continue each.
        in_order: whether these are the prefixes in their order, each once.
    """

    questions: tuple[UniqueQuestion, ...]
    places: tuple[int, ...]
    rows: int
    length: int
    groups: int = 0
    words: int = 0
    owners: tuple[int, ...] = ()
    sharing: int = 1
    in_order: bool = False

    def fill(self, items: Sequence[Item]) -> list[Item]:
        """Returns what each row holds, given what each question has.

        A row without a question repeats what is before it, or the first.
        """
        found, last = dict(zip(self.places, items, strict=True)), items[0]
        return [last := found.get(row, last) for row in range(self.rows)]

    @property
    def row_owners(self) -> list[int]:
        """Which prefix each row continues."""
        if self.in_order:
            return _owners_in_order(self.rows, self.sharing)
        return self.fill(self.owners)


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

    def fill(self, items: Sequence[Item]) -> list[Item]:
        """Returns what each row of the prefixes holds; three are the rows 0 1 2 0."""
        return [items[row % len(items)] for row in range(self.rows)]

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
        sharing, in_order: of a `Batching`.
    """

    rows: int
    length: int
    groups: int = 0
    words: int = 0
    prefix: tuple[int, int, int, int] | None = None
    sharing: int = 1
    in_order: bool = False

    @property
    def row_owners(self) -> list[int] | None:
        """Which prefix each row continues; None where batches of this size differ in that."""
        return _owners_in_order(self.rows, self.sharing) if self.in_order else None


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
            Bucket(b.rows, b.length, prefix=chunk.sizes, sharing=b.sharing, in_order=b.in_order)
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
            tuple(range(len(part))),
            rows,
            sizes.length(max(map(length, part))),
            sizes.groups(max(map(groups, part))),
            sizes.words(max(map(words, part))),
        )
        for part, rows in _cut(order, sizes)
    ]


def _chunks(families: Sequence[Sequence[UniqueQuestion]], sizes: Sizes) -> list[Chunk]:
    """Cuts families, sorted by size and number of questions, into chunks."""
    prefix = lambda draft: draft.length - draft.suffix_length
    size = lambda draft: (sizes.length(prefix(draft)), sizes.groups(draft.groups))
    order = sorted(families, key=lambda family: (*size(family[0].draft), len(family)))
    # Chunks of like sizes are laid out alike, so that few programs are compiled.
    parts: dict[tuple[int, int], list[_Families]] = {}
    for part, rows in _cut(order, sizes):
        many = sizes.rows(sum(map(len, part)))
        parts.setdefault((rows, many), []).append(part)
    found = []
    for (rows, many), alike in parts.items():
        layout = _layout(alike, rows, many)
        for part in alike:
            leaders = tuple(family[0] for family in part)
            found.append(
                Chunk(
                    leaders,
                    rows,
                    sizes.length(max(prefix(q.draft) for q in leaders)),
                    sizes.groups(max(q.draft.groups for q in leaders)),
                    sizes.words(max(len(q.draft.words) for q in leaders)),
                    tuple(_batch(seats, layout, many, sizes) for seats in layout.seats(part)),
                )
            )
    return found


_Families = Sequence[Sequence[UniqueQuestion]]

_Seat = tuple[int, int, UniqueQuestion]
"""A row, which family's prefix it continues, and the question that it holds."""


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How the questions of a chunk are seated in batches.

    Attributes:
        rows: of the batches.
        sharing: neighbouring rows of a batch that continue one prefix.
        in_order: whether each batch continues all prefixes in their order: nothing of them is
            copied then, but a prefix without questions leaves rows idle. Otherwise the prefixes of
            a batch are copied, once for `sharing` rows.
    """

    rows: int
    sharing: int
    in_order: bool

    def seats(self, part: _Families) -> list[list[_Seat]]:
        """Returns the batches of some families; in each, like questions are as long as can be."""
        length = lambda question: question.draft.suffix_length
        part = [sorted(family, key=length) for family in part]
        some = self.sharing
        if self.in_order:
            found: dict[int, list[_Seat]] = {}
            for owner, family in enumerate(part):
                rows = [row for row in range(self.rows) if row // some % len(part) == owner]
                for number, question in enumerate(family):
                    turn, place = divmod(number, len(rows))
                    found.setdefault(turn, []).append((rows[place], owner, question))
            return [sorted(seats, key=lambda seat: seat[0]) for seats in found.values()]
        groups = [
            (owner, family[start : start + some])
            for owner, family in enumerate(part)
            for start in range(0, len(family), some)
        ]
        groups.sort(key=lambda group: length(group[1][-1]))
        each = self.rows // some
        return [
            [
                (place * some + row, owner, question)
                for place, (owner, questions) in enumerate(groups[start : start + each])
                for row, question in enumerate(questions)
            ]
            for start in range(0, len(groups), each)
        ]


def _layout(parts: Sequence[_Families], prefixes: int, rows: int) -> _Layout:
    """Returns the layout that copies least of those that leave few rows idle.

    Eight images with 18 questions each, in batches of 32 rows: four neighbouring rows share an
    image, and nothing is copied. Five images would leave too many rows idle so; two neighbouring
    rows then share a copy of an image. In the worst case every row has a copy of its own.
    """
    layouts = []
    if rows % prefixes == 0:
        layouts.append(_Layout(rows, rows // prefixes, True))
    powers = [1 << power for power in reversed(range(rows.bit_length()))]
    layouts += [_Layout(rows, some, False) for some in powers if rows % some == 0]
    questions = [sum(map(len, part)) for part in parts]
    fewest = sum(-(-count // rows) for count in questions)
    batches = lambda layout: sum(len(layout.seats(part)) for part in parts)
    # The last layout, where every row is alone, has as few batches as there can be.
    most = max(fewest, int(sum(questions) / (ASKED * rows)))
    return next(layout for layout in layouts if batches(layout) <= most)


def _owners_in_order(rows: int, sharing: int) -> list[int]:
    """Returns which prefix each row continues, prefixes in their order: 0 0 1 1 2 2."""
    return [row // sharing for row in range(rows)]


def _batch(seats: Sequence[_Seat], layout: _Layout, rows: int, sizes: Sizes) -> Batching:
    places, owners, questions = zip(*seats)
    return Batching(
        questions,
        places,
        rows,
        sizes.length(max(question.draft.suffix_length for question in questions)),
        owners=owners,
        sharing=layout.sharing,
        in_order=layout.in_order,
    )


def _cut(items: Sequence[Item], sizes: Sizes) -> Iterator[tuple[tuple[Item, ...], int]]:
    rows = sizes.rows(len(items)) if items else 1
    for start in range(0, len(items), rows):
        yield tuple(items[start : start + rows]), rows
