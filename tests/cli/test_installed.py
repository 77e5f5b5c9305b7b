"""The package as it is installed: a wheel, by way of a source distribution, away from the clone."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv

import pytest

from tests.docs.commands import ROOT

PARTS = ("vlm_jax", "convert", "configs", "docs", "examples")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "launch.py",
         "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md")  # fmt: skip


def ran(command: list, cwd: pathlib.Path) -> str:
    """What a command prints; it must succeed."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_installed_wheel_runs_jobs_from_another_folder(tmp_path):
    clone = tmp_path / "clone"
    clone.mkdir()
    for part in PARTS:
        shutil.copytree(ROOT / part, clone / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copyfile(ROOT / file, clone / file)
    build = "from setuptools import build_meta as b; print(b.{}({!r}))"
    ran([sys.executable, "-c", build.format("build_sdist", str(tmp_path))], clone)
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "source", filter="data")
    [source] = (tmp_path / "source").iterdir()
    ran([sys.executable, "-c", build.format("build_wheel", str(tmp_path))], source)
    [wheel] = tmp_path.glob("*.whl")

    venv.create(tmp_path / "venv", with_pip=False)
    scripts = tmp_path / "venv" / "bin"
    target = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    pip = [sys.executable, "-m", "pip", "--python", str(scripts / "python")]
    ran([*pip, "install", "--no-deps", "--no-index", str(wheel)], tmp_path)
    # What it depends on, from where the tests have it; the folder alone, so without its .pth files.
    (target / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])

    away = tmp_path / "away"
    away.mkdir()
    command = str(scripts / "vlm-jax")
    where = [str(scripts / "python"), "-c", "import vlm_jax; print(vlm_jax.__file__)"]
    assert pathlib.Path(ran(where, away).strip()).is_relative_to(target)
    assert "train_llava" in ran([command, "--help"], away)
    edit = ["--job=edit", "--source=llava-0", "--target=edited", "--config=edit"]
    assert "Edited model: edited" in ran([command, *edit], away)
    assert (away / "edited" / "qk_certificate.json").is_file()
    assert ran([str(scripts / "python"), "-m", "vlm_jax", "--version"], away).startswith("vlm_jax")
