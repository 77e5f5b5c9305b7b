"""Prompts that share prefixes on eight host devices, laid out in several ways."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests import tiny
from tests.decoding.mesh_answers import MESHES, SHARED

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Everything that the process with eight devices reports."""
    folder = tmp_path_factory.mktemp("prefix_meshes")
    tiny.llava(folder / "llava", text=dict(num_hidden_layers=1), vision=dict(num_hidden_layers=2))
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    subprocess.run(
        [sys.executable, "-m", "tests.decoding.mesh_answers", folder / "found", folder / "llava"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "NPROC": "16", "JAX_PLATFORMS": "cpu"},
        check=True,
        timeout=280,
    )
    return json.loads((folder / "found").read_text())


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("mesh", MESHES)
def test_answers_are_those_of_whole_prompts_on_one_device(found, mesh, shared):
    expected = found[f"{shared} whole"]
    assert found[f"{shared} {mesh[0]}x{mesh[1]}"]["tokens"] == expected
    assert len({tuple(tokens) for tokens in expected}) > 3


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("mesh", MESHES)
def test_a_warmed_mesh_compiles_nothing_more(found, mesh, shared):
    assert found[f"{shared} {mesh[0]}x{mesh[1]}"]["compiled"] == 0
