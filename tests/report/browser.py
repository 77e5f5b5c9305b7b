"""Headless Chromium by Playwright, where both are there."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="install playwright")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
    with playwright.sync_playwright() as started:
        if found is None and not pathlib.Path(started.chromium.executable_path).exists():
            pytest.skip("install chromium (python -m playwright install chromium)")
        # Everything that is asked of a network fails.
        flags = ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
        browser = started.chromium.launch(executable_path=found, args=flags)
        yield browser
        browser.close()


@contextlib.contextmanager
def visit(browser: Any, page: pathlib.Path, width: int = 1400, **options: Any) -> Iterator[Any]:
    """An open page whose charts are drawn; fails where it wrote to the console or asked outside.

    Args:
        browser: of `chromium`.
        page: an HTML file.
        width: of the window, in pixels.
        options: of the browser's context, such as color_scheme="dark".
    """
    context = browser.new_context(viewport={"width": width, "height": 900}, **options)
    opened, complaints = context.new_page(), []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("requestfailed", lambda request: complaints.append(request.url))
    opened.goto(page.as_uri())
    opened.wait_for_function(
        "[...document.querySelectorAll('figure.chart')].every((f) => f.dataset.drawn)"
    )
    yield opened
    context.close()
    assert not complaints, complaints
