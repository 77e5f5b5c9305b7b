"""Vectors that lead from some answers to others: their directions, and the file that is written."""

import json

import numpy as np
import PIL.Image
import pytest

from configs import identify as config_file
from tests.reference import picture
from vlm_jax.analysis.directions import direction
from vlm_jax.errors import ConfigError
from vlm_jax.jobs import identify
from vlm_jax.study.request import Request
from vlm_jax.study.vectors import read_pairs


def test_a_component_is_the_mean_s_share_of_the_first_axis():
    rng = np.random.default_rng(0)
    axis = np.array([3.0, 4.0]) / 5
    spread = rng.uniform(1, 3, (40, 1)) * axis + 0.01 * rng.standard_normal((40, 2))
    apart = np.stack([spread, -spread], axis=1).astype(np.float32)
    mean, component = direction(apart), direction(apart, "component")
    np.testing.assert_allclose(mean, apart.mean(0), rtol=1e-5)
    np.testing.assert_allclose(component, mean, atol=0.01)
    for found in component:
        assert abs(found @ axis) / np.linalg.norm(found) > 0.9999
    with pytest.raises(ConfigError, match="no pair"):
        direction(apart[:0])


@pytest.fixture
def pairs(tmp_path):
    picture(56, 70, 1).save(tmp_path / "a.png")
    lines = [
        {"image": "a.png", "prompt": "Describe it.", "positive": "a dog", "negative": "a cat sat"},
        {"prompt": "Why?", "positive": "yes", "negative": "no"},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_identify_writes_the_mean_difference_of_last_states(
    llava_vlm, llava_reference, tiny_llava, pairs, tmp_path
):
    """As the torch model has them; its last level is behind the final norm, so it is left out."""
    import torch

    config = config_file.get_config()
    config.identify.pairs = str(pairs)
    config.compile_cache = "off"
    identify.run(Request(config=config, source=tiny_llava, workdir=tmp_path / "out"))
    vectors, found = np.load(tmp_path / "out" / "vectors.npy"), []
    for line in map(json.loads, pairs.read_text().splitlines()):
        images = [PIL.Image.open(pairs.parent / line["image"])] if "image" in line else []
        states = []
        for answer in (line["positive"], line["negative"]):
            batch, _ = llava_vlm.processor.batch_answers([images], [line["prompt"]], [answer])
            ids = np.asarray(batch.tokens_bt)[0, : int(batch.lengths_b[0])].tolist()
            llava_reference._forget()
            with torch.no_grad():
                asked = llava_reference.inputs(ids, images)
                made = llava_reference.model(**asked, output_hidden_states=True)
            states.append(np.stack([level[0, -1].numpy() for level in made.hidden_states[1:-1]]))
        found.append(states[0] - states[1])
    np.testing.assert_allclose(vectors[:-1], np.mean(found, axis=0), atol=3e-5)
    assert np.linalg.norm(vectors[-1]) > 1e-2


@pytest.mark.parametrize(
    ("line", "message"),
    [("", "holds no pair"), ("{", "line 1"), ('{"prompt": "a", "positive": "b"}', "line 1"),
     ('{"prompt": "a", "positive": "b", "negative": "c", "img": "d"}', "img")],
)  # fmt: skip
def test_bad_pairs_are_one_clear_error(tmp_path, line, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text(line)
    with pytest.raises(ConfigError, match=message) as caught:
        read_pairs(path)
    assert "\n" not in str(caught.value)
