"""The reader of config sections."""

import dataclasses

import pytest

from vlm_jax.errors import ConfigError, EditError
from vlm_jax.settings import REQUIRED, number, one_of, read, setting, switch, text, whole


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
