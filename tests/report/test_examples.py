"""The example browser: what it holds, how much, and that it works in a browser."""

import json
import re

import numpy as np
import PIL.Image
import pytest

from tests.report.browser import visit
from vlm_jax.evals.base import Example, Judged, Suite
from vlm_jax.evals.results import Results
from vlm_jax.report import examples
from vlm_jax.report.page import page

HOSTILE = "a dog</script><script>document.title='owned'</script> & a cät 🐈 on a cat"


class Captions(Suite):
    """Captions of noise, which no WebP makes small."""

    name = "captions"

    def __init__(self, count: int, edge: int = 64):
        rng = np.random.default_rng(0)
        noise = lambda: PIL.Image.fromarray(rng.integers(0, 255, (edge, edge, 3), np.uint8))
        self._examples = tuple(Example(n, (noise(),), "Describe.") for n in range(count))

    def judge(self, example, answer):
        return Judged(example, {})


def row(number, answer, wrong=(), right=(), missed=()):
    place = lambda word: {
        "word": word, "object": word, "start": answer.index(word),
        "end": answer.index(word) + len(word),
    }  # fmt: skip
    return number, {
        "id": number, "answer": answer, "missed": list(missed),
        "hallucinated": list(map(place, wrong)), "grounded": list(map(place, right)),
    }  # fmt: skip


def data(section):
    return json.loads(re.search(r"json>(.*?)</script>", section.body, re.DOTALL)[1])


def test_an_example_holds_every_arm_and_the_places_of_words():
    arms = {
        "unedited": dict([row(0, HOSTILE, ["🐈"], ["dog"], ["car"])]),
        "air": dict([row(0, "a dog", [], ["dog"], ["car", "cat"])]),
    }
    section = examples.examples_section("chair", Captions(1), arms)
    assert section.heading == "chair: examples"
    assert section.body.count("<script") == section.body.count("</script") == 1
    (item,) = data(section)["items"]
    at = HOSTILE.index("🐈")
    assert item["answers"]["unedited"]["wrong"] == [[at, at + 1, "🐈"]]
    assert item["answers"]["air"] == {
        "text": "a dog", "wrong": [], "right": [[2, 5, "dog"]], "missed": ["car", "cat"],
    }  # fmt: skip


def test_questions_say_whether_they_were_answered_right():
    suite = Captions(2)
    suite._examples = tuple(
        Example(n, one.images, "Is there a dog?", {"label": "yes"})
        for n, one in enumerate(suite._examples)
    )
    rows = {0: {"answer": "Yes", "correct": True}, 1: {"answer": "No", "correct": False}}
    first, second = data(examples.examples_section("pope", suite, {"unedited": rows}))["items"]
    assert [one["answers"]["unedited"]["ok"] for one in (first, second)] == [True, False]
    assert (first["question"], first["truth"]) == ("Is there a dog?", "right answer: yes")


def test_what_is_too_much_is_taken_evenly_and_said():
    count = examples.LIMIT + 50
    arms = {"unedited": dict(row(n, "a dog", [], ["dog"]) for n in range(count))}
    section = examples.examples_section("chair", Captions(count, 32), arms)
    items = data(section)["items"]
    assert len(items) == examples.LIMIT
    assert items[-1]["id"] != str(examples.LIMIT - 1)
    assert section.note.startswith(f"{examples.LIMIT} of {count} examples")


def test_pictures_stay_within_their_room(monkeypatch):
    monkeypatch.setattr(examples, "PICTURE_BYTES", 30_000)
    arms = {"unedited": dict(row(n, "a dog", [], ["dog"]) for n in range(20))}
    found = data(examples.examples_section("chair", Captions(20, 512), arms))
    assert 0 < sum(map(len, found["pictures"])) <= 30_000
    assert all(0 <= item["picture"] < len(found["pictures"]) for item in found["items"])


def test_pictures_that_cannot_be_read_are_left_out(tmp_path):
    suite = Captions(1)
    (tmp_path / "x.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    suite._examples = (Example(0, (str(tmp_path / "x.jpg"),), "Describe."),)
    found = data(examples.examples_section("chair", suite, {"unedited": dict([row(0, "a dog")])}))
    assert found["pictures"] == [""]


def test_nothing_answered_is_no_section():
    assert examples.examples_section("chair", Captions(1), {"unedited": {}}) is None


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    before = lambda n: row(n, HOSTILE if n == 3 else "a dog and a cat", ["cat"], ["dog"])
    after = lambda n: row(n, "a dog", [], ["dog"]) if n < 12 else row(n, "a cat", ["cat"], [])
    arms = {"unedited": dict(map(before, range(25))), "air": dict(map(after, range(25)))}
    section = examples.examples_section("chair", Captions(25), arms)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page("examples", [section], Results("x", {}, {}, 25)), "utf-8")
    return path


def test_a_reader_can_filter_search_and_go_through_them(written):
    told, console = visit(
        written,
        """
        const $ = (q) => document.querySelector(q), all = (q) => document.querySelectorAll(q);
        const choose = (q, value) => {
            $(q).value = value; $(q).dispatchEvent(new Event("change")); };
        tell("title", document.title);
        tell("shown", all("article").length);
        tell("count", $(".count").textContent);
        tell("pictures", [...all("article img")].every((i) => i.naturalWidth === 64));
        tell("hostile", all("article")[3].querySelector("dd").textContent);
        tell("marks", [...all("article")[3].querySelector("dd").querySelectorAll("mark")].map(
            (m) => m.className + ":" + m.textContent).join());
        choose("select[aria-label=filter]", "removed");
        tell("removed", $(".count").textContent);
        choose("select[aria-label=filter]", "lost");
        tell("lost", $(".count").textContent);
        choose("select[aria-label=filter]", "all");
        $("input[type=search]").value = "owned";
        $("input[type=search]").dispatchEvent(new Event("input"));
        tell("found", $(".count").textContent);
        $("input[type=search]").value = "";
        $("input[type=search]").dispatchEvent(new Event("input"));
        const press = (key) => document.activeElement.dispatchEvent(
            new KeyboardEvent("keydown", { key, bubbles: true }));
        all("article")[0].focus();
        press("j");
        tell("next", [...all("article")].indexOf(document.activeElement));
        press("ArrowRight");
        tell("page", $(".count").textContent);
        """,
    )
    assert not console
    assert told["title"] == "examples"
    assert told["shown"] == "10"
    dash = lambda name: told[name].replace("\u2013", "-")
    assert dash("count") == "1-10 of 25"
    assert told["pictures"] == "true"
    assert "owned" in told["hostile"]
    assert told["marks"] == "right:dog,wrong:cat"
    assert dash("removed") == "1-10 of 12"
    assert dash("lost") == "1-10 of 13"
    assert dash("found") == "1-1 of 1"
    assert told["next"] == "1"
    assert dash("page") == "11-20 of 25"
