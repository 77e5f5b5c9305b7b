"""Head sets as files: what is written is read back, and what is wrong is said."""

import json
import os

import numpy as np
import pytest

from tests.steering.method_fixtures import model_config
from vlm_jax.errors import ConfigError
from vlm_jax.steering.heads import HeadSets, check_heads, read_head_sets
from vlm_jax.steering.layers import layer_range
from vlm_jax.steering.named import resolve_heads
from vlm_jax.steering.presets import FUNCTIONAL, HEAD_SETS

SETS = HeadSets(
    "found",
    (2, 3),
    sensitive=((1, 2), (0, 0)),
    insensitive=((0, 1),),
    inert=((1, 0),),
    count=2,
    perception=((0, 2),),
    reasoning=((1, 1),),
    perception_ln=np.full((2, 3), 0.25),
    reasoning_ln=np.full((2, 3), 0.5),
    system_mass_ln=np.arange(6.0).reshape(2, 3) / 6,
)


def write(path, **changes):
    path.write_text(json.dumps({"sets": {**SETS.document(), **changes}}))
    return path


def test_a_file_gives_back_what_was_found(tmp_path):
    found = read_head_sets(write(tmp_path / "heads.json"))
    for name in ("shape", "sensitive", "insensitive", "inert", "count", "perception", "reasoning"):
        assert getattr(found, name) == getattr(SETS, name)
    np.testing.assert_allclose(found.system_mass_ln, SETS.system_mass_ln, atol=1e-6)
    np.testing.assert_array_equal(found.perception_ln, SETS.perception_ln)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"sensitive": [[2, 0]]}, r"sensitive: there is no head \(2, 0\)"),
        ({"shape": [2]}, "no file of head sets"),
        ({"system_mass_ln": [[0.1]]}, "system_mass_ln is not of its shape"),
        ({"system_mass_ln": [[0.1], [1, 2]]}, "system_mass_ln is not of its shape"),
        ({"system_mass_ln": [[float("nan")] * 3] * 2}, "no file of head sets"),
        ({"sensitive": [[0.5, 0]]}, "no file of head sets"),
        ({"sensitive": "all"}, "no file of head sets"),
        ({"shape": [2, 10**9]}, "no file of head sets"),
        ({"count": -1}, "no file of head sets"),
    ],
)
def test_a_bad_file_is_named(tmp_path, changes, match):
    path = write(tmp_path / "heads.json", **changes)
    with pytest.raises(ConfigError, match=match) as caught:
        read_head_sets(path)
    assert str(path) in str(caught.value)


def test_a_file_of_another_model_is_refused(tmp_path):
    path = str(write(tmp_path / "heads.json"))
    assert resolve_heads(path, model_config(2, 3)).count == 2
    with pytest.raises(ConfigError, match="2 layers of 3 heads, but this one has 2 of 4"):
        resolve_heads(path, model_config(2, 4))
    (tmp_path / "other.json").write_text("[1, 2]")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ConfigError, match="no file of head sets"):
        resolve_heads(str(tmp_path / "other.json"), model_config(2, 3))
    with pytest.raises(ConfigError, match=r"pipe\.json' is neither .* nor a file"):
        resolve_heads(str(tmp_path / "pipe.json"), model_config(2, 3))
    with pytest.raises(ConfigError, match="is not a regular file"):
        read_head_sets(tmp_path / "pipe.json")


def test_published_sets_are_whole():
    sizes = {name: (len(s.sensitive), len(s.insensitive)) for name, s in HEAD_SETS.items()}
    assert sizes == {
        "llava-1.5-7b": (30, 30),
        "llava-1.5-13b": (35, 0),
        "llava-v1.6-34b": (10, 0),
        "minigpt-4": (20, 20),
    }
    for sets in HEAD_SETS.values():
        heads = sets.sensitive + sets.insensitive
        assert len(set(heads)) == len(heads)
        assert all(layer < sets.shape[0] and head < sets.shape[1] for layer, head in heads)
        assert sets.count <= len(sets.sensitive)
    shared = set(HEAD_SETS["llava-1.5-7b"].sensitive[:20]) & set(HEAD_SETS["minigpt-4"].sensitive)
    assert shared == {(16, 29), (13, 31), (19, 18), (17, 0), (22, 20)}
    assert all(p.reasoning_to < p.perception_from for p in FUNCTIONAL.values())


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (5, r"heads must list \(layer, head\) pairs, not 5"),
        ("0,1", r"heads must list \(layer, head\) pairs, not '0,1'"),
        ([(True, False)], "a head is a pair .* of ints"),
        ([None], "a head is a pair .* of ints, not None"),
        ([(0, 1, 2)], "a head is a pair"),
        ([(0, 4)], r"there is no head \(0, 4\)"),
        ([(0, 1), (0, 1)], r"head \(0, 1\) is listed twice"),
    ],
)
def test_what_is_no_list_of_heads_is_refused(heads, message):
    with pytest.raises(ConfigError, match=message):
        check_heads("heads", heads, (2, 4))


@pytest.mark.parametrize("layers", [5, "0,1", (0, True), (0, None), (0.0, 1.0)])
def test_what_is_no_range_of_layers_is_refused(layers):
    with pytest.raises(ConfigError, match="layers must"):
        layer_range("layers", layers, 4)
