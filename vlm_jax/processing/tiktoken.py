"""A tokenizer from a file of byte ranks (`tiktoken.model`), without the folder's own code.

A file of ranks says which byte strings are tokens, and in which order they are merged: a text is
split by a pattern, which lives in the folder's Python code and must be known here.
"""

import base64
import binascii
import functools
import itertools
import os
import pathlib
from typing import Any

import msgspec

from vlm_jax.errors import CheckpointError
from vlm_jax.foreign import read_bytes, read_json

KIMI_PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""How Kimi's tokenizer splits a text (`tokenization_moonshot.py` of its folders)."""

SPECIALS = 256
"""Special tokens behind the ranks; those without a name of their own are reserved."""

# Of released files 3 MB, and lines of 190 bytes; how a token is merged takes its length squared.
_MOST_BYTES, _LONGEST_LINE = 16 << 20, 256


class _Token(msgspec.Struct):
    content: str


class _Settings(msgspec.Struct):
    added_tokens_decoder: dict[str, _Token] = {}
    bos_token: str | None = None
    pad_token: str | None = None
    chat_template: str | None = None


def read_tiktoken(folder: pathlib.Path, pattern: str, eos: str) -> Any:
    """Returns the tokenizer of a folder with `tiktoken.model` and `tokenizer_config.json`.

    Args:
        folder: the model folder.
        pattern: how a text is split.
        eos: text of the token that ends an answer.

    Raises:
        CheckpointError: the file is missing or no file of ranks.
    """
    import transformers

    path = folder / "tiktoken.model"
    if not os.path.lexists(path):
        raise CheckpointError(
            f"{folder} has no tiktoken.model; its tokenizer's own code is never run, so that file "
            "of ranks, or a tokenizer.json, must be there."
        )
    ranks = _ranks(read_bytes(path, _MOST_BYTES), path)
    settings = _Settings()
    if os.path.lexists(folder / "tokenizer_config.json"):
        settings = read_json(folder / "tokenizer_config.json", _Settings)
    named = {number: token.content for number, token in settings.added_tokens_decoder.items()}
    first = len(ranks)
    specials = [
        named.get(str(i), f"<|reserved_token_{i}|>") for i in range(first, first + SPECIALS)
    ]
    known = lambda text: text if text in specials else None
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_bpe(ranks, pattern, specials),
        bos_token=known(settings.bos_token),
        eos_token=known(eos),
        pad_token=known(settings.pad_token),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = settings.chat_template
    return tokenizer


def _ranks(content: bytes, path: pathlib.Path) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line[:_LONGEST_LINE].split()
            found[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise CheckpointError(
                f"{path}: line {number} is no token and rank; fetch the file again."
            ) from None
    missing = [byte for byte in range(256) if bytes([byte]) not in found]
    if sorted(found.values()) != list(range(len(found))) or missing:
        raise CheckpointError(
            f"{path} does not give each byte and each token a rank of its own; fetch it again."
        )
    return found


def _bpe(ranks: dict[bytes, int], pattern: str, specials: list[str]) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    symbols = _symbols()
    text = lambda token: "".join(symbols[byte] for byte in token)
    vocab = {text(token): rank for token, rank in ranks.items()}
    merges = []
    for token in sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__):
        parts = _last_merge(token, ranks)
        if parts is not None:
            merges.append((text(parts[0]), text(parts[1])))
    made = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    return made


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """Returns the two tokens that make one, of all its bytes merged by lower ranks first.

    Of bytes a b c with ranks for "ab" and then "abc": a b c -> ab c, the two of "abc".
    """
    parts, rank = [token[i : i + 1] for i in range(len(token))], ranks[token]
    while len(parts) > 2:
        pairs = enumerate(itertools.pairwise(parts))
        best, place = min((ranks.get(a + b, rank), i) for i, (a, b) in pairs)
        if best >= rank:
            return None
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]


@functools.cache
def _symbols() -> list[str]:
    """Returns the printable stand-in of each byte in byte-level BPE (GPT-2's)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]
