"""Does what a tutorial says, block by block, and holds what it shows against what happens.

    python -m tests.docs.tutorials              # writes what happens into all tutorials
    python -m tests.docs.tutorials docs/tutorials/evaluate.md

A block of `sh` is commands of ours, or `pip install -e FOLDER`; one of `python` is run, or, with a
title, written to the file of that name, as are blocks of `toml` and `json`. A block of `text`
shows what the block above it printed: all of it, or some of its paragraphs, with `...` for others.
"""

import contextlib
import dataclasses
import io
import pathlib
import re
import shlex
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator

from tests.docs.commands import ROOT, Block, blocks
from vlm_jax.cli import main

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
ELSEWHERE = "..."
_TIMES = re.compile(r" in \d[\d.]* s\b.*")
_FENCED = "```text\n{}\n```\n"


@dataclasses.dataclass(frozen=True)
class Happened:
    """A block of a tutorial, and what it printed."""

    block: Block
    said: str

    @property
    def shown(self) -> str:
        """What the tutorial should show of it: as many paragraphs as it does, or all."""
        expected = paragraphs(self.block.output)
        if ELSEWHERE not in expected:
            return self.said
        said = {title(one): one for one in [ELSEWHERE, *paragraphs(self.said)]}
        missing = "(nothing was printed that begins as: {})"
        return "\n\n".join(said.get(title(one), missing.format(title(one))) for one in expected)


def paragraphs(text: str) -> list[str]:
    """Returns the parts of a text between blank lines."""
    return [part for part in re.split(r"\n[ ]*\n", text.strip("\n")) if part]


def title(paragraph: str) -> str:
    """Returns the words that tell a paragraph from others: its first line, without numbers."""
    return " ".join(re.sub(r"\d+", "", paragraph.splitlines()[0]).split())


def tidy(text: str) -> str:
    """Returns what a command printed, less what is of one machine: folders, times, warnings."""
    return "\n".join(_TIMES.sub("", line).rstrip() for line in text.strip("\n").splitlines())


def walk(page: pathlib.Path, folder: pathlib.Path) -> Iterator[Happened]:
    """Does what a page says in a folder; yields each block that was run and what it printed."""
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=lambda _, names: set(names) - {_PICTURE})
    (folder / "out").mkdir()
    known: dict = {}
    before = list(sys.path)
    try:
        for block in blocks(page):
            if block.title:
                path = folder / block.title
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding="utf-8")
            elif block.language in ("python", "sh"):
                said = io.StringIO()
                with contextlib.chdir(folder), contextlib.redirect_stdout(said):
                    _run(block, known)
                yield Happened(block, tidy(said.getvalue()))
    finally:
        sys.path[:] = before


_PICTURE = "kitchen.png"


def _run(block: Block, known: dict) -> None:
    if block.language == "python":
        exec(compile(block.text, "<tutorial>", "exec"), known)
        return
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("pip install -e "):
            _install(pathlib.Path(line.split()[-1]).resolve())
        if line.startswith("vlm-jax "):
            main(shlex.split(line)[1:])


def _install(package: pathlib.Path) -> None:
    """Makes a package known as pip would: importable, with the entry points of its project file."""
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    about = package / f"{project['name']}-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
    sys.path.insert(0, str(package))


def write(page: pathlib.Path) -> None:
    """Writes what happens into a page."""
    text = page.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        for happened in walk(page, pathlib.Path(folder)):
            if not happened.block.output:
                continue
            old, new = happened.block.output.rstrip("\n"), happened.shown
            fenced = happened.block.text.rstrip("\n") + "\n```\n\n"
            before, found, after = text.partition(fenced + _FENCED.format(old))
            assert found, f"{page.name} does not show {old[:60]!r} right below its block"
            text = before + fenced + _FENCED.format(new) + after
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for page in map(pathlib.Path, sys.argv[1:] or TUTORIALS):
        write(page)
