"""What the site makes of the pages: run by mkdocs while it builds.

README.md, CONTRIBUTING.md, CHANGELOG.md, examples/ and the notebooks become pages of the site;
formulas become MathML and diagrams pictures, so that a page runs no script for them and fetches
nothing.
"""

import hashlib
import html
import logging
import pathlib
import re

import latex2mathml.converter
import nbformat
from mkdocs.structure.files import File

LOG = logging.getLogger("mkdocs.hooks")
DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
NOTEBOOKS = DOCS / "notebooks"
# Files beside docs/ that are pages of the site, and what those pages are called.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples": "examples.md",
}
_LINK = re.compile(r"(\]\(|src=\")([^)#\s\"]+)")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def on_files(files, config):
    """Adds the pages that are not files of docs/."""
    for name, page in PAGES.items():
        text = _examples() if name == "examples" else (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_relinked(text)))
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        files.append(
            File.generated(config, f"notebooks/{path.stem}.md", content=notebook_page(notebook))
        )
    return files


def on_page_markdown(markdown, page, config, files):
    """Draws diagrams; leads links to files beside docs/ to their pages."""
    up = "../" * page.file.src_uri.count("/")
    for name, target in PAGES.items():
        markdown = markdown.replace(f"]({up}../{name}", f"]({up}{target}")
    return _DIAGRAM.sub(lambda found: _drawn(found[1]), markdown)


def on_page_content(content, page, config, files):
    """Renders formulas."""
    return _FORMULA.sub(_mathml, content)


def _relinked(text: str) -> str:
    """Returns a page of the root with the links that it has in docs/."""

    def moved(link: re.Match) -> str:
        target = link[2].removesuffix("/")
        target = PAGES.get(target, target.removeprefix("docs/"))
        return link[1] + re.sub(r"\.ipynb$", ".md", target)

    return _LINK.sub(moved, text)


def _examples() -> str:
    """Returns a page of the scripts of examples/, which their docstrings introduce."""
    parts = ["# Examples\n\nShort scripts, in `examples/` of the repository.\n"]
    for script in sorted((ROOT / "examples").glob("*.py")):
        source = script.read_text(encoding="utf-8")
        parts.append(f"## {script.name}\n\n```python\n{source}```\n")
    return "\n".join(parts)


def notebook_page(notebook) -> str:
    """Returns a notebook as Markdown: its cells, and below each what it showed."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(_relinked(cell.source))
            continue
        parts.append(f"```python\n{cell.source}\n```")
        parts += [_shown(output) for output in cell.outputs]
    return "\n\n".join(parts) + "\n"


def _shown(output) -> str:
    """Returns what a cell showed: HTML where there is some, a picture, or else text."""
    if output.output_type == "stream":
        return f"```text\n{output.text.rstrip()}\n```"
    data = output.data
    if "text/html" in data:
        return f'<div class="cell" markdown="0">\n{data["text/html"].strip()}\n</div>'
    if "image/png" in data:
        return f'<img alt="what the cell shows" src="data:image/png;base64,{data["image/png"]}">'
    return f"```text\n{data['text/plain'].rstrip()}\n```"


def _mathml(formula: re.Match) -> str:
    """Returns a formula as MathML, which browsers set themselves."""
    display = "block" if formula[1] == "div" else "inline"
    return latex2mathml.converter.convert(html.unescape(formula[2]).strip(), display=display)


def _drawn(source: str) -> str:
    """Returns the picture that docs/diagrams.py drew of a diagram, or its text."""
    path = picture(source)
    if not path.exists():
        LOG.warning("a diagram has no picture; run docs/diagrams.py")
        return f"```text\n{source}```\n"
    return f'<div class="diagram" markdown="0">{path.read_text("utf-8")}</div>\n'


def diagrams(markdown: str) -> list[str]:
    """Returns the text of each diagram of a page."""
    return _DIAGRAM.findall(markdown)


def picture(source: str) -> pathlib.Path:
    """Returns the file of a diagram's picture; its name is of the diagram's text."""
    name = hashlib.sha256(source.encode()).hexdigest()[:12]
    return DOCS / "assets" / f"diagram-{name}.svg"
