"""What a run keeps of its examples: pictures within bounds, and every arm's answers beside them."""

import numpy as np
import PIL.Image
import pytest

from tests.report.runs import CAPTION, caption_row
from vlm_jax.evals.base import Example, Judged, Suite
from vlm_jax.report import examples
from vlm_jax.report.examples import Browser, gallery_of, shown_of

STYLES = {"unedited": ("#111111", "circle", False), "air": ("#222222", "circle", False)}


class Captions(Suite):
    """Captions of noise, which no WebP makes small."""

    name = "captions"

    def __init__(self, count: int, edge: int = 64, label: str = ""):
        rng = np.random.default_rng(0)
        noise = lambda: PIL.Image.fromarray(rng.integers(0, 255, (edge, edge, 3), np.uint8))
        meta = {"label": label} if label else {}
        self._examples = tuple(Example(n, (noise(),), "Describe.", meta) for n in range(count))

    def judge(self, example, answer):
        return Judged(example, {})


def shown(suite, **arms):
    rows = {name: {row["id"]: row for row in own} for name, own in arms.items()}
    gallery = gallery_of(suite, [one.id for one in suite.examples()])
    (found,) = Browser.of({"chair": (gallery, rows, None)}, STYLES).data["benchmarks"]
    return found


def test_an_example_holds_every_arm_and_the_places_of_words():
    (item,) = shown(
        Captions(1),
        unedited=[caption_row(0, CAPTION, ["🐈"], ["dog"], ["car"])],
        air=[caption_row(0, "a dog", [], ["dog"], ["car", "cat"])],
    )["items"]
    at = CAPTION.index("🐈")
    assert item["answers"]["unedited"]["wrong"] == [[at, at + 1, "🐈"]]
    assert item["answers"]["air"] == {
        "text": "a dog", "wrong": [], "right": [[2, 5, "dog"]], "missed": ["car", "cat"],
    }  # fmt: skip


def test_questions_say_whether_they_were_answered_right():
    rows = [
        {"id": 0, "answer": "Yes", "correct": True},
        {"id": 1, "answer": "No", "correct": False},
    ]
    first, second = shown(Captions(2, label="yes"), unedited=rows)["items"]
    assert [one["answers"]["unedited"]["ok"] for one in (first, second)] == [True, False]
    assert (first["question"], first["truth"]) == ("Describe.", "yes")


def test_what_is_too_much_is_taken_evenly_and_said():
    count = examples.LIMIT + 50
    gallery = gallery_of(Captions(count, 32), range(count))
    found = [one["id"] for one in gallery["examples"]]
    assert len(found) == examples.LIMIT
    assert found[-1] > examples.LIMIT
    assert shown_of(gallery) == f"{examples.LIMIT} of {count} examples, taken evenly."
    assert not shown_of(gallery_of(Captions(2), [0, 1]))


def test_pictures_stay_within_their_room(monkeypatch):
    monkeypatch.setattr(examples, "PICTURE_BYTES", 30_000)
    gallery = gallery_of(Captions(20, 512), range(20))
    assert 0 < sum(map(len, gallery["pictures"])) <= 30_000
    assert all(0 <= one["picture"] < len(gallery["pictures"]) for one in gallery["examples"])


def test_pictures_that_cannot_be_read_are_left_out(tmp_path):
    suite = Captions(1)
    (tmp_path / "x.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    suite._examples = (Example(0, (str(tmp_path / "x.jpg"),), "Describe."),)
    assert gallery_of(suite, [0])["pictures"] == [""]


def test_nothing_answered_is_no_gallery():
    assert gallery_of(Captions(1), []) is None


@pytest.mark.parametrize("known", [[0], [1, 0]])
def test_only_answered_examples_are_kept(known):
    gallery = gallery_of(Captions(3), known)
    assert [one["id"] for one in gallery["examples"]] == sorted(known)
