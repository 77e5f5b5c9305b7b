"""The report of a run on disk: whole, alone, escaped; and of runs side by side."""

import html.parser
import json
import re
from xml.etree import ElementTree

import pytest
from pypdf import PdfReader

from tests.report.runs import HOSTILE, comparison, tallies, told_apart, write_run
from vlm_jax.errors import UserError
from vlm_jax.evals import pope
from vlm_jax.evals.comparison import compare
from vlm_jax.evals.results import Results
from vlm_jax.evals.tallies import tabulate_sums
from vlm_jax.report.comparison import frontier_table
from vlm_jax.report.page import page
from vlm_jax.report.run import report_of
from vlm_jax.report.sheet import sheets
from vlm_jax.report.stored import StoredRuns, read_run
from vlm_jax.report.tables import Table
from vlm_jax.report.verdict import verdicts
from vlm_jax.report.written import ReportSettings, write_report


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("run")
    write_run(made)
    return made


@pytest.fixture(scope="module")
def report(folder):
    return report_of(read_run(folder))


def test_a_run_is_read_back_as_it_was(folder):
    found, run = comparison(), read_run(folder)
    read = run.comparison
    assert read.document() == found.document()
    assert [one.levels for one in read.arms] == [one.levels for one in found.arms]
    assert [one.changes for one in read.arms] == [one.changes for one in found.arms]
    assert run.model == "llava-0"
    assert run.rows("broken")["R1"][3]["missed"] == ["car"]  # of its first draw


def test_the_page_is_whole_and_loads_nothing(report):
    outside = re.sub(r"<script.*?</script>", "", report.text, flags=re.DOTALL)
    assert "<img" not in outside
    assert all(link.startswith("#") for link in links(outside))
    assert len(report.text) < 1_500_000
    for landmark in ("<main ", "<header>", "<nav ", "<footer>", 'lang="en"', "viewport"):
        assert landmark in outside
    headings = re.findall("<h2 id=[^>]*>([^<]*)</h2>", outside)
    assert headings == [
        "The say-less frontier", "Arms and controls", "Benchmarks", "Examples", "Heads", "Tables",
        "How to repeat it",
    ]  # fmt: skip
    for told in ("abc123", "2026-01-02", "vlm-jax ", "c0", "llava-0 as it is against"):
        assert told in outside  # what it takes to repeat it, and what was compared


def test_every_script_of_the_page_is_its_own(report):
    """Hostile names, captions, prompts and configs end no element and begin none."""
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", report.text, re.DOTALL)
    islands = re.findall(r'<script type="application/json">(.*?)</script>', report.text, re.DOTALL)
    assert len(scripts) == len(islands) + 2
    for island in islands:
        json.loads(island)
        assert "<" not in island
    assert "onerror=alert(1)>" not in re.sub(r"<script.*?</script>", "", report.text, flags=re.S)


def test_tables_and_heads_are_there(report):
    titles = [table.title for table in report.tables]
    assert titles[0] == "Change from the unedited model"
    assert "Items that could not be read" in titles
    found = {section.heading: section for section in report.sections}
    spectra = found[f"{HOSTILE}: query-key spectra before and after"].body
    assert [value["y"] for value in spectra.spec["data"]["values"]] == [2, 1, 0.5, 1, 0.8, 0.5]
    certificate = dict(found["Certificate"].body.rows)
    assert certificate[f"{HOSTILE}: energy removed (median)"] == "38.0 %"
    assert "ring" in found["What zeroing a head does to object words"].body.note


def test_other_formats(report, folder):
    tables, *figures = write_report(report, folder, ReportSettings(format="md"))
    text = tables.read_text()
    assert text.startswith("# llava-0: arms and their controls")
    assert "![01_The_say-less_frontier](figures/01_The_say-less_frontier.svg)" in text
    assert "### Change from the unedited model" in text
    assert all(f"({one.relative_to(folder)})" in text for one in figures)
    book, *parts = write_report(report, folder, ReportSettings(format="pdf"))
    assert book.name == "report.pdf"
    assert {"01_The_say-less_frontier.pdf", "01_Change_from_the_unedited_model.pdf"} <= {
        path.name for path in parts
    }
    pages = PdfReader(book).pages
    assert len(pages) == len(parts) == len(figures) + len(report.tables)
    assert "Change from the unedited model" in pages[len(figures)].extract_text()


def test_tables_for_latex(report, folder):
    table = Table("A 5 % test", ["arm", "C_S"], [["a_b & {c}", "-1.5* [-2.0, +0.1]"]], ["p <.001"])
    assert table.latex().splitlines() == [
        "% A 5 % test",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"arm & C\_S \\",
        r"\midrule",
        r"a\_b \& \{c\} & $-$1.5$^{*}$ [$-$2.0, +0.1] \\",
        r"\bottomrule",
        r"\end{tabular}",
        "% p <.001",
    ]
    first, *parts = write_report(report, folder, ReportSettings(format="tex"))
    assert first == folder / "tables" / "01_Change_from_the_unedited_model.tex"
    assert first.read_text() == report.tables[0].latex()
    assert {path.suffix for path in parts} == {".tex", ".pdf"}
    assert len({first, *parts}) == len(report.tables) + len(
        list((folder / "figures").glob("*.pdf"))
    )


