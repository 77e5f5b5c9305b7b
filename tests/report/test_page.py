"""The page of a comparison: whole, alone, escaped, and alive in a browser."""

import dataclasses
import html.parser
import re

import numpy as np
import pytest

from tests.report.browser import visit
from vlm_jax.evals.base import Metric
from vlm_jax.evals.comparison import compare
from vlm_jax.evals.results import Results
from vlm_jax.evals.tallies import TallyTable
from vlm_jax.report.comparison import comparison_tables
from vlm_jax.report.page import comparison_page, page
from vlm_jax.report.tables import Section, Table
from vlm_jax.report.verdict import verdicts

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
FIELDS = ("captions", "hallucinated_captions", "gt_objects", "recalled_objects", "words")
METRICS = {
    "C_S": Metric(lambda t: t["hallucinated_captions"] / t["captions"], "low", primary=True),
    "recall": Metric(lambda t: t["recalled_objects"] / t["gt_objects"]),
    "length": Metric(lambda t: t["words"] / t["captions"], "", "words"),
}


class _Links(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href")]


def links(text):
    """What the elements of a page point to."""
    parser = _Links()
    parser.feed(text)
    return parser.found


def tallies(wrong: int, found: int, items: int = 200) -> TallyTable:
    """Captions of one object each: the first `wrong` hallucinate, the last `found` recall."""
    index = np.arange(items)
    columns = [np.ones(items), index < wrong, np.ones(items), index >= items - found]
    counts = np.stack([*columns, np.full(items, 10)], 1).astype(np.int64)
    return TallyTable(tuple(range(items)), FIELDS, counts)


@pytest.fixture(scope="module")
def comparison():
    tables = {
        "unedited": {"broken": [tallies(120, 180)]},
        HOSTILE: {"broken": [tallies(40, 178)]},
        "R1": {"broken": [tallies(119, 180), tallies(121, 180)]},
        "worse": {"broken": [tallies(160, 120)]},
    }
    sweep = {0.0: {"broken": tallies(120, 180)}, 2.0: {"broken": tallies(60, 90)}}
    found = compare(
        tables,
        {"broken": METRICS},
        sweep=sweep,
        controls=[(HOSTILE, "R1", True)],
        draws=200,
    )
    return found


@pytest.fixture(scope="module")
def written(comparison, tmp_path_factory):
    about = Results("broken", {}, {}, 200, config={"note": HOSTILE}, protocol="abc")
    text = comparison_page(HOSTILE, comparison, comparison_tables(comparison), about)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(text, "utf-8")
    return path


def test_the_page_is_whole_and_loads_nothing(written):
    text = written.read_text("utf-8")
    outside = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "<img" not in outside
    assert all(link.startswith("#") for link in links(outside))
    assert len(text) < 1_500_000
    for landmark in ("<main>", "<header>", "<nav ", "<footer>", 'lang="en"', "viewport"):
        assert landmark in outside
    assert "abc" in outside  # the protocol's hash, to repeat it


def test_a_verdict_says_what_was_told_apart(comparison):
    first, second = verdicts(comparison)
    assert first.arm == HOSTILE
    assert first.text.startswith("-40.0 points of C_S on broken; ")
    assert "points better than saying less at the same recall" in first.text
    # Two draws of a control cannot give a small p, however far the arm is from them.
    assert first.text.endswith("not told apart from its control R1.")
    assert first.tone == ""
    assert second.tone == "worse"
    assert "+20.0 points of C_S" in second.text
    assert "no control stands beside it" in second.text


def test_a_control_that_is_told_apart_makes_an_arm_better(comparison):
    contrast = comparison.contrasts[0]
    rank = dataclasses.replace(contrast.ranks["broken"], p=0.05)
    sure = dataclasses.replace(contrast, ranks={"broken": rank})
    (first, _) = verdicts(dataclasses.replace(comparison, contrasts=(sure,)))
    assert first.tone == "better"
    assert first.text.endswith("told apart from its control.")


def test_nothing_found_is_said(comparison):
    arms = {name: {"broken": [tallies(120, 180)]} for name in ("unedited", "arm")}
    found = compare(arms, {"broken": METRICS}, draws=50)
    (only,) = verdicts(found)
    assert only.text == (
        "+0.0 points of C_S on broken (not told apart from 0); no control stands beside it."
    )
    assert only.tone == ""


def test_a_page_without_charts_carries_no_chart_library():
    table = Table("A table", ["name", "value"], [["<b>", "1.0"]], ["A note."])
    text = page("title", [table.section(), Section("Other", "<p>x</p>")], Results("x", {}, {}, 1))
    assert len(text) < 40_000
    assert "&lt;b&gt;" in text
    assert "A note." in text


def test_a_browser_draws_it_without_complaint(written):
    told, console = visit(
        written,
        """
        tell("drawn", document.querySelectorAll("figure[data-drawn=true] .plot > svg").length);
        tell("title", document.title);
        tell("wide", document.documentElement.scrollWidth <= window.innerWidth);
        const first = document.querySelector("figure.chart");
        const points = () => first.querySelectorAll("[aria-roledescription=point]").length;
        const before = points();
        first.querySelector("[data-series=worse]").click();
        await wait();
        tell("hidden", before - points());
        const table = document.querySelector("table");
        const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
        const original = names().join();
        table.tHead.querySelectorAll("button")[1].click();
        tell("sorted", names().join() !== original);
        tell("says", table.tHead.rows[0].cells[1].getAttribute("aria-sort"));
        """,
    )
    assert not console
    assert told == {
        "drawn": "2", "title": told["title"], "wide": "true", "hidden": "1", "sorted": "true",
        "says": "descending",
    }  # fmt: skip
    assert "owned" in told["title"]  # as text: the script in it did not run
    assert told["title"] != "owned"


def test_a_phone_scrolls_in_one_direction(written):
    script = """
        tell("wide", document.documentElement.scrollWidth);
        tell("small", [...document.querySelectorAll(".plot text")].every(
            (t) => t.getBoundingClientRect().height >= 10 || !t.textContent));
    """
    # A window cannot be narrower than 500 pixels: the page is narrowed instead.
    told, console = visit(written, f"document.body.style.maxWidth = '390px'; {script}", 500)
    assert not console
    assert int(told["wide"]) <= 500
    assert told["small"] == "true"
