"""Object vocabularies: which words of a caption name which object, and where they stand.

A vocabulary maps surface words to node words (category names). The default one is this project's
own table over the 80 COCO categories; any list in the published `synonyms.txt` form can be read
instead, which is what reproduces published CHAIR numbers.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from vlm_jax.errors import AnswersError, UserError
from vlm_jax.evals.object_words import COCO_OBJECT_WORDS
from vlm_jax.evals.words import CHUNK, lower_in_place, normaliser, split_chunk
from vlm_jax.foreign import convert, read_bytes, read_json


class Mention(NamedTuple):
    """An object named in a text: characters `[start, end)`, their spelling, the node word."""

    start: int
    end: int
    surface: str
    node: str


class Reading(NamedTuple):
    """What a vocabulary finds in a text: mentions in order, and length in (merged) words."""

    mentions: tuple[Mention, ...]
    length: int


_YOUNG_ANIMALS = (
    *("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear"),
    *("zebra", "giraffe", "animal", "cub"),
)
_KEPT_PHRASES = """
motor bike, motor cycle, air plane, traffic light, street light, traffic signal, stop light
fire hydrant, stop sign, parking meter, suit case, sports ball, baseball bat, baseball glove
tennis racket, hot dog
wine glass, cell phone, mobile phone, teddy bear, hair drier, potted plant, laptop computer
stove top oven, home plate, train track
"""


def standard_double_words() -> dict[str, str]:
    """The 55 two-word rules of CHAIR: "w1 w2" (both singular) -> the word that takes their place.

    "home plate" and "train track" are there to swallow "plate" and "train"; "wine glas" is what an
    inflector without an -ss rule makes of "wine glass". Source: Rohrbach et al. (2018), `chair.py`.
    """
    phrases = _KEPT_PHRASES.strip().replace("\n", ", ").split(", ")
    rules = {phrase: phrase for phrase in phrases}
    rules |= {f"{age} {animal}": animal for animal in _YOUNG_ANIMALS for age in ("baby", "adult")}
    rules |= {f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")}
    rules |= {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}
    return rules


@dataclass(frozen=True)
class Vocabulary:
    """Surface words, two-word rules and a CHAIR variant, ready to read captions.

    Attributes:
        nodes: surface word (singular, lower case) -> node word.
        categories: the node words, in order.
        double_words: "w1 w2" (both normalised) -> replacement word.
        variant: name of the token normaliser, a key of `words.VARIANTS`; with `forms`, their name.
        forms: surface word -> its form, in place of a normaliser; see `read_surface_forms`.
    """

    nodes: Mapping[str, str]
    categories: tuple[str, ...]
    double_words: Mapping[str, str] = field(default_factory=standard_double_words)
    variant: str = "pattern"
    forms: Mapping[str, str] | None = None
    _chunks: dict = field(default_factory=dict, init=False, repr=False, compare=False)
    _parts: frozenset = field(default=frozenset(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.forms is None:
            normaliser(self.variant)
        for phrase in self.double_words:
            if len(phrase.split(" ")) > 3 or " " not in phrase:
                raise ValueError(
                    f"two-word rule {phrase!r} must have its words separated by a blank"
                )
        parts = {word for phrase in self.double_words for word in phrase.split(" ")}
        object.__setattr__(self, "_parts", frozenset(parts | set(self.nodes)))

    def node(self, name: str) -> str | None:
        """The node word of a category name or surface word, None for an unknown word."""
        return self.nodes.get(name.strip().lower())

    def read(self, text: str) -> Reading:
        """Finds the object mentions of a text, with character offsets into it.

        The steps are those of CHAIR: split, normalise every token, merge adjacent tokens left to
        right by the two-word rules, drop every "seat" where "toilet" remains, look up.
        """
        words, length = self._merge(*self._candidates(lower_in_place(text)))
        forms = {word for word, _, _ in words}
        if "toilet" in forms and "seat" in forms:
            dropped = sum(word == "seat" for word, _, _ in words)
            words = [entry for entry in words if entry[0] != "seat"]
            length -= dropped
        nodes = self.nodes
        mentions = tuple(
            Mention(start, end, text[start:end], nodes[word])
            for word, start, end in words
            if word in nodes
        )
        return Reading(mentions, length)

    def objects(self, texts: Iterable[str]) -> frozenset[str]:
        """The node words named anywhere in some texts."""
        return frozenset(mention.node for text in texts for mention in self.read(text).mentions)

    def fingerprint(self) -> str:
        """A short hash of words, rules and variant: equal fingerprints score equally."""
        content: list[Any] = [sorted(self.nodes.items()), sorted(self.double_words.items())]
        content.append(self.variant)
        if self.forms is not None:
            content.append(sorted(self.forms.items()))
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def _candidates(self, lowered: str) -> tuple[list[tuple[int, str, int, int]], int]:
        """Tokens that could matter, as (index, normal form, start, end), and the token count."""
        found: list[tuple[int, str, int, int]] = []
        count = 0
        chunks = self._chunks
        for match in CHUNK.finditer(lowered):
            chunk = match.group()
            entry = chunks.get(chunk)
            if entry is None:
                entry = chunks[chunk] = self._analyse(chunk)
            size, useful = entry
            if useful:
                base = match.start()
                for index, form, start, end in useful:
                    found.append((count + index, form, base + start, base + end))
            count += size
        return found, count

    def _analyse(self, chunk: str) -> tuple[int, tuple[tuple[int, str, int, int], ...]]:
        forms_of = self.forms
        if forms_of is None:
            normalise = normaliser(self.variant)
        else:
            normalise = lambda word: forms_of.get(word, word)
        tokens = split_chunk(chunk)
        forms = [(index, normalise(token.text), token) for index, token in enumerate(tokens)]
        useful = tuple(
            (index, form, token.start, token.end)
            for index, form, token in forms
            if form in self._parts
        )
        return len(tokens), useful

    def _merge(
        self, found: list[tuple[int, str, int, int]], count: int
    ) -> tuple[list[tuple[str, int, int]], int]:
        merged: list[tuple[str, int, int]] = []
        rules = self.double_words
        cursor, last = 0, len(found) - 1
        while cursor <= last:
            index, form, start, end = found[cursor]
            if cursor < last and found[cursor + 1][0] == index + 1:
                word = rules.get(f"{form} {found[cursor + 1][1]}")
                if word is not None:
                    merged.append((word, start, found[cursor + 1][3]))
                    cursor += 2
                    count -= 1
                    continue
            merged.append((form, start, end))
            cursor += 1
        return merged, count


def from_table(
    table: Mapping[str, Iterable[str]],
    *,
    double_words: Mapping[str, str] | None = None,
    variant: str = "pattern",
) -> Vocabulary:
    """Builds a vocabulary from category -> synonyms, adding a two-word rule for every two-word
    synonym.

    Raises:
        ValueError: a word is claimed by two categories.
    """
    rules = dict(standard_double_words() if double_words is None else double_words)
    nodes: dict[str, str] = {}
    for category, synonyms in table.items():
        for word in (category, *synonyms):
            if nodes.setdefault(word, category) != category:
                raise ValueError(
                    f"object word {word!r} is listed under both {nodes[word]!r} and {category!r}; "
                    "keep one"
                )
            if word.count(" ") == 1:
                rules.setdefault(word, word)
    return Vocabulary(nodes, tuple(table), rules, variant)


@cache
def coco_vocabulary(variant: str = "pattern") -> Vocabulary:
    """This project's own vocabulary over the 80 COCO categories."""
    return from_table(COCO_OBJECT_WORDS, variant=variant)


