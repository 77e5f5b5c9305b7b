import html.parser

import pytest

from vlm_jax.report.plots import HEIGHT, Mark, Series, bars, forest, maps, scatter


class _Nodes(html.parser.HTMLParser):
    """Lists the elements of a plot: (tag, attributes, text)."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append([tag, dict(attrs), ""])

    def handle_data(self, data):
        self.found[-1][2] += data


def nodes(svg, tag):
    parser = _Nodes()
    parser.feed(svg)
    return [(attributes, text) for name, attributes, text in parser.found if name == tag]


def texts(svg):
    return [text for _, text in nodes(svg, "text")]


def test_higher_values_are_drawn_higher_and_to_the_right():
    svg = scatter([Series("a", [Mark(1, 2), Mark(3, 5)])], "x", "y")
    first, second = [attributes for attributes, _ in nodes(svg, "circle")][:2]
    assert float(second["cx"]) > float(first["cx"])
    assert float(second["cy"]) < float(first["cy"])


def test_labels_that_would_cover_another_are_left_out():
    marks = [Mark(0, 0, text="first"), Mark(0.01, 0.01, text="covered"), Mark(9, 9, text="far")]
    found = texts(scatter([Series("", marks, labels=True)], "x", "y"))
    assert "first" in found
    assert "far" in found
    assert "covered" not in found


@pytest.mark.parametrize("count", [3, 30])
def test_the_legend_fits_the_plot(count):
    svg = scatter([Series(f"arm {n}", [Mark(n, n)]) for n in range(count)], "x", "y")
    height = float(nodes(svg, "svg")[0][0]["viewbox"].split()[3])
    assert height >= HEIGHT
    named = [float(at["y"]) for at, text in nodes(svg, "text") if text.startswith("arm ")]
    assert len(named) == count
    assert max(named) < height


def test_a_forest_shows_intervals_and_rings():
    rows = [
        Series("arm", [Mark(-2.0, 0.0, -3.0, -1.0)], "#111111"),
        Series("control", [Mark(0.5, 0.0, -0.5, 1.5)], "#222222", hollow=True),
    ]
    svg = forest(rows, "change")
    arm, control = [attributes for attributes, _ in nodes(svg, "circle")]
    assert arm["fill"] == "#111111"
    assert control["stroke"] == "#222222"
    assert control["fill"] != "#222222"
    assert float(arm["cx"]) < float(control["cx"])
    assert {"arm", "control"} <= set(texts(svg))


def test_names_are_escaped():
    assert "<b>" not in forest([Series("<b>", [Mark(0.0, 0.0)])], "x")


def rectangles(svg):
    return [attributes for attributes, _ in nodes(svg, "rect")]


def test_bars_stack_both_ways_from_zero():
    svg = bars(["a", "b"], {"up": [1.0, 2.0], "more": [1.0, -1.0]}, "nats")
    found = [(float(r["y"]), float(r["height"])) for r in rectangles(svg)]
    (up, tall), (more, size), (other, double), (down, same) = found
    assert tall == pytest.approx(size, abs=0.02)
    assert tall == pytest.approx(same, abs=0.02)
    assert double == pytest.approx(2 * tall, abs=0.02)
    assert more + size == pytest.approx(up, abs=0.02)  # stacked
    assert other == pytest.approx(more, abs=0.02)  # both reach 2
    assert down == pytest.approx(up + tall, abs=0.02)  # hangs from zero
    assert {"a", "b", "up", "more"} <= set(texts(svg))
    assert "b: more -1" in [text for _, text in nodes(svg, "title")]


def test_maps_share_one_scale_and_tell_signs_apart():
    svg = maps({"one": [[0.0, 2.0]], "two": [[-1.0, 0.5]]}, "head", "layer")
    cells = [r for r in rectangles(svg) if "fill-opacity" in r]
    assert [float(c["fill-opacity"]) for c in cells] == [0, 1, 0.5, 0.25]
    assert cells[2]["fill"] != cells[1]["fill"] == cells[3]["fill"]
    assert max(float(c["x"]) for c in cells[:2]) < min(float(c["x"]) for c in cells[2:])
    assert {"one", "two", "head; deepest colour 2"} <= set(texts(svg))
    assert "nan" not in maps({"one": [[0.0]]}, "head", "layer")
