"""Files by someone else become typed values or one error, whatever they hold."""

import json
import os
import pathlib
from typing import Annotated

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlm_jax.errors import AnswersError, CheckpointError
from vlm_jax.foreign import parse_json, plain_name, read_bytes, read_json


class Rope(msgspec.Struct):
    theta: Annotated[float, msgspec.Meta(gt=0, le=1e12)] = 1e4
    axes: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    scale: float = 1.0


def test_values_have_the_types_asked_for(tmp_path):
    path = tmp_path / "rope.json"
    path.write_bytes(b'\xef\xbb\xbf{"theta": 3, "unknown": [1]}')
    assert read_json(path, Rope) == Rope(theta=3.0)
    assert read_json(path) == {"theta": 3, "unknown": [1]}


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[1]", "null", '{"theta": NaN}', '{"scale": NaN}', '{"scale": Infinity}',
        '{"theta": 0}', '{"theta": "1"}', '{"theta": 1e999}', '{"axes": 2.5}', '{"axes": true}',
        '{"axes": ' + "9" * 6000 + "}", "[" * 100_000, b"\xff\xfe", '{"axes": -1}', '{"theta": {}}',
        '{"theta": "\\ud800"}',
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "rope.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=r"rope\.json"):
        read_json(path, Rope)
    with pytest.raises(AnswersError):
        read_json(path, Rope, error=AnswersError)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["theta", "axes", "scale", "x"]), JSON))
def test_any_json_is_values_or_one_error(values):
    try:
        found = parse_json(json.dumps(values), Rope, "it")
    except CheckpointError:
        return
    assert 0 < found.theta <= 1e12
    assert 1 <= found.axes <= 100


def test_only_regular_files_of_bounded_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(11))
    assert read_bytes(tmp_path / "large", 11) == bytes(11)
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "none", pathlib.Path("/dev/zero")):
        with pytest.raises(CheckpointError, match=path.name):
            read_bytes(path)
    with pytest.raises(CheckpointError, match="11 bytes; at most 10"):
        read_bytes(tmp_path / "large", 10)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_bytes(pathlib.Path("a\0b"))


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "../x.safetensors", "/x.safetensors", "a\\b.safetensors", "a\0",
     ".hidden.safetensors", "config.json", 3, None, "a" * 256, "a\n.safetensors"],
)  # fmt: skip
def test_a_file_name_from_a_file_is_a_plain_name(name):
    with pytest.raises(CheckpointError, match=r"source_layout\.json"):
        plain_name(name, "source_layout.json", ".safetensors")
    assert plain_name("model-1.safetensors", "x", ".safetensors") == "model-1.safetensors"