def read_synonyms(
    path: str | Path, *, double_words: Mapping[str, str] | None = None, variant: str = "pattern"
) -> Vocabulary:
    """Reads a vocabulary in the published `synonyms.txt` form, spelling quirks kept.

    One line a category, entries separated by exactly ", ", the first being the category. Entries
    are taken as they stand (an entry with a stray blank can never match), and of two equal entries
    the last wins, as in the reference. `double_words` defaults to the reference's 55 rules.

    Raises:
        ValueError: the file cannot be read as text or holds no category.
    """
    lines = _read_text(path).splitlines()
    nodes: dict[str, str] = {}
    categories: list[str] = []
    for line in lines:
        words = line.strip().split(", ")
        if not words[0]:
            continue
        categories.append(words[0])
        nodes.update((word, words[0]) for word in words)
    if not categories:
        raise ValueError(f"synonyms file {path} lists no category; give one category a line")
    rules = standard_double_words() if double_words is None else double_words
    return Vocabulary(nodes, tuple(categories), rules, variant)


def read_surface_forms(path: str | Path) -> dict[str, str]:
    """Reads the WordNet forms of words: variant C of CHAIR without a tagger.

    The file maps words to lemmas by part of speech, `{"map": {"skis": {"n": "ski"}}}`. A word takes
    its lemma as a noun; one in -ing or -ed that is no noun takes its lemma as a verb ("seated" is
    "seat"); others stay. The reference asks a tagger, which differs in one caption of forty.

    Raises:
        AnswersError: the file is not such JSON.
    """
    document = read_json(Path(path), dict[str, Any], error=AnswersError)
    table = document.get("map", document)
    found = {}
    for word, lemmas in convert(table, dict[str, dict[str, str]], str(path), AnswersError).items():
        if "n" in lemmas:
            found[word] = lemmas["n"]
        elif "v" in lemmas and word.endswith(("ing", "ed")):
            found[word] = lemmas["v"]
    return found


def read_double_words(path: str | Path) -> dict[str, str]:
    """Reads two-word rules from JSON: a mapping, or an object holding it under `double_word_dict`.

    Raises:
        AnswersError: the file is not such JSON.
    """
    document = read_json(Path(path), dict[str, Any], error=AnswersError)
    rules = document.get("double_word_dict", document)
    return convert(rules, dict[str, str], str(path), AnswersError)


def _read_text(path: str | Path) -> str:
    try:
        return read_bytes(Path(path)).decode("utf-8-sig")
    except (UserError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path} as UTF-8 text: {error}") from error
