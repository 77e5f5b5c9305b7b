"""In a notebook, progress is a bar of tqdm and nothing is written line by line."""

import sys
import types

import tqdm.auto

from vlm_jax.progress import Progress


def kernel(monkeypatch, name):
    shell = type(name, (), {})()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))


def test_a_notebook_shows_a_bar(monkeypatch, capsys):
    kernel(monkeypatch, "ZMQInteractiveShell")
    made = []

    class Bar:
        def __init__(self, **about):
            self.about, self.done, self.closed = about, 0, False
            made.append(self)

        def update(self, count):
            self.done += count

        def close(self):
            self.closed = True

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    with Progress(3, "images", "read") as progress:
        progress.advance(2)
    (bar,) = made
    assert bar.about == {"total": 3, "desc": "read", "unit": " images"}
    assert (bar.done, bar.closed) == (2, True)
    assert capsys.readouterr().err == ""


def test_a_terminal_of_ipython_shows_a_line(monkeypatch, capsys):
    kernel(monkeypatch, "TerminalInteractiveShell")
    with Progress(3, "images", "read") as progress:
        progress.advance(3)
    assert "read: 3 images in" in capsys.readouterr().err
