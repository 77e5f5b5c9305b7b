"""Settings that must exist before jax is imported, and the fixtures that every room shares."""

import os
import pathlib

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

pytest_plugins = ["tests.tiny_fixtures"]


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of published questions, captions and scores; skips where it is not at hand."""
    folder = os.environ.get("VLM_JAX_REAL_DATA")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("set VLM_JAX_REAL_DATA to the folder of real benchmark data to run this test")
    return pathlib.Path(folder)