def test_biases_that_change_nothing_are_told():
    arms = {name: {"broken": [tallies(120, 180)]} for name in ("unedited", "arm")}
    sweep = {bias: {"broken": tallies(120, 180)} for bias in (0.0, 2.0)}
    metrics = {"broken": comparison().metrics["broken"]}
    same = frontier_table(compare(arms, metrics, sweep=sweep, draws=20))
    assert "No bias changed a caption" in same.notes[-1]
    assert len(frontier_table(comparison()).notes) == 1


def test_long_tables_go_on_on_the_next_sheet():
    rows = [[f"row {n}", f"{n}.0"] for n in range(100)] + [["<b>&", "long " * 30]]
    table = Table("Long", ["name", "value"], rows, ["A note."])
    drawn = [one.svg() for one in sheets(table)]
    assert len(drawn) == 3
    assert "Long (2 of 3)" in drawn[1]
    assert ["A note." in one for one in drawn] == [False, False, True]
    assert "&lt;b&gt;&amp;" in drawn[2]
    root = ElementTree.fromstring(drawn[2])
    ends = [float(text.get("x")) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert max(ends) <= float(root.get("width"))


def test_runs_side_by_side(folder, tmp_path):
    write_run(tmp_path, "another")
    runs = {"a": read_run(folder), HOSTILE: read_run(tmp_path)}
    found = report_of(StoredRuns(runs))
    assert found.tables[-1].title == "Every arm of every run"
    assert [row[0] for row in found.tables[-1].rows][4:] == [
        f"{HOSTILE}: {name}" for name in ("unedited", "another", "R1", "worse")
    ]
    assert found.text.count('<li class="') == 4  # two verdicts a run
    assert "2 runs side by side" in found.text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not valid JSON"),
        ('{"benchmark": "x"}', "holds no comparison"),
        ('{"comparison": {"items": 3}}', "comparison.items"),
        ('{"models": {"../x": {}}}', "a plain file name is needed"),
    ],
)
def test_a_folder_that_is_no_run_is_one_line(tmp_path, content, says):
    with pytest.raises(UserError, match=r"holds no results\.json"):
        read_run(tmp_path)
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=says) as error:
        read_run(tmp_path)
    assert "\n" not in str(error.value)


def test_a_verdict_says_what_was_told_apart():
    first, second = verdicts(comparison())
    assert first.arm == HOSTILE
    assert first.text.startswith("-40.0 points of C_S on broken; ")
    assert "points better than saying less at the same recall" in first.text
    # Two draws of a control cannot give a small p, however far the arm is from them.
    assert first.text.endswith("not told apart from its control R1 (too few draws to tell).")
    assert first.tone == ""
    assert list(first.facts) == ["C_S, broken", "accuracy, pope", "against saying less"]
    assert second.tone == "worse"
    assert "+20.0 points of C_S" in second.text
    assert "no control stands beside it" in second.text


def test_a_control_that_is_told_apart_makes_an_arm_better():
    (first, _) = verdicts(told_apart(comparison()))
    assert first.tone == "better"
    assert first.text.endswith("told apart from its control.")


def test_what_moved_beside_the_metric_is_said():
    """A model that says yes more often, or nothing at all, has another F1 by that alone."""
    labels = ["yes", "no"] * 30
    says = {
        "unedited": ["yes", "no", "no", "no"] * 15,
        "arm": ["yes", "yes", "yes", "perhaps"] * 15,
        "same": ["yes", "no", "no", "no"] * 15,
    }
    tables = {
        name: {"pope": [tabulate_sums((n, pope.tally(*one)) for n, one in enumerate(asked))]}
        for name, asked in ((name, zip(texts, labels)) for name, texts in says.items())
    }
    found = compare(tables, {"pope": pope.metrics()}, draws=50)
    first, second = verdicts(found)
    assert "with it yes_ratio +75.0 and unparsable_rate +25.0 points; " in first.text
    assert "with it" not in second.text


def test_nothing_found_is_said():
    arms = {name: {"broken": [tallies(120, 180)]} for name in ("unedited", "arm")}
    found = compare(arms, {"broken": comparison().metrics["broken"]}, draws=50)
    (only,) = verdicts(found)
    assert only.text == (
        "+0.0 points of C_S on broken (not told apart from 0); no control stands beside it."
    )
    assert only.tone == ""


def test_a_page_without_charts_carries_no_chart_library():
    table = Table("A table", ["name", "value"], [["<b>", "1.0"]], ["A note."])
    text = page("title", [table.section()], Results("x", {}, {}, 1))
    assert len(text) < 40_000
    assert "&lt;b&gt;" in text
    assert "A note." in text
