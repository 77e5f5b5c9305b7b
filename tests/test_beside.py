"""What lies beside the package is taken from there, whatever of its name the user has."""

import os
import pathlib
import subprocess
import sys

import pytest

import vlm_jax
from vlm_jax import beside

ROOT = pathlib.Path(vlm_jax.__file__).parents[1]
HOSTILE = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()\nMINE = 1\n"


@pytest.fixture
def hostile(tmp_path):
    (tmp_path / "convert.py").write_text(HOSTILE)
    (tmp_path / "configs.py").write_text(HOSTILE)
    return tmp_path


def run(code: str, folder, *paths):
    """Runs Python in a folder, which comes first on its path, before the others."""
    given = os.pathsep.join([*map(str, paths), str(ROOT)])
    words = [sys.executable, "-c", code] if code else [sys.executable, "-m", "vlm_jax", "--help"]
    return subprocess.run(
        words, cwd=folder, env=os.environ | {"PYTHONPATH": given}, capture_output=True, text=True
    )


OPEN = "from vlm_jax import checkpoint; print(type(checkpoint.open_folder({!r})).__name__)"


def test_a_module_of_the_working_folder_is_not_run(hostile, tmp_path_factory, tiny_llava):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for folder, paths in ((hostile, ()), (elsewhere, (hostile,))):
        done = run(OPEN.format(str(tiny_llava)), folder, *paths)
        assert done.stdout.split() == ["HFFolder"], done.stderr
        assert not (hostile / "ran").exists()


def test_a_module_that_the_user_imported_stays_theirs(hostile, tiny_llava):
    code = f"import convert\n{OPEN.format(str(tiny_llava))}\nimport convert; print(convert.MINE)"
    done = run(code, hostile)
    assert done.stdout.split() == ["HFFolder", "1"], done.stderr


def test_the_command_takes_its_own(hostile):
    done = run("", hostile)
    assert "export" in done.stdout, done.stderr
    assert not (hostile / "ran").exists()


def test_what_is_imported_already_is_the_same():
    import convert

    assert beside.package("convert") is convert
    assert beside.attribute("convert:open_hf") is convert.open_hf
    assert beside.package("nothing") is None
    assert beside.attribute("nothing:at_all") is None
