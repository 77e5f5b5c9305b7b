"""Words of a caption with their place in it: splitting, and the plural-to-singular rules of CHAIR.

Splitting follows the Penn Treebank conventions that the CHAIR code gets from NLTK, as far as they
can touch an object word. Singular forms follow the public Bermi inflector rule list, which the
`pattern` variant of CHAIR applies to every token, misfires included. Nothing here knows about
objects.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

Normaliser = Callable[[str], str]


class Token(NamedTuple):
    """A token of a caption: characters `[start, end)` of the text, and its lower-cased spelling."""

    start: int
    end: int
    text: str


CHUNK = re.compile(r"\S+")

# A separator stands alone wherever it occurs. Commas and colons stay inside "1,000" and "10:30";
# hyphens, slashes and single full stops stay inside words, so that "table.the" is one (unknown)
# token.
_SEPARATOR = re.compile(r"""\.{2,}|-{2,}|''|[\[\](){}<>"“”„«»\u2018\u2019`;@#$%&?!*…]|[,:](?!\d)""")
_CLOSERS = re.compile(r"""[\])}>"'”\u2019».!?]*\Z""")
_CLITICS = frozenset(("'s", "'m", "'d", "'ll", "'re", "'ve"))
_CLITIC = re.compile(r"(?<=.)(?:'(?:s|m|d|ll|re|ve)?|n't)\Z")


def lower_in_place(text: str) -> str:
    """Lower-cases `text` without changing its length, so that offsets stay true."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(low if len(low := char.lower()) == 1 else char for char in text)


def split_chunk(chunk: str) -> tuple[Token, ...]:
    """Splits a lower-cased run without blanks into tokens, offsets relative to its start."""
    tokens: list[Token] = []
    cursor = 0
    for found in _SEPARATOR.finditer(chunk):
        _split_word(chunk, cursor, found.start(), tokens)
        tokens.append(Token(found.start(), found.end(), found.group()))
        cursor = found.end()
    _split_word(chunk, cursor, len(chunk), tokens)
    return tuple(tokens)


def _split_word(chunk: str, start: int, end: int, tokens: list[Token]) -> None:
    """Appends the tokens of `chunk[start:end]`, which holds no separator."""
    if end - start > 1 and chunk[start] == "'" and chunk[start:end] not in _CLITICS:
        tokens.append(Token(start, start + 1, "'"))
        start += 1
    tail: list[Token] = []
    if end - start > 1 and chunk[end - 1] == "." and _CLOSERS.match(chunk, end):
        tail.append(Token(end - 1, end, "."))
        end -= 1
    while end - start > 1 and (clitic := _CLITIC.search(chunk, start, end)):
        if clitic.start() == start:
            break
        tail.append(Token(clitic.start(), end, clitic.group()))
        end = clitic.start()
    if start < end:
        tokens.append(Token(start, end, chunk[start:end]))
    tokens.extend(reversed(tail))


def tokenize(text: str) -> list[Token]:
    """Splits a caption into tokens with character offsets into `text`."""
    lowered = lower_in_place(text)
    return [
        Token(chunk.start() + token.start, chunk.start() + token.end, token.text)
        for chunk in CHUNK.finditer(lowered)
        for token in split_chunk(chunk.group())
    ]


# Plurals no suffix rule reaches; they also end compounds ("grandchildren", "policemen").
_IRREGULAR_ENDINGS = (
    ("children", "child"),
    ("people", "person"),
    ("geese", "goose"),
    ("teeth", "tooth"),
    ("feet", "foot"),
    ("oxen", "ox"),
    ("kine", "cow"),
    ("men", "man"),
)

_INVARIANT_WORDS = """
scissors series species news pants trousers pliers clippers headquarters gallows innings corps
chassis debris mathematics
"""
_INVARIANT = frozenset(_INVARIANT_WORDS.split())

# Words in -ie keep their plural -s: the inflector looks them up and returns the plural itself, so
# that "collies" is not a dog to the reference. "pie" and "tie" are not covered and end in -y
# ("ties" -> "ty").
_IE_WORDS = """
auntie beanie birdie bogie bookie collie cookie cutie doggie eyrie freebie groupie hankie hippie
hoagie hottie indie junkie laddie meanie nightie oldie pixie quickie reverie rookie softie sortie
sweetie techie toughie veggie weenie yuppie zombie
"""
_KEEPS_IES = tuple(f"{word}s" for word in _IE_WORDS.split())

# First match wins. A bare final -s always goes, which is why "bus" becomes "bu".
_SUFFIX_RULES = tuple(
    (re.compile(pattern + r"\Z"), replacement)
    for pattern, replacement in (
        (r"(.)ae", r"\1a"),
        (r"(.)eaux", r"\1eau"),
        (r"(.)itis", r"\1itis"),
        (r"quizzes", "quiz"),
        (r"(matr)ices", r"\1ix"),
        (r"(ap|vert|ind)ices", r"\1ex"),
        (r"(alias|status)es", r"\1"),
        (r"([octpvir])i", r"\1us"),
        (r"(cris|ax|test)es", r"\1is"),
        (r"shoes", "shoe"),
        (r"oes", "o"),
        (r"buses", "bus"),
        (r"([ml])ice", r"\1ouse"),
        (r"(x|ch|ss|sh)es", r"\1"),
        (r"movies", "movie"),
        (r"([^aeiouy]|qu)ies", r"\1y"),
        (r"([aeo]l|[^d]ea|ar)ves", r"\1f"),
        (r"erves", "erve"),
        (r"([nlw]i)ves", r"\1fe"),
        (r"([lr])ves", r"\1f"),
        (r"([aeo]|si|ti|hi)ves", r"\1ve"),
        (r"([^f])ves", r"\1fe"),
        (r"(analy|ba|diagno|parenthe|progno|synop|the)ses", r"\1sis"),
        (r"(.)opses", r"\1opsis"),
        (r"(.)yses", r"\1ysis"),
        (r"(h|d|r|o|n|b|cl|p)oses", r"\1ose"),
        (r"(.)oses", r"\1osis"),
        (r"([ti])a", r"\1um"),
        (r"ss", "ss"),
        (r"s", ""),
    )
)


def singularize(word: str) -> str:
    """Gives the singular of a lower-case word by the inflector rules, quirks of the reference kept.

    Known misfires, reproduced on purpose: "bus" -> "bu", "ties" -> "ty", "canoes" -> "cano",
    "collies" -> "collies". Source: the rule list behind `pattern.en.singularize`, which the CHAIR
    code of Rohrbach et al. (2018) calls.
    """
    if word in _INVARIANT or word.endswith(_KEEPS_IES):
        return word
    for plural, singular in _IRREGULAR_ENDINGS:
        if word.endswith(plural):
            return word[: -len(plural)] + singular
    for pattern, replacement in _SUFFIX_RULES:
        if pattern.search(word):
            return pattern.sub(replacement, word)
    return word


VARIANTS: dict[str, Normaliser] = {"pattern": singularize}
"""Token normalisers by CHAIR variant name; a variant is a function from a token to its looked-up
form."""


def normaliser(variant: str) -> Normaliser:
    """Looks up a CHAIR variant's token normaliser.

    Raises:
        ValueError: the variant is not one of `VARIANTS`.
    """
    if variant not in VARIANTS:
        raise ValueError(
            f"CHAIR variant {variant!r} is unknown; choose one of {', '.join(sorted(VARIANTS))}"
        )
    return VARIANTS[variant]
