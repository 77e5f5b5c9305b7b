"""Opens a page in headless Chromium, where there is one, and says what a reader would find."""

import functools
import pathlib
import re
import shutil
import subprocess

import pytest

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=10000",
)  # fmt: skip


@functools.cache
def chromium() -> str:
    """The browser's path; skips the test where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
    if found is None:
        pytest.skip("install chromium to run this test")
    return found


def visit(
    page: pathlib.Path, script: str = "", width: int = 1100, *flags: str
) -> tuple[dict[str, str], list[str]]:
    """Opens a page, runs a script in it when its charts are drawn, and closes it.

    Args:
        page: an HTML file.
        script: statements that call `tell(name, value)`.
        width: of the window, in pixels.
        flags: further ones of the browser.

    Returns:
        What was told, as text by name; and what the page wrote to the console.
    """
    told = (
        "<script>const told = (name, value) => document.body.append(Object.assign("
        "document.createElement('i'), {className: 'told', title: name, textContent: value}));"
        "const tell = (name, value) => told(name, String(value));"
        "const wait = () => new Promise((done) => setTimeout(done, 300));"
        f"setTimeout(async () => {{ try {{ {script} }} catch (e) {{ tell('error', e); }} }}, 3000);"
        "</script>"
    )
    copy = page.with_name(f"visited_{page.name}")
    before, end, after = page.read_text("utf-8").rpartition("</body>")
    copy.write_text(f"{before}{told}{end}{after}", "utf-8")
    command = [
        chromium(), *_FLAGS, f"--window-size={width},900", *flags,
        f"--user-data-dir={page.parent / 'browser'}", "--dump-dom", f"file://{copy}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.findall(r'<i class="told" title="([^"]*)">([^<]*)</i>', done.stdout)
    return dict(found), re.findall(r'CONSOLE[^"]*"(.*)", source', done.stderr)
