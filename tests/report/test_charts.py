"""What charts draw: rendered as the page renders them, by Vega-Lite itself."""

import html.parser
import json
import re

import pytest
import vl_convert

from vlm_jax.report.charts import (
    COLOURS,
    SHAPES,
    Mark,
    Series,
    bars,
    lines,
    maps,
    multiples,
    scatter,
)


def spec(chart):
    """The specification that a chart's figure carries."""
    found = re.search(r'<script type="application/json">(.*?)</script>', str(chart), re.DOTALL)
    return json.loads(found[1])


class _Nodes(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append([tag, dict(attrs), ""])

    def handle_data(self, data):
        self.found[-1][2] += data


def nodes(figure):
    parser = _Nodes()
    parser.feed(vl_convert.vegalite_to_svg(spec(figure)))
    return parser.found


def drawn(figure, kind):
    """Attributes of the marks of a kind, such as "point", in drawing order."""
    return [at for _, at, _ in nodes(figure) if at.get("aria-roledescription") == kind]


def texts(figure):
    return [text for tag, _, text in nodes(figure) if tag == "text"]


def place(attributes):
    return [float(n) for n in re.findall(r"-?[\d.]+", attributes["transform"])]


def box(attributes):
    """x, y, width and height of a rectangle "Mx,yhwvh..."."""
    return [float(n) for n in re.match(r"M(.*),(.*)h(.*)v(.*)h", attributes["d"]).groups()]


def test_higher_values_are_drawn_higher_and_to_the_right():
    first, second = drawn(scatter([Series("a", [Mark(1, 2), Mark(3, 5)])], "x", "y"), "point")
    assert place(second)[0] > place(first)[0]
    assert place(second)[1] < place(first)[1]


def test_labels_that_would_cover_another_are_left_out():
    marks = [
        Mark(0, 0, label="first"), Mark(0.01, 0.01, label="covered"), Mark(9, 9, label="far")
    ]  # fmt: skip
    found = texts(scatter([Series("a", marks, labels=True)], "x", "y"))
    assert "first" in found
    assert "far" in found
    assert "covered" not in found


def test_hidden_series_and_their_draws_are_not_drawn():
    series = [
        Series("", [Mark(0, 0)], of="a"),
        Series("a", [Mark(1, 1)]),
        Series("b", [Mark(2, 2)]),
    ]
    figure = scatter(series, "x", "y")
    assert len(drawn(figure, "point")) == 3
    hidden = json.loads(json.dumps(spec(figure)).replace('"value": []', '"value": ["a"]'))
    assert vl_convert.vegalite_to_svg(hidden).count('aria-roledescription="point"') == 1


def test_every_named_series_has_a_switch_with_its_own_mark():
    series = [
        Series(f"arm {n}", [Mark(n, n)], hollow=n > 0, shape=shape)
        for n, shape in enumerate(SHAPES)
    ]
    figure = str(scatter([*series, Series("", [Mark(9, 9)])], "x", "y"))
    assert re.findall('data-series="([^"]*)"', figure) == [f"arm {n}" for n in range(len(SHAPES))]
    assert len(set(re.findall(r'<path d="([^"]*)"', figure))) == len(SHAPES)


def test_small_multiples_share_their_rows_and_not_their_scale():
    arm = Series("arm", [Mark(-2.0, 0.0, -3.0, -1.0)], "#111111")
    control = Series("control", [Mark(0.5, 0.0, -0.5, 1.5)], "#222222", hollow=True)
    bare = Series("arm", [Mark(70.0, 0.0)], "#111111")
    figure = multiples({"C_S": [arm, control], "accuracy": [bare]})
    one, other, alone = drawn(figure, "point")
    assert one["fill"] == alone["fill"] == "#111111"
    assert other["stroke"] == "#222222"
    assert other["fill"] != "#222222"
    assert place(one)[0] < place(other)[0]
    assert place(one)[1] == place(alone)[1]  # rows of one height in both panels
    found = [text for text in texts(figure) if text in ("arm", "control", "C_S", "accuracy")]
    assert sorted(found) == ["C_S", "accuracy", "arm", "control"]
    # Of two intervals: the third mark has none.
    assert len([at for at in drawn(figure, "rule mark") if at["stroke"].startswith("#")]) == 2


def test_lines_have_bands_of_their_ends():
    before = Series("before", [Mark(1, 2.0, 1.5, 2.5), Mark(2, 1.0, 0.5, 1.5)], "#111111")
    figure = lines({"layer 3": [before]}, "mode", "singular value")
    assert len(drawn(figure, "area mark")) == len(drawn(figure, "line mark")) == 1
    first, second = drawn(figure, "point")
    assert place(first)[1] < place(second)[1]


def test_a_chart_is_a_picture_on_paper():
    figure = scatter([Series("a", [Mark(1, 1), Mark(2, 2)], line=True)], "x", "y")
    assert b">a</text>" in figure.image("svg")  # nothing to click: its series are named
    assert figure.image("png").startswith(b"\x89PNG")
    assert figure.image("pdf").startswith(b"%PDF")
    assert b"var(--" not in figure.image("svg")


def test_bars_stack_both_ways_from_zero():
    figure = bars(["a", "b"], {"up": [1.0, 2.0], "more": [1.0, -1.0]}, "nats")
    (up, other, more, down) = (box(one) for one in drawn(figure, "bar"))
    assert up[3] == pytest.approx(more[3])
    assert up[3] == pytest.approx(down[3])
    assert other[3] == pytest.approx(2 * up[3])
    assert min(up[1], more[1]) == pytest.approx(other[1])  # both reach 2
    assert down[1] == pytest.approx(other[1] + other[3])  # hangs from zero
    assert {"a", "b"} <= set(texts(figure))
    assert [one["aria-label"] for one in drawn(figure, "bar")][3] == "b: more -1"


def test_maps_share_one_scale_and_tell_signs_apart():
    panels = {"one": [[0.0, 2.0]], "two": [[-1.0, 0.5]]}
    figure = maps(panels, "head", "layer", outlined={"first": [(0, 1)], "second": [(0, 0)]})
    cells = drawn(figure, "rect mark")
    assert [float(c["fill-opacity"]) for c in cells] == [0, 1, 0.5, 0.25]
    assert cells[2]["fill"] != cells[1]["fill"] == cells[3]["fill"]
    assert [c["stroke-width"] for c in cells] == ["0.5", "2", "0.5", "2"]
    assert len(drawn(figure, "point")) == 2  # a ring in the second set's head, in both panels
    assert {"one", "two"} <= set(texts(figure))
    assert figure.note == "The deepest colour is 2; a frame: first heads; a ring: second heads."
    apart = maps(panels, "head", "layer", alike=False)
    assert [float(c["fill-opacity"]) for c in drawn(apart, "rect mark")] == [0, 1, 1, 0.5]
    assert drawn(maps({"one": [[0.0]]}, "head", "layer"), "rect mark")


HOSTILE = '</script><script>alert(1)</script><b onmouseover="alert(2)" \'>'


@pytest.mark.parametrize(
    "figure",
    [
        scatter([Series(HOSTILE, [Mark(0, 0, label=HOSTILE)], labels=True)], HOSTILE, HOSTILE),
        multiples({HOSTILE: [Series(HOSTILE, [Mark(0, 0, -1, 1, HOSTILE)])]}, title=HOSTILE),
        lines({HOSTILE: [Series(HOSTILE, [Mark(0, 0, -1, 1)])]}, HOSTILE, HOSTILE, title=HOSTILE),
        bars([HOSTILE], {HOSTILE: [1.0]}, HOSTILE, title=HOSTILE),
        maps({HOSTILE: [[1.0]]}, HOSTILE, HOSTILE, title=HOSTILE),
    ],
    ids=["scatter", "multiples", "lines", "bars", "maps"],
)
def test_names_cannot_leave_their_place(figure):
    text = str(figure)
    assert text.count("<script") == text.count("</script") == 1
    assert "<b " not in text
    vl_convert.vegalite_to_svg(spec(figure))


def contrast(colour, paper):
    def luminance(code):
        parts = [int(code[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((luminance(colour), luminance(paper)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("paper", ["#ffffff", "#14181c"])
def test_colours_stand_out_in_both_themes(paper):
    assert min(contrast(colour, paper) for colour in COLOURS) >= 3
