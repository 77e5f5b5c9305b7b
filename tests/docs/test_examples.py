"""The scripts of examples/ run as their docstrings say."""

import contextlib
import pathlib
import re
import runpy
import shutil
import sys

import pytest

from tests.docs.commands import ROOT
from vlm_jax import checkpoint


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda s: s.stem)
def test_an_example_runs_as_it_says(script, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "reader"
    (folder / "docs").mkdir(parents=True)
    (folder / "out").mkdir()
    shutil.copyfile(ROOT / "docs" / "kitchen.png", folder / "docs" / "kitchen.png")
    [said] = re.findall(rf"python examples/{script.name} (.*)", script.read_text(encoding="utf-8"))
    monkeypatch.setattr(sys, "argv", [script.name, *said.split()])
    with contextlib.chdir(folder):
        runpy.run_path(str(script), run_name="__main__")
        if "out/edited" in said:
            assert checkpoint.open_folder(pathlib.Path("out/edited")).certificate is not None
    shown = capsys.readouterr().out
    assert "a kitchen with an oven , a fork and" in shown
