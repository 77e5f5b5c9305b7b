"""Utilities of sets and changes by policies, against sums written out."""

import numpy as np
import pytest

from vlm_jax.analysis.editing import Utilities
from vlm_jax.steering.methods.policy import POLICIES

ALPHA, BETA = 1.4, 0.6


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(0)
    enhanced, attenuated = np.zeros((2, 3, 4), bool)
    enhanced[0, 1] = enhanced[2, 3] = attenuated[1, 0] = attenuated[1, 2] = True
    return rng.normal(size=(5, 3, 4)), enhanced, attenuated


def test_changes_are_those_of_outputs_that_are_scaled():
    """Heads' outputs O [m, L, N, D] and a direction v: gains change <Y, v> by Delta, exactly."""
    rng = np.random.default_rng(1)
    outputs, direction = rng.normal(size=(5, 3, 4, 7)), rng.normal(size=(5, 3, 7))
    utilities = Utilities(np.einsum("mlnd,mld->mln", outputs, direction))
    enhanced = np.arange(12).reshape(3, 4) % 5 == 0
    attenuated = np.arange(12).reshape(3, 4) % 5 == 1
    gains = {
        "A": np.where(enhanced, ALPHA, 1),
        "B": np.where(attenuated, BETA, 1),
        "C": np.where(enhanced, ALPHA, BETA),
        "D": np.where(enhanced, ALPHA, np.where(attenuated, BETA, 1)),
    }
    for policy, change in utilities.changes(enhanced, attenuated, ALPHA, BETA).items():
        scaled = np.einsum("ln,mlnd->mld", gains[policy], outputs) - outputs.sum(2)
        np.testing.assert_allclose(change, np.einsum("mld,mld->m", scaled, direction), atol=1e-12)


def test_policies_differ_by_what_they_take_from_sets(found):
    by_head, enhanced, attenuated = found
    utilities = Utilities(by_head)
    change = utilities.changes(enhanced, attenuated, ALPHA, BETA)
    assert set(change) == set(POLICIES)
    np.testing.assert_allclose(change["A"], (ALPHA - 1) * utilities.of(enhanced))
    np.testing.assert_allclose(change["B"], (BETA - 1) * utilities.of(attenuated))
    np.testing.assert_allclose(change["D"], change["A"] + change["B"])
    others = (BETA - 1) * utilities.of(~enhanced)
    np.testing.assert_allclose(change["C"], change["A"] + others)
    total = utilities.of(enhanced) + utilities.of(~enhanced)
    np.testing.assert_allclose(total, by_head.sum((1, 2)))
