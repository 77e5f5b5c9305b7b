"""A part of another package is one file: it says what it is and where it acts."""

import jax
import numpy as np
import pytest

from tests.attention.steered import Layout, build, parts, read
from tests.steering.method_fixtures import model_config
from vlm_jax.attention.parts.base import part
from vlm_jax.attention.steering import HeadGains, LogitGains, Steering
from vlm_jax.errors import ConfigError
from vlm_jax.steering import combine
from vlm_jax.steering.validate import validate

LAYOUT = Layout(2, 7, 1, 2)
DECODER = model_config(2, 4).decoder


@part
class Twin(LogitGains):
    """Acts as and where ours does: behind `EnergyRescale`."""

    follows = "energy_rescale"


@part
class Late(LogitGains):
    """Acts behind `Lens`, which then reads what this leaves alone."""

    follows = "lens"


@part
class Lost(LogitGains):
    """Has no place."""

    follows = "nothing"


def gains(kind, size=2.0):
    one = np.ones((1, DECODER.num_layers, DECODER.num_heads), np.float32)
    leaves = dict.fromkeys(kind.identity, one) | {next(iter(kind.identity)): size * one}
    return kind(**leaves)


def test_it_acts_in_its_place():
    """In prompts and in generated rows as our own part there does; behind another it does not."""
    problem, made = build(LAYOUT, 0, "float32", images=1), parts(LAYOUT, 0, "float32")
    lens, ours = made["lens"], made["logit_gains"]
    outside = lambda kind: read(
        problem, Steering(lens=lens, others=(kind(ours.image, ours.system),))
    )
    expected = jax.tree.leaves(read(problem, Steering(logit_gains=ours, lens=lens)))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(outside(Twin)), expected)
    assert np.abs(outside(Late)[1] - expected[1]).max() > 1e-3


def test_all_that_asks_parts_asks_it():
    twin, late = gains(Twin), gains(Late)
    heads = gains(HeadGains)
    both = combine.merge(
        [("a", Steering(head_gains=heads, others=(late,))), ("b", Steering(others=(twin,)))]
    )
    assert list(both.parts) == ["Twin", "Late", "head_gains"]
    validate(both, DECODER)
    assert list(Steering.of(both.parts).parts) == list(both.parts)
    with pytest.raises(ConfigError, match="'a' and 'b' both set Twin"):
        combine.merge([("a", Steering(others=(twin,))), ("b", Steering(others=(twin,)))])
    stacked = combine.stack([Steering(others=(twin,)), Steering(head_gains=heads)])
    leaf = jax.tree.leaves(stacked.parts["Twin"])[0]
    assert leaf[0].min() == 2
    assert leaf[1].max() == 1


def test_one_without_a_place_and_two_of_a_kind_are_refused():
    check = lambda *kinds: validate(Steering(others=tuple(gains(kind) for kind in kinds)), DECODER)
    with pytest.raises(ConfigError, match="Lost follows 'nothing', which is no part"):
        check(Lost)
    with pytest.raises(ConfigError, match="two Twin"):
        check(Twin, Twin)
