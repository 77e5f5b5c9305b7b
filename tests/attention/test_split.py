"""Prompts read in two calls against the same prompts read in one."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.attention.steered import CHOICES, Layout, build, read, steer
from vlm_jax.attention.steering import Steering

LAYOUT = Layout(3, 9, 2, 2, shared=False)

WHOLE = {
    "visual", "visual last", "visual cached", "visual last cached", "batch sum", "official",
    "official running", "official energy", "all", "all shrink", "AIR* as released",
    "registers", "registers by length, dealt",
}  # fmt: skip
"""Choices that let later rows, or other samples, change a row."""

LEAVING = {
    "nothing", "energy", "logit gains", "lens", "reallocation", "renormalised", "system is text",
    "shrink", "AIR", "boost",
}  # fmt: skip
"""Choices that leave rows up to the image alone."""


def everything(seed: int) -> Steering:
    """All parts that can be split, at once."""
    return dataclasses.replace(steer("all", LAYOUT, seed), visual_gains=None)


def same(steering: Steering | None, seed: int, joined: bool) -> None:
    problem = build(LAYOUT, seed, steps=1)
    # Behind every padded row's last real key there is nothing left to read in a second call.
    assert problem.rows.last_b is not None
    cut = int(problem.rows.last_b.min())
    whole, split = read(problem, steering), read(problem, steering, cut=cut, joined=joined)
    real = problem.valid
    np.testing.assert_allclose(split[0][real], whole[0][real], atol=1e-12, rtol=0)
    np.testing.assert_allclose(split[1], whole[1], atol=1e-12, rtol=0)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12, rtol=0)
    jax.tree.map(close, split[2], whole[2])


@pytest.mark.parametrize("choice", sorted(set(CHOICES) - WHOLE))
def test_two_calls_equal_one(choice):
    with jax.enable_x64(True):
        same(steer(choice, LAYOUT, 1), 1, joined=True)


@pytest.mark.parametrize("joined", [False, True])
def test_two_calls_with_all_parts_equal_one(joined):
    with jax.enable_x64(True):
        same(everything(2), 2, joined)


@pytest.mark.parametrize("choice", sorted(WHOLE))
def test_steerings_that_look_ahead_are_refused(choice):
    steering = steer(choice, LAYOUT, 0, "float32")
    assert not steering.shares_prefix
    with pytest.raises(ValueError, match="read them whole"):
        read(build(LAYOUT, 0, "float32"), steering, cut=1)


@pytest.mark.parametrize("choice", sorted(CHOICES))
def test_parts_that_act_before_the_image_are_known(choice):
    steering = steer(choice, LAYOUT, 0, "float32")
    leaves = choice in LEAVING or choice in ("batch sum",)
    assert steering.keeps_prefix == leaves
    assert steering.shares_prefix == (choice not in WHOLE)
    found = steering.on_prefix
    assert (found is None) == leaves
    if found is not None:
        assert found.logit_gains is found.lens is found.reallocation is None
        whole_prompts = choice in ("official energy", "AIR* as released")
        assert found.energy_rescale is (steering.energy_rescale if whole_prompts else None)
        assert found.head_gains is steering.head_gains


def test_rows_that_nobody_counted_are_refused():
    layout = Layout(2, 5, 1, 3, before=6)
    with pytest.raises(ValueError, match="counts the rows"):
        read(build(layout, 0, "float32"), steer("running", layout, 0, "float32"))
