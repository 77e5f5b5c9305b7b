"""The site of docs/: pages of methods are of the code, links lead somewhere, nothing is fetched."""

import html.parser
import importlib.util
import pathlib
import re
import subprocess
import sys
from types import ModuleType

import pytest

import vlm_jax
from tests.docs.commands import ROOT, blocks, pages
from tests.report.browser import chromium, visit
from vlm_jax.decoding.rerankers import RERANKERS
from vlm_jax.decoding.search.beam import Beam

DOCS = ROOT / "docs"
METHODS = DOCS / "methods"
SECTIONS = ("Formula", "Deviations", "Settings", "Matched control", "On the testbed")
# Searches that are settings of decoding and no methods: the plain ones need no page.
OTHERS = {"beam": Beam}


def script(name: str) -> ModuleType:
    """A script of docs/."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_method_has_a_page_and_every_page_a_method():
    names = {path.stem for path in METHODS.glob("*.md")} - {"index"}
    assert names == {*vlm_jax.methods(), *OTHERS}
    assert set(RERANKERS.names()) <= names


def test_the_settings_of_the_pages_are_those_of_the_code():
    for page, text in script("settings").pages().items():
        assert page.read_text(encoding="utf-8") == text, f"run docs/settings.py: {page.name}"
    name, default = "text_gain", vlm_jax.methods()["air"].settings["text_gain"]
    assert f"| `{name}` | `{default}` | " in (METHODS / "air.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", sorted(METHODS.glob("*.md")), ids=lambda page: page.stem)
def test_a_page_of_a_method_is_whole(page):
    text = page.read_text(encoding="utf-8")
    if page.stem == "index":
        assert len(re.findall(r"^\| \[`", text, re.MULTILINE)) == len(vlm_jax.methods()) + 1
        return
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert [one for one in SECTIONS if not any(h.startswith(one) for h in headings)] == []
    assert "$$" in text
    says = "arXiv" in text or "http" in text or page.stem in OTHERS
    assert says, "a source"


@pytest.mark.slow
def test_the_lines_of_python_of_the_methods_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    vlm = vlm_jax.load("llava-0")
    for page in sorted(METHODS.glob("*.md")):
        for block in blocks(page):
            if block.language == "python":
                known = {"vlm": vlm}
                exec(compile(block.text, page.name, "exec"), known)
                assert {"steered", "edited"} & set(known), page.name


def test_the_reference_has_all_that_the_package_offers():
    text = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    named = {
        one.rpartition(".")[2] for one in re.findall(r"^::: vlm_jax\.(.*)$", text, re.MULTILINE)
    }
    assert set(vlm_jax.__all__) <= named


def anchors(page: pathlib.Path) -> set[str]:
    """What a link may point to in a page: its headings as Markdown names them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", one.replace("\\", "")).strip().lower() for one in found]
    return {re.sub(r"[-\s]+", "-", one) for one in plain}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_no_link_of_a_page_is_dead(page):
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    made = {"../examples.md", "../contributing.md", "../changelog.md"}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith("http") or path in made:
            continue
        if path.startswith("../notebooks/"):
            path = path.removesuffix(".md") + ".ipynb"
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def test_the_headings_of_a_page_are_its_anchors():
    assert "a-strength-chosen-on-development-scenes-tested-once" in anchors(DOCS / "testbed.md")


class Page(html.parser.HTMLParser):
    """What a built page loads and links to, and its anchors."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag in ("script", "img", "iframe") and given.get("src"):
            self.loads.append(given["src"])
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(given["href"])
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> pathlib.Path:
    """The site, built without a warning."""
    for name in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(name, reason="pip install -e '.[docs]' to build the site")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "-q", "--strict", "-d", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def test_the_site_fetches_nothing_and_no_link_of_it_is_dead(site):
    built = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    assert len(built) > 40
    for path, page in built.items():
        fetched = [one for one in page.loads if re.match(r"(https?:)?//", one)]
        assert fetched == [], path.name
        if path.name == "404.html":  # its links are of the server's root
            continue
        for link in page.links:
            target, _, anchor = link.partition("#")
            if re.match(r"\w+:", target):
                continue
            file = (path.parent / target).resolve() if target else path
            assert file.exists(), f"{path.name}: {link}"
            if anchor and file in built:
                assert anchor in built[file].ids, f"{path.name}: {link}"


def test_formulas_and_diagrams_are_part_of_the_pages(site):
    vcd = (site / "methods" / "vcd.html").read_text(encoding="utf-8")
    assert vcd.count("<math") >= 4
    assert "arithmatex" not in vcd
    assert "<svg id=" in (site / "architecture.html").read_text(encoding="utf-8")
    drawn = script("hooks")
    for page in pages():
        for source in drawn.diagrams(page.read_text(encoding="utf-8")):
            assert drawn.picture(source).exists(), f"run docs/diagrams.py: {page.name}"
    searched = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    assert "say-less frontier" in searched


@pytest.mark.slow
def test_pages_are_quiet_and_no_wider_than_a_phone(site):
    with chromium() as browser:
        for path in sorted(site.rglob("*.html")):
            if path.name != "404.html":
                with visit(browser, path, width=390, color_scheme="dark") as page:
                    assert page.evaluate("document.documentElement.scrollWidth") <= 390, path.name


def test_the_site_is_searched_from_disk(site):
    with chromium() as browser, visit(browser, site / "index.html") as page:
        page.click("input.md-search__input")
        page.wait_for_selector(".md-search-result__meta:has-text('Type to start')")
        page.keyboard.type("frontier")
        page.wait_for_selector(".md-search-result__item")
        assert "frontier" in page.inner_text(".md-search-result__list").lower()
