"""Tutorials and notebooks show what happens."""

import nbformat
import pytest

from tests.docs.notebooks import NOTEBOOKS, run
from tests.docs.tutorials import TUTORIALS, paragraphs, walk

QUICK = ("index", "edit_and_export")
SLOW = pytest.mark.slow, pytest.mark.timeout(900)


def check(page, folder):
    """Does what a page says; each block shows what it printed."""
    for happened in walk(page, folder):
        if happened.block.output:
            assert happened.shown.splitlines() == happened.block.output.rstrip().splitlines()


@pytest.mark.parametrize(
    "page",
    [p if p.stem in QUICK else pytest.param(p, marks=SLOW) for p in TUTORIALS],
    ids=lambda page: page.stem,
)
def test_a_tutorial_shows_what_happens(page, tmp_path):
    check(page, tmp_path)


def test_a_tutorial_that_shows_something_else_fails(tmp_path):
    page = tmp_path / "wrong.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n")
    with pytest.raises(AssertionError):
        check(page, tmp_path / "reader")


def test_a_block_may_show_some_paragraphs(tmp_path):
    page = tmp_path / "some.md"
    said = "'a 1\\n\\nb\\n\\nc 4'"
    page.write_text(f"```python\nprint({said})\n```\n\n```text\na 2\n\n...\n\nc 3\n```\n")
    (happened,) = walk(page, tmp_path / "reader")
    assert paragraphs(happened.shown) == ["a 1", "...", "c 4"]
    page.write_text(f"```python\nprint({said})\n```\n\n```text\n...\n\nd 1\n```\n")
    with pytest.raises(AssertionError, match="nothing was printed"):
        check(page, tmp_path / "again")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_happens(path):
    shown = nbformat.read(path, as_version=4)
    for kept, made in zip(shown.cells, run(path).cells, strict=True):
        if kept.cell_type == "code":
            assert texts(kept) == texts(made)


def texts(cell) -> list[str]:
    """What a cell shows, as text."""
    return [
        one.text if one.output_type == "stream" else one.data["text/plain"] for one in cell.outputs
    ]
