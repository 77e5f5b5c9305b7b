"""Object mentions of an answer as tokens, found by character offsets or, as released, by string."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from vlm_jax.evals.chair import ScoredMention

Span = tuple[int, int]
"""Characters [start, end)."""


@dataclasses.dataclass(frozen=True)
class NamingToken:
    """A token of an answer that is part of an object mention.

    Attributes:
        index: among the answer's tokens.
        mention: among the answer's mentions.
        hallucinated: whether the mentioned object is not in the image.
        first: whether it is the mention's first token.
    """

    index: int
    mention: int
    hallucinated: bool
    first: bool


def token_spans(tokenizer: Any, tokens: Sequence[int], text: str) -> list[Span]:
    """Returns the characters of an answer's text that each of its tokens stands for.

    The tokenizer's own offsets, where it would split the text into these very tokens; otherwise
    how far the text of the tokens up to each one reaches.

    Args:
        tokenizer: a fast transformers tokenizer.
        tokens: ids of the answer.
        text: the tokens decoded, without special tokens.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if list(encoded["input_ids"]) == list(tokens):
        return [(int(start), int(end)) for start, end in encoded["offset_mapping"]]
    ends = [0]
    for count in range(1, len(tokens) + 1):
        reached = len(tokenizer.decode(list(tokens[:count]), skip_special_tokens=True))
        ends.append(max(reached, ends[-1]))
    return list(itertools.pairwise(ends))


def naming_tokens(mentions: Sequence[ScoredMention], spans: Sequence[Span]) -> list[NamingToken]:
    """Returns all tokens that share a character with a mention, in order.

    A token of two mentions counts once, as hallucinated if either is.
    """
    found: dict[int, NamingToken] = {}
    for number, mention in enumerate(mentions):
        inside = [
            index
            for index, (start, end) in enumerate(spans)
            if start < mention.end and end > mention.start
        ]
        for index in inside:
            known = found.get(index)
            if known is None or (mention.hallucinated and not known.hallucinated):
                first = index == inside[0]
                found[index] = NamingToken(index, number, mention.hallucinated, first)
    return [found[index] for index in sorted(found)]


def matching_tokens(
    mentions: Sequence[ScoredMention], tokenizer: Any, tokens: Sequence[int], text: str
) -> list[NamingToken]:
    """Returns the tokens that read as the first piece of a mentioned word: labels as released.

    A word stands for the first token it has by itself, and all tokens of that string are labelled,
    as hallucinated if any such word is. Longer words count once, and pieces of other words count
    too (AD-HH's and AIR's repositories); `naming_tokens` is what was meant.

    Args:
        mentions: of the answer.
        tokenizer, tokens, text: see `token_spans`.
    """
    reads = lambda token: tokenizer.decode([token], skip_special_tokens=True).strip()
    labels: dict[str, int] = {}
    for number, mention in enumerate(mentions):
        pieces = tokenizer(text[mention.start : mention.end], add_special_tokens=False)["input_ids"]
        piece = reads(pieces[0]) if len(pieces) else ""
        known = labels.get(piece)
        if piece and (known is None or (mention.hallucinated and not mentions[known].hallucinated)):
            labels[piece] = number
    found = []
    for index, token in enumerate(tokens):
        number = labels.get(reads(token))
        if number is not None:
            found.append(NamingToken(index, number, mentions[number].hallucinated, True))
    return found
