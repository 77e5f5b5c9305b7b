"""Tokenizers from files of ranks give the tokens that tiktoken gives."""

import base64
import itertools
import pathlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vlm_jax.errors import CheckpointError
from vlm_jax.processing.tiktoken import KIMI_PATTERN, read_tiktoken

tiktoken = pytest.importorskip("tiktoken")

ROOT = pathlib.Path(__file__).parents[2]
WORDS = st.sampled_from(
    ["attention", " attention", "the", " The", "DON'T", "don't", " 12345", "  ", "\n\n", "图片里",
     "图 片", "é", "ß", "Ǆ", "a\u0301", "…", "🙂", "_x", "\r\n\t", "://", "\u2019ll"]
)  # fmt: skip


def learned(text: bytes, size: int) -> dict[bytes, int]:
    """Returns ranks as byte pair encoding learns them, over whole texts: merges cross words."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    parts = [bytes([byte]) for byte in text]
    while len(ranks) < size:
        pairs = [a + b for a, b in itertools.pairwise(parts) if len(a + b) < 12]
        best = max(sorted(set(pairs)), key=pairs.count)
        ranks.setdefault(best, len(ranks))
        merged: list[bytes] = []
        for part in parts:
            if merged and merged[-1] + part == best:
                merged[-1] = best
            else:
                merged.append(part)
        parts = merged
    return ranks


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Our tokenizer of a folder of 320 ranks, and tiktoken's."""
    text = (ROOT / "README.md").read_text()[:600] + "图片里的图片 don't DON'T 12345 éé" * 3
    ranks = learned(text.encode(), 320)
    folder = tmp_path_factory.mktemp("kimi")
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
    (folder / "tiktoken.model").write_bytes(b"".join(lines))
    theirs = tiktoken.Encoding(
        "kimi", pat_str=KIMI_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    return read_tiktoken(folder, KIMI_PATTERN, "[EOS]"), theirs


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(WORDS, st.text(max_size=6)), max_size=8).map("".join))
@example("图片里的图片attention's attention\n\n  the 12345678 Don't aaaaaaa")
def test_tokens_are_those_of_tiktoken(both, text):
    ours, theirs = both
    found = ours.encode(text, add_special_tokens=False)
    assert found == theirs.encode_ordinary(text)
    assert ours.decode(found) == text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"YWI= -1", "a rank of its own"), (b"YWI= 9", "a rank of its own"),
        (b"YWI= " + b"9" * 5000, "rank of its own"), (b"YWI=", "line 257 is no token and rank"),
        (b"\xff 256", "line 257 is no token and rank"), (b"= 256", "line 257 is no token and rank"),
        (base64.b64encode(b"ab" * 10**5) + b" 256", "line 257 is no token and rank"),
    ],
)  # fmt: skip
def test_what_is_no_file_of_ranks_is_one_error(tmp_path, line, message):
    ranks = [base64.b64encode(bytes([byte])) + b" %d" % byte for byte in range(256)]
    (tmp_path / "tiktoken.model").write_bytes(b"\n".join([*ranks, line]))
    with pytest.raises(CheckpointError, match=message):
        read_tiktoken(tmp_path, KIMI_PATTERN, "[EOS]")
