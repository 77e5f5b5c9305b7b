"""Settings that must exist before jax is imported, and the fixtures that every room shares."""

import gc
import importlib.metadata
import os
import pathlib

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# torch's threads would wait by spinning, and burn what the other test process needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Test processes, and the runs they start, share what they compile; a second run of the tests
# compiles almost nothing.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".pytest_cache/compiled")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# Tiny programs take longer to compile than to run: they are compiled in a third of the time, into
# slower code for the same operations. `XLA_FLAGS= make test` compiles as users do, and so does
# tests/test_as_users_compile.py. Newer releases have no second set of emitters to choose.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false"
    * importlib.metadata.version("jaxlib").startswith("0.10."),
)

import jaxtyping
import pytest

from tests import compiles, turns, typecheck
from tests.eight import started

# What collection imports stays: it is not searched for garbage before the tests start.
gc.disable()

# Shapes and dtypes in the annotations of these rooms are checked at every call the tests make.
jaxtyping.install_import_hook(
    ["vlm_jax.attention", "vlm_jax.decoding", "vlm_jax.models", "vlm_jax.parallel"],
    f"{typecheck.__name__}.{typecheck.functions.__name__}",
)

pytest_plugins = ["tests.tiny_fixtures", "tests.loaded_fixtures"]


def pytest_collection_finish() -> None:
    """Collects garbage seldom, and never among what was imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--turn`: what runs often takes a part of the slow tests each time."""
    parser.addoption("--turn", help="K/N: of the slow tests one N-th, by file; K: any number")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out slow tests whose turn it is not, and leaves bits to those who have them.

    The bits of two programs are compared by the test that compiles them as users do.
    """
    if config.getoption("turn"):
        others = set(turns.others(items, config.getoption("turn")))
        config.hook.pytest_deselected(items=list(others))
        items[:] = [item for item in items if item not in others]
    if "optimization_level=0" in os.environ["XLA_FLAGS"]:
        elsewhere = pytest.mark.skip(reason="tests/test_as_users_compile.py runs it")
        for item in items:
            if item.get_closest_marker("bits"):
                item.add_marker(elsewhere)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Drops compiled programs after a file once there are many."""
    yield
    compiles.forget_many()


@pytest.fixture(scope="session")
def eight():
    """The process with eight host devices: see `tests.eight`."""
    with started() as process:
        yield process


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of published questions, captions and scores; skips where it is not at hand."""
    folder = os.environ.get("VLM_JAX_REAL_DATA")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("set VLM_JAX_REAL_DATA to the folder of real benchmark data to run this test")
    return pathlib.Path(folder)
