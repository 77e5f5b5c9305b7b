"""Draws the diagrams of the pages as pictures, so that the site needs no script for them.

    python docs/diagrams.py mermaid.tiny.js

The script is of the npm package @mermaid-js/tiny (`npm pack @mermaid-js/tiny`); Chromium runs it.
A picture's name is of its diagram's text (`hooks.diagram`); a test says which is missing.
"""

import html
import json
import pathlib
import re
import subprocess
import sys
import tempfile

from hooks import DOCS, diagrams, picture

# Colours of the page that a picture stands on, light or dark.
CSS = """
.node rect, .node polygon, .node path { fill: var(--md-code-bg-color, #f5f5f5) !important;
  stroke: currentColor !important; stroke-opacity: .5; }
.cluster rect { fill: none !important; stroke: currentColor !important; stroke-opacity: .3;
  stroke-dasharray: 4 4; }
g, text, tspan, span { color: inherit !important; }
text, tspan { fill: currentColor !important; }
.edgePaths path, .flowchart-link { stroke: currentColor !important; stroke-opacity: .6; }
.marker, .arrowMarkerPath { fill: currentColor !important; stroke: currentColor !important; }
.edgeLabel rect, .background { fill: var(--md-default-bg-color, #fff) !important;
  opacity: 1 !important; }
.edgeLabel tspan { font-size: 12px; }
"""
PAGE = """<html><body><script src="{script}"></script><script>
const source = {source}, css = {css};
mermaid.initialize({{startOnLoad: false, theme: "base", themeCSS: css, htmlLabels: false,
  fontFamily: "system-ui, sans-serif", flowchart: {{htmlLabels: false, useMaxWidth: false}}}});
mermaid.render("diagram", source).then((made) => {{
  document.body.innerHTML = "<pre></pre>";
  document.querySelector("pre").textContent = made.svg;
}}).catch((error) => document.body.append(String(error)));
</script></body></html>"""


def draw(source: str, script: pathlib.Path) -> str:
    """Returns a diagram as SVG.

    Raises:
        RuntimeError: the browser gave none.
    """
    with tempfile.TemporaryDirectory() as folder:
        page = pathlib.Path(folder) / "page.html"
        quoted = {"source": json.dumps(source), "css": json.dumps(CSS)}
        page.write_text(PAGE.format(script=script.resolve().as_uri(), **quoted), encoding="utf-8")
        command = [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
            "--virtual-time-budget=20000", f"--user-data-dir={folder}/browser", page.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = re.search(r"<pre>(&lt;svg.*?)</pre>", done.stdout, re.DOTALL)
    if found is None:
        raise RuntimeError(f"the browser drew nothing: {done.stdout[-500:]}")
    return html.unescape(found[1])


if __name__ == "__main__":
    for page in sorted(DOCS.rglob("*.md")):
        for source in diagrams(page.read_text(encoding="utf-8")):
            picture(source).write_text(draw(source, pathlib.Path(sys.argv[1])), encoding="utf-8")
