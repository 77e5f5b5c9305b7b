"""What documents tell a reader to type: blocks of code, and our commands in them."""

import dataclasses
import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(\w*)(?: title=\"([^\"]*)\")?\n(.*?)^```", re.MULTILINE | re.DOTALL)
_TYPED = re.compile(r"^ *(?:python launch\.py|vlm-jax)? *(--job=.*)", re.MULTILINE)
_OURS = re.compile(r"(?:(?<![\w/-])vlm-jax|launch\.py)[ ,]+(-.*)")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, its title and the text block below it, if any."""

    language: str
    text: str
    output: str = ""
    title: str = ""


def pages() -> list[pathlib.Path]:
    """Every page that a reader is shown."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: pathlib.Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    below = [*found[1:], ("", "", "")]
    return [
        Block(language, text, after if kind == "text" else "", title)
        for (language, title, text), (kind, _, after) in zip(found, below)
    ]


def commands(text: str) -> list[list[str]]:
    """The words after `vlm-jax` or `launch.py` of every command in a text.

    Continued lines are one; a list of YAML is a command as well.
    """
    text = text.replace("\\\\\n", " ").replace("\\\n", " ")
    text = re.sub(r",\n\s+(?=--)", ", ", text)
    found = []
    for line in text.splitlines():
        for words in _OURS.findall(line):
            if ", --" in words:  # a list of YAML
                words = words.rstrip("]").replace(", --", " --")
            balanced = words if words.count('"') % 2 == 0 else words.rstrip().removesuffix('"')
            found.append(shlex.split(balanced, comments=True))
    return found


def documented() -> list[tuple[str, list[str]]]:
    """(place, words) of every command in pages, configs, examples and the package's docstrings.

    Tutorials are left out: they are done as a whole, see `tests.docs.tutorials`.
    """
    found = []
    for page in pages():
        if page.parent.name == "tutorials":
            continue
        for block in blocks(page):
            found += [(page.name, words) for words in commands(block.text)]
    for folder in ("configs", "examples", "vlm_jax", "convert"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8").replace("\\\\\n", " ")
            for line in _TYPED.findall(text):
                place = str(path.relative_to(ROOT))
                found += [
                    (place, words) for words in commands(line.replace("--job", "vlm-jax --job", 1))
                ]
    return found
