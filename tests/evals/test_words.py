"""Tokens keep their place; singular forms follow the reference, misfires included."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax.evals.words import normaliser, singularize, tokenize


def split(text: str) -> list[str]:
    return [token.text for token in tokenize(text)]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A dog.", ["a", "dog", "."]),
        (
            "A dog, a cat; two (birds)!",
            ["a", "dog", ",", "a", "cat", ";", "two", "(", "birds", ")", "!"],
        ),
        ("the man's hat isn't his", ["the", "man", "'s", "hat", "is", "n't", "his"]),
        ("they'll say we've, I'm", ["they", "'ll", "say", "we", "'ve", ",", "i", "'m"]),
        ("the dogs' bowl", ["the", "dogs", "'", "bowl"]),
        ("'stop' sign", ["'", "stop", "'", "sign"]),
        ("1,000 men at 10:30", ["1,000", "men", "at", "10:30"]),
        ("cat,dog", ["cat", ",", "dog"]),
        ("a table.the end", ["a", "table.the", "end"]),
        ("wait... what", ["wait", "...", "what"]),
        ('he said "a cat."', ["he", "said", '"', "a", "cat", ".", '"']),
        ("a teddy-bear and/or cup", ["a", "teddy-bear", "and/or", "cup"]),
        ("cup -- bowl", ["cup", "--", "bowl"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_tokens(text, tokens):
    assert split(text) == tokens


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet=st.sampled_from("abS '\u2019.,!?()\"-:1\nİß…") | st.characters(), max_size=60)
)
def test_tokens_tile_the_text(text):
    tokens = tokenize(text)
    covered = 0
    for token in tokens:
        assert covered <= token.start < token.end
        assert text[covered : token.start].strip() == ""
        assert len(token.text) == token.end - token.start
        covered = token.end
    assert text[covered:].strip() == ""


@pytest.mark.parametrize(
    ("word", "singular"),
    [
        ("dogs", "dog"),
        ("people", "person"),
        ("women", "woman"),
        ("grandchildren", "grandchild"),
        ("geese", "goose"),
        ("mice", "mouse"),
        ("knives", "knife"),
        ("gloves", "glove"),
        ("benches", "bench"),
        ("glasses", "glass"),
        ("glass", "glass"),
        ("puppies", "puppy"),
        ("vases", "vase"),
        ("buses", "bus"),
        ("skis", "ski"),
        ("scissors", "scissors"),
        ("bus", "bu"),
        ("ties", "ty"),
        ("collies", "collies"),
        ("canoes", "cano"),
    ],
)
def test_singular_forms(word, singular):
    assert singularize(word) == singular


def test_singular_forms_of_the_reference(real_data):
    table = json.loads((real_data / "chair" / "surface_forms_pattern.json").read_text())["map"]
    assert {word: singularize(word) for word in table} == table


def test_unknown_variant_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'lemma' is unknown; choose one of pattern"):
        normaliser("lemma")
