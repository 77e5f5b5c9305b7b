"""The report in a browser: drawn without complaint, and everything that a reader can do with it."""

import pytest

from tests.report.browser import chromium, visit
from tests.report.runs import HOSTILE, ITEMS, MAPS, write_run
from vlm_jax.report.run import report_of
from vlm_jax.report.stored import read_run


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    path = folder / "report.html"
    path.write_text(report_of(read_run(folder)).text, "utf-8")
    return path


@pytest.fixture(scope="module")
def desktop(browser, report):
    with visit(browser, report) as page:
        yield page


def test_hostile_text_is_text(desktop):
    assert desktop.title() == "llava-0: arms and their controls"
    heading = desktop.locator(".verdicts h2").first.inner_text()
    assert HOSTILE in heading
    search(desktop, "owned")
    assert (
        "<script>document.title='owned'</script>"
        in desktop.locator("article dd").first.inner_text()
    )
    search(desktop, "")


def test_hover_says_the_value(desktop):
    point = desktop.locator("figure.chart").first.locator(".mark-symbol path").nth(1)
    point.hover(force=True)
    tip = desktop.locator("#vg-tooltip-element")
    tip.wait_for(state="visible")
    assert "recall" in tip.inner_text()
    assert "C_S" in tip.inner_text()


def test_an_arm_is_switched_off_and_on(desktop):
    figure = desktop.locator("figure.chart").first
    points, switch = figure.locator(".mark-symbol path"), figure.locator("[data-series=worse]")
    before = points.count()
    switch.click()
    desktop.wait_for_function(
        "(n) => document.querySelector('figure.chart')"
        ".querySelectorAll('.mark-symbol path').length === n",
        arg=before - 1,
    )
    assert switch.get_attribute("aria-pressed") == "false"
    switch.click()
    assert switch.get_attribute("aria-pressed") == "true"


def search(page, words):
    page.get_by_label("search").fill(words)


def chip(page, kind):
    return page.locator(f".chips [data-kind='{kind}']")


def count(page):
    return page.locator(".count").inner_text().replace("\u2013", "-")


def test_filters_and_search(desktop):
    assert count(desktop) == f"1-8 of {ITEMS}"
    kinds = ("removed a mistake", "added a mistake", "lost an object", "changed nothing")
    assert {kind: chip(desktop, kind).inner_text().split()[-1] for kind in kinds} == {
        "removed a mistake": "12", "added a mistake": "0", "lost an object": "13",
        "changed nothing": "0",
    }  # fmt: skip
    chip(desktop, "lost an object").click()
    assert count(desktop) == "1-8 of 13"
    assert desktop.locator("article").first.get_attribute("aria-label") == "example 12"
    chip(desktop, "all").click()
    search(desktop, "cät")
    assert count(desktop) == "1-1 of 1"
    search(desktop, "")
    kinds = desktop.locator("article").nth(3).locator("dd").first.locator("mark")
    assert [kinds.nth(n).get_attribute("class") for n in range(2)] == ["right", "wrong"]
    assert "car" in desktop.locator("article").nth(3).locator(".missed").first.inner_text()


def test_keys(desktop):
    at = "() => document.activeElement.closest('article')?.getAttribute('aria-label')"
    desktop.locator("article").first.focus()
    desktop.keyboard.press("j")
    assert desktop.evaluate(at) == "example 1"
    desktop.keyboard.press("k")
    desktop.keyboard.press("ArrowRight")
    assert count(desktop) == f"9-16 of {ITEMS}"
    desktop.keyboard.press("ArrowLeft")
    desktop.keyboard.press("/")
    assert desktop.evaluate("document.activeElement.type") == "search"


def test_a_word_shows_where_the_model_looked(desktop):
    word = desktop.locator("mark.looked").first
    word.focus()
    desktop.keyboard.press("Enter")
    panel = desktop.locator(".looking")
    assert "Where it looked to choose" in panel.inner_text()
    assert "60.0 %" in panel.inner_text()
    assert panel.locator("option").all_inner_texts() == MAPS
    panel.locator("select").select_option("1")
    assert "90.0 %" in panel.inner_text()
    assert "50.0 % of all attention" in panel.inner_text()
    read = "[...document.querySelector('canvas').getContext('2d').getImageData(0, 0, 3, 1).data]"
    assert [value > 0 for value in desktop.evaluate(read)[3::4]] == [False, True, False]
    word.click()
    assert not panel.count()


def test_benchmarks_of_questions(desktop):
    assert desktop.locator(".examples .key").is_visible()
    chip(desktop, "lost an object").click()
    desktop.get_by_label("benchmark", exact=True).select_option("pope")
    assert not desktop.locator(".examples .key").is_visible()
    assert not chip(desktop, "lost an object").count()
    assert chip(desktop, "all").get_attribute("aria-pressed") == "true"
    assert "\u2713 right" in desktop.locator("article dt").first.inner_text()
    assert chip(desktop, "removed a mistake").inner_text().split()[-1] == "12"
    desktop.get_by_label("benchmark", exact=True).select_option("broken")


def test_tables_sort_and_download(desktop):
    table = desktop.locator("details.part table").first
    names = table.locator("tbody th")
    before = names.all_inner_texts()
    table.locator("thead button").nth(1).click()
    assert table.locator("thead th").nth(1).get_attribute("aria-sort") == "descending"
    assert sorted(names.all_inner_texts()) == sorted(before)
    with desktop.expect_download() as held:
        desktop.locator("details.part .tools button").first.click()
    lines = held.value.path().read_text("utf-8-sig").splitlines()
    assert held.value.suggested_filename == "Change_from_the_unedited_model.csv"
    assert lines[0].startswith('"arm","gap to say-less frontier"')


def test_a_phone_scrolls_in_one_direction(browser, report):
    with visit(browser, report, 390, is_mobile=True, has_touch=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        sizes = page.evaluate(
            "[...document.querySelectorAll('.plot text')].filter((t) => t.textContent)"
            ".map((t) => t.getBoundingClientRect().height)"
        )
        assert min(sizes) >= 9


def test_the_dark_is_dark_and_readable(browser, report):
    with visit(browser, report, color_scheme="dark") as page:
        for selector in ("body", ".note", ".about", "mark.wrong", "mark.right", ".tone", "nav a"):
            assert contrast(page, selector) >= 4.5, selector
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 26)"


@pytest.mark.parametrize("selector", ["body", ".note", ".about", "mark.wrong", "mark.right", "a"])
def test_light_text_is_readable(desktop, selector):
    assert contrast(desktop, selector) >= 4.5


def test_it_prints(browser, report):
    with visit(browser, report) as page:
        printed = page.pdf()
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") >= 2


def contrast(page, selector):
    """WCAG contrast of an element's text against what is behind it."""
    return page.evaluate(
        """(selector) => {
        const of = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
        const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
            .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
            .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
        const element = document.querySelector(selector);
        let behind = element;
        while (behind.parentElement && of(getComputedStyle(behind).backgroundColor)[3] === 0)
            behind = behind.parentElement;
        const both = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
        const [low, high] = both.map(of).map(light).sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    }""",
        selector,
    )
