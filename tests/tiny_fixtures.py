"""Session-wide tiny checkpoints. Tests that change a folder make their own with `tests.tiny`."""

import pathlib

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A tiny LLaVA-1.5 folder, hub names, float32, one file."""
    return tiny.llava(tmp_path_factory.mktemp("tiny") / "llava")


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A tiny Qwen2.5-VL folder, hub names, float32, one file, untied head."""
    return tiny.qwen2_5_vl(tmp_path_factory.mktemp("tiny") / "qwen2_5_vl")
