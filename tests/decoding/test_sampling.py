"""Temperature, top-k and top-p against NumPy."""

import functools

import jax
import numpy as np
import pytest
import scipy.stats

from vlm_jax.decoding import DecodeSettings
from vlm_jax.decoding.search.sampling import row_keys, sample
from vlm_jax.errors import ConfigError

DRAWS = 4096
LOGITS = np.log(np.array([0.30, 0.02, 0.20, 0.08, 0.25, 0.15], np.float32))


@functools.cache
def _program():
    return jax.jit(lambda logits, seeds, settings: sample(logits, row_keys(seeds, 0), settings))


def draws(logits, settings: DecodeSettings, count: int = DRAWS) -> np.ndarray:
    rows = np.broadcast_to(np.asarray(logits, np.float32), (count, len(logits)))
    return np.asarray(_program()(rows, np.arange(count, dtype=np.uint32), settings.traced()))


def kept(logits, settings: DecodeSettings) -> np.ndarray:
    """Probabilities after temperature, then top-k, then top-p, spelled out."""
    scaled = np.asarray(logits, np.float64) / settings.temperature
    order = np.argsort(-scaled, kind="stable")
    if settings.top_k:
        order = order[: settings.top_k]
    masses = np.exp(scaled[order] - scaled.max())
    masses /= masses.sum()
    count = int(np.searchsorted(np.cumsum(masses), settings.top_p - 1e-6)) + 1
    found = np.zeros(len(logits))
    found[order[:count]] = masses[:count] / masses[:count].sum()
    return found


SETTINGS = [
    DecodeSettings(temperature=1.0),
    DecodeSettings(temperature=0.5),
    DecodeSettings(temperature=2.0),
    DecodeSettings(temperature=1.0, top_k=1),
    DecodeSettings(temperature=1.0, top_k=3),
    DecodeSettings(temperature=1.0, top_k=100),
    DecodeSettings(temperature=1.0, top_p=0.5),
    DecodeSettings(temperature=1.0, top_p=0.56),
    DecodeSettings(temperature=1.0, top_p=1e-6),
    DecodeSettings(temperature=2.0, top_k=4, top_p=0.7),
    DecodeSettings(temperature=0.7, top_k=5, top_p=0.9),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_draws_have_the_right_support_and_frequencies(settings):
    expected = kept(LOGITS, settings)
    counts = np.bincount(draws(LOGITS, settings), minlength=len(LOGITS))
    np.testing.assert_array_equal(counts > 0, expected > 0)
    support = expected > 0
    if support.sum() > 1:
        test = scipy.stats.chisquare(counts[support], DRAWS * expected[support])
        assert test.pvalue > 1e-3


def test_the_order_is_temperature_then_k_then_p():
    # Swapped, top-p at 0.7 of all six masses would keep a token more than of the top four.
    settings = DecodeSettings(temperature=2.0, top_k=4, top_p=0.7)
    without_k = DecodeSettings(temperature=2.0, top_p=0.7)
    assert (kept(LOGITS, settings) > 0).sum() == 3
    assert (kept(LOGITS, without_k) > 0).sum() == 4


def test_equal_logits_keep_exactly_k():
    counts = np.bincount(draws(np.zeros(5), DecodeSettings(temperature=1.0, top_k=2)), minlength=5)
    assert (counts > 0).sum() == 2


def test_minus_infinity_is_never_drawn():
    logits = LOGITS.copy()
    logits[0] = -np.inf
    assert not (draws(logits, DecodeSettings(temperature=3.0)) == 0).any()


def test_keys_differ_between_rows_and_steps():
    seeds = np.arange(50, dtype=np.uint32)
    keys = np.concatenate([jax.jit(row_keys)(seeds, step) for step in range(3)])
    assert len(np.unique(keys, axis=0)) == 150


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -0.1), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0.0),
     ("top_p", 1.1), ("top_p", float("nan"))],
)  # fmt: skip
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        DecodeSettings(**{field: value})
