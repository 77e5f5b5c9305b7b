"""What `validate` refuses, and that it lets real steering pass."""

import dataclasses

import numpy as np
import pytest

from vlm_jax.attention.steering import (
    EnergyRescale,
    HeadGains,
    Lens,
    LogitGains,
    Projection,
    Reallocation,
    Steering,
    VisualGains,
)
from vlm_jax.config import DecoderConfig
from vlm_jax.errors import ConfigError
from vlm_jax.steering.validate import validate

CONFIG = DecoderConfig(100, 64, 112, 3, 4, 2, 16, 1e-5, 1e4)


def full(value, examples=1, layers=3, heads=4):
    return np.full((examples, layers, heads), value, np.float32)


def visual(**fields):
    made = VisualGains(full(0.3), full(1.2), full(0.01), full(1.3))
    return Steering(visual_gains=dataclasses.replace(made, **fields))


GOOD = {
    "gains": Steering(head_gains=HeadGains(full(1.2, examples=2))),
    "AD-HH": Steering(reallocation=Reallocation(full(1), full(0), full(0.5))),
    "visual": visual(),
    "bands": visual(perception_from=full(np.inf), reasoning_to=full(0.01)),
    "shrink": Steering(projection=Projection(full(1), full(0.3))),
    "energy": Steering(energy_rescale=EnergyRescale(full(1), full(1))),
    "zero trace": Steering(projection=Projection(full(1), full(0), zero_trace="running")),
    "one useful part": Steering(lens=Lens(full(0)), logit_gains=LogitGains(full(1), full(0.97))),
}


@pytest.mark.parametrize("name", GOOD)
def test_real_steering_passes(name):
    validate(GOOD[name], CONFIG, batch=2)


def odd(value):
    values = full(1.2)
    values[0, 2, 1] = value
    return values


BAD = {
    "no part": (Steering(), "has no part"),
    "layers": (Steering(head_gains=HeadGains(full(2, layers=4))), r"3 layers of 4 heads"),
    "heads": (Steering(head_gains=HeadGains(full(2, heads=8))), r"\(1, 3, 8\)"),
    "flat": (Steering(head_gains=HeadGains(np.ones((3, 4)))), r"\(3, 4\)"),
    "examples": (Steering(head_gains=HeadGains(full(2, examples=3))), "3 examples.*batch has 2"),
    "nan gain": (Steering(head_gains=HeadGains(odd(np.nan))), "nan for layer 2, head 1"),
    "inf gain": (Steering(head_gains=HeadGains(odd(np.inf))), "inf for layer 2, head 1"),
    "nan threshold": (visual(perception_from=odd(np.nan)), "perception_from is nan"),
    "inf beta": (Steering(projection=Projection(full(1), odd(np.inf))), "projection.beta is inf"),
    "order": (visual(reasoning_to=full(0.4)), "reasoning_to is 0.4 and perception_from is 0.3"),
    "equal": (visual(reasoning_to=full(0.3)), "smaller than perception_from"),
    "switch": (visual(rows="all"), "visual_gains.rows must be one of"),
    "gain one": (Steering(head_gains=HeadGains(full(1))), "No example uses"),
    "no head": (
        Steering(reallocation=Reallocation(full(3.5), full(0.1), full(np.inf))),
        "No example uses",
    ),
    "off": (
        Steering(projection=Projection(full(0), full(0.3), zero_trace="running")),
        "No example uses",
    ),
    "no energy": (Steering(energy_rescale=EnergyRescale(full(0), full(1))), "No example uses"),
    "energy": (
        Steering(energy_rescale=EnergyRescale(full(1), full(1), prefill="causal")),
        "energy_rescale.prefill must be one of",
    ),
    "no class": (
        visual(perception_from=full(np.inf), reasoning_to=full(-np.inf)),
        "No example uses",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_steering_is_refused_with_a_clear_sentence(name):
    steering, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        validate(steering, CONFIG, batch=2)
