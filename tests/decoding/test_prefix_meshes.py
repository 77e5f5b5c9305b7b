"""Prompts that share prefixes on eight host devices, laid out in several ways."""

import pytest

from tests import tiny
from tests.decoding.mesh_answers import SHARED, behind_prefixes, whole

DAILY = "one", "eight", "pairs"
CASES = [n if n in DAILY else pytest.param(n, marks=pytest.mark.slow) for n in SHARED]
MESHES = [(4, 2), *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in ((1, 1), (8, 1)))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prefix_meshes") / "llava"
    return tiny.llava(folder, text=dict(num_hidden_layers=1), vision=dict(num_hidden_layers=2))


@pytest.mark.parametrize("shared", CASES)
@pytest.mark.parametrize("mesh", MESHES)
def test_answers_are_those_of_whole_prompts_on_one_device(eight, folder, mesh, shared):
    expected = eight(whole, folder, shared)
    tokens, compiled = eight(behind_prefixes, folder, shared, *mesh)
    assert tokens == expected
    assert len({tuple(answer) for answer in expected}) > 3
    assert compiled == 0, "a warmed mesh compiles nothing more"
