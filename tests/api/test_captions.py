"""CHAIR from Python: the scorer's numbers, and the words behind them."""

import json

import pytest

import vlm_jax
from vlm_jax.errors import AnswersError
from vlm_jax.evals.chair import ChairScorer

CAPTIONS = {7: "A man with a cup and a fork.", 8: "Two dogs."}
TRUTH = {7: ["cup", "person", "table"], 8: ["dog"]}


def test_words_are_told_apart():
    score = vlm_jax.chair(CAPTIONS, TRUTH)
    first, second = score.per_caption
    assert (first.hallucinated, first.grounded) == (("fork",), ("man", "cup"))
    assert first.missed == ("dining table",) or first.missed == ("table",)
    assert (second.hallucinated, second.grounded) == ((), ("dogs",))
    assert score.metrics["C_S"] == 0.5
    assert score.metrics["C_I"] == pytest.approx(1 / 4)
    assert score.counts["captions"] == 2
    assert "fork" in repr(score)


def test_the_numbers_are_the_scorers():
    truth = {7: {"cup", "person"}, 8: {"dog"}}
    scorer = ChairScorer(truth)
    counts = vlm_jax.chair(CAPTIONS, truth).counts
    for name, count in counts.items():
        assert count == sum(scorer.tally(image, text)[name] for image, text in CAPTIONS.items())


def test_captions_come_in_several_forms(tmp_path):
    expected = vlm_jax.chair(CAPTIONS, TRUTH).per_caption
    rows = [{"image_id": image, "caption": text} for image, text in CAPTIONS.items()]
    assert vlm_jax.chair(rows, TRUTH).per_caption == expected
    assert vlm_jax.chair(list(CAPTIONS.values()), TRUTH).per_caption == expected
    named = {f"COCO_val2014_{image:012}.jpg": text for image, text in CAPTIONS.items()}
    assert vlm_jax.chair(named, TRUTH).per_caption == expected
    path = tmp_path / "truth.jsonl"
    lines = [
        json.dumps({"image_id": image, "instances": [{"category": word} for word in words]})
        for image, words in TRUTH.items()
    ]
    path.write_text("\n".join(lines))
    assert vlm_jax.chair(CAPTIONS, path).per_caption == expected
    assert vlm_jax.chair(CAPTIONS, [path]).per_caption == expected


def test_captions_are_never_markup():
    page = vlm_jax.chair({7: "a <script>fork</script> & cup"}, {7: ["cup"]})._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;<mark>fork</mark>&lt;/script&gt; &amp; <b>cup</b>" in page


@pytest.mark.parametrize(
    ("captions", "truth", "message"),
    [
        ({}, TRUTH, "no caption"),
        ({9: "a cup"}, TRUTH, "image 9 has no truth"),
        ({7: None}, TRUTH, "must be text, not NoneType"),
        ("a cup", TRUTH, "there is no file 'a cup'; captions must be a mapping"),
        (7, TRUTH, "or a file, not int"),
        (["a cup"], TRUTH, "1 texts are no captions of the 2 images"),
        ([{"image_id": 7}], TRUTH, "needs image_id and caption"),
        (CAPTIONS, {7: "cup", 8: ["dog"]}, "must list objects, not be str"),
        ({"": "a cup"}, TRUTH, "image id"),
        (CAPTIONS, "/nowhere/truth.json", "/nowhere/truth.json"),
    ],
)
def test_a_wrong_call_is_one_line(captions, truth, message):
    with pytest.raises(AnswersError, match=message) as caught:
        vlm_jax.chair(captions, truth)
    assert "\n" not in str(caught.value)


def test_a_file_of_captions_will_do(tmp_path):
    path = tmp_path / "captions.jsonl"
    rows = [{"image": f"{image}.jpg", "response": text} for image, text in CAPTIONS.items()]
    path.write_text("\n".join(map(json.dumps, [*rows, {"id": 9, "error": "no picture"}])))
    expected = vlm_jax.chair(CAPTIONS, TRUTH).per_caption
    assert vlm_jax.chair(path, TRUTH).per_caption == expected
    assert vlm_jax.chair(str(path), TRUTH).per_caption == expected
    with pytest.raises(AnswersError, match="no-such-file"):
        vlm_jax.chair("no-such-file", TRUTH)


def test_truth_of_captions_alone_is_said_to_lack_instances(tmp_path):
    path = tmp_path / "truth.jsonl"
    path.write_text(json.dumps({"image_id": 7, "captions": ["A man with a cup."]}))
    score = vlm_jax.chair({7: CAPTIONS[7]}, path)
    assert "no instances" in score.notes[0]
    assert "no instances" in repr(score)
    assert "no instances" in score._repr_html_()
    assert "note" not in repr(vlm_jax.chair(CAPTIONS, TRUTH)).lower()
