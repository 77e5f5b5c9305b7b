"""Evidence of object words on the shipped model: masses of the steps that named them."""

import json

import numpy as np
import pytest

import vlm_jax
from vlm_jax.errors import ConfigError


@pytest.fixture(scope="module")
def model():
    return vlm_jax.load("llava-0")


@pytest.mark.slow
def test_words_have_the_mass_of_the_step_that_named_them(model):
    suite = vlm_jax.benchmark("testbed_chair", set="normal", split="dev", n=6)
    found = vlm_jax.explain(model, "evidence", suite, max_new_tokens=48, draws=50)
    document = json.loads(json.dumps(found.document(), allow_nan=False))
    assert list(document["areas"]) == ["all heads", "sensitive heads", "insensitive heads"]
    assert len(document["words"]) == len(found.grounded_m) > 6
    assert found.grounded_m.any()
    first = next(iter(suite.examples()))
    seen = model.attention(first.images[0], first.prompt, max_new_tokens=48)
    own = [word for word in document["words"] if word["id"] == str(first.id)]
    places = [n for n, piece in enumerate(seen.pieces) if piece.strip() == own[0]["word"]]
    image_t = seen.image.mean((1, 2))
    assert np.abs(image_t[places] - own[0]["evidence"]["all heads"]).min() < 1e-4
    assert found.tables()[0].rows[0][0] == "all heads"


def test_examples_without_truth_are_refused(model):
    with pytest.raises(ConfigError, match="needs a benchmark of captions"):
        vlm_jax.explain(model, "evidence", prompts="Hello")
