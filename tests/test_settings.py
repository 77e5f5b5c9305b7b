"""The reader of config sections."""

import dataclasses

import pytest

from vlm_jax.errors import ConfigError, EditError
from vlm_jax.settings import (
    REQUIRED,
    check_fields,
    listed,
    number,
    one_of,
    optional,
    read,
    setting,
    switch,
    text,
    whole,
    word,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    metric: str = setting("C_S", one_of, known=("C_S", "C_I"))
    drop: float = setting(0.01, number, low=0, high=1)
    draws: int = setting(REQUIRED, whole, low=1)
    pooled: bool = setting(True, switch)
    note: str = setting("", text)
    source: str = ""

    def __post_init__(self):
        if self.note == "impossible":
            raise EditError("note cannot be that.")


def test_a_section_becomes_a_dataclass_with_its_defaults():
    assert read(Choice, {"draws": 2, "drop": 1}, "config.x") == Choice(drop=1.0, draws=2)


def test_all_that_is_missing_is_named_at_once():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Counted(Choice):
        n: int = setting(REQUIRED, whole, low=1)

    with pytest.raises(ConfigError, match=r"Set config\.x\.draws, n: they have no defaults"):
        read(Counted, {}, "config.x")


def test_what_the_caller_sets_is_no_setting():
    assert read(Choice, {"draws": 1}, "config.x", source="a").source == "a"
    with pytest.raises(ConfigError, match=r"config\.x has no setting 'source'"):
        read(Choice, {"draws": 1, "source": "b"}, "config.x", source="a")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "Set config.x.draws"),
        ({"draws": 1, "metrik": "C_S"}, "did you mean 'metric'"),
        ({"draws": 0}, "config.x.draws must be a whole number, at least 1, not 0"),
        ({"draws": True}, "not True"),
        ({"draws": 1.0}, "not 1.0"),
        ({"draws": 1, "drop": float("nan")}, "config.x.drop must be a finite number"),
        ({"draws": 1, "metric": 3}, "config.x.metric must be one of"),
        ({"draws": 1, "pooled": 1}, "True or False"),
        ({"draws": 1, "note": 1}, "must be text"),
        ({"draws": 1, "note": "impossible"}, "config.x: note cannot be that"),
        ("draws", "config.x must be a mapping"),
    ],
)
def test_what_is_wrong_is_named(section, message):
    with pytest.raises(ConfigError, match=message):
        read(Choice, section, "config.x")


def test_no_count_is_larger_than_an_index():
    assert whole("config.n", 2**31 - 1, low=0) == 2**31 - 1
    assert whole("config.n", 2**40, low=0, high=2**63) == 2**40
    with pytest.raises(ConfigError, match=r"config\.n must be a whole number from 0 to 2"):
        whole("config.n", 10**22, low=0)


def test_a_list_may_be_one_word_where_that_is_said():
    assert listed("x", "air", each=word, alone=True) == ("air",)
    assert listed("x", "", each=word, alone=True) == ()
    with pytest.raises(ConfigError, match="x must be a list, not 'air'"):
        listed("x", "air", each=word)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], r"x must list 2 values, not \[1\]"),
        ((1, 2, 3), r"x must list 2 values, not \(1, 2, 3\)"),
        ("12", "x must be a list, not '12'"),
        (12, "x must be a list, not 12"),
        ((1, None), "x must be a whole number, not None"),
    ],
)
def test_a_pair_has_two_values(value, message):
    assert listed("x", [1, 2], each=whole, least=2, most=2) == (1, 2)
    with pytest.raises(ConfigError, match=message):
        listed("x", value, each=whole, least=2, most=2)


def test_a_list_has_an_end():
    with pytest.raises(ConfigError, match="x must list 2 values at most, not 3"):
        listed("x", [1, 2, 3], each=whole, most=2)


def test_what_python_makes_is_checked_too():
    @dataclasses.dataclass(frozen=True)
    class Made:
        energy: float | None = setting(None, optional, each=number, high=1)

        def __post_init__(self):
            check_fields(self)

    assert Made().energy is None
    assert Made(1).energy == 1.0
    with pytest.raises(ConfigError, match="energy must be a finite number at most 1, not 2"):
        Made(2)
