"""Every POPE parser against its harness, and the construction of questions."""

import json
import re
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax.evals import pope
from vlm_jax.evals.answers import read_answers
from vlm_jax.evals.pope import PARSERS, parse_answer, report
from vlm_jax.evals.pope_questions import SPLITS, pope_questions, question_text
from vlm_jax.evals.suites.pope import Pope
from vlm_jax.evals.tallies import tabulate
from vlm_jax.evals.truth import read_questions

SCENES = {
    number: tuple(names.split())
    for number, names in enumerate(
        (
            "cup bowl spoon fork",
            "cup bowl knife",
            "dog ball person",
            "dog person frisbee kite",
            "cup dog apple",
            "bowl cup",
            "apple orange umbrella",
        )
    )
}
CATEGORIES = sorted({name for names in SCENES.values() for name in names} | {"toaster", "vase"})


@pytest.mark.parametrize(
    ("text", "verdicts"),
    [
        ("Yes", "yes yes yes yes yes"),
        ("No", "no no no no no"),
        ("NO", "yes no no no no"),
        ("", "yes yes unknown unknown unknown"),
        ("Yes.", "yes yes unknown yes yes"),
        ("I do not know", "no no unknown unknown unknown"),
        ("Yes, not there", "no no unknown yes yes"),
        ("y", "yes yes unknown yes unknown"),
        ("1,000 yes-men", "yes yes unknown unknown unknown"),
    ],
)
def test_parsers_differ(text, verdicts):
    """For a question whose answer is no."""
    parsers = ("rucaibox", "vcd", "lmms", "lmms_mme", "vlmevalkit")
    assert [parse_answer(text, "no", name) for name in parsers] == verdicts.split()


def test_vcd_reads_in_favour_of_the_label():
    assert parse_answer("yes and no", "yes", "vcd") == "yes"
    assert parse_answer("yes and no", "no", "vcd") == "no"
    assert parse_answer("maybe", "yes", "vcd") == "no"
    assert parse_answer("maybe", "no", "vcd") == "yes"


def test_only_32_full_stops_are_removed():
    assert parse_answer("." * 32 + "yes", "yes", "vlmevalkit") == "yes"
    assert parse_answer("." * 33 + "yes", "yes", "vlmevalkit") == "unknown"


def test_bad_parser_and_label():
    with pytest.raises(ValueError, match="parser 'gpt' is unknown; choose one of rucaibox"):
        parse_answer("yes", "yes", "gpt")
    with pytest.raises(ValueError, match="label must be 'yes' or 'no', found 'Yes'"):
        parse_answer("yes", "Yes")


def test_metrics_of_nothing_are_zero():
    for parser in PARSERS:
        assert set(report(dict.fromkeys(pope.COUNTS, 0), parser).values()) == {0.0}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text("yesno .,N", max_size=6), st.sampled_from(["yes", "no"]))))
def test_tallies_are_consistent(rows):
    for parser in PARSERS:
        totals = Counter(dict.fromkeys(pope.COUNTS, 0))
        for text, label in rows:
            totals.update(pope.tally(text, label, parser))
        outcomes = [name for name in totals if name.startswith(("true", "false"))]
        assert sum(totals[name] for name in outcomes) <= totals["questions"] == len(rows)
        assert all(0 <= value <= 1 for value in report(totals, parser).values())


def test_parsers_of_the_harnesses(real_data):
    table = json.loads((real_data / "pope" / "golden" / "yes_no_parser_table.json").read_text())
    assert len(table) == 46
    for row in table:
        text = row["answer"]
        for label in ("yes", "no"):
            assert parse_answer(text, label, "rucaibox") == row["rucaibox"], text
            assert parse_answer(text, label, "llava") == row["rucaibox"], text
            unknown = {"other": "unknown"}
            mme = unknown.get(row["lmms_mme"], row["lmms_mme"])
            assert parse_answer(text, label, "lmms_mme") == mme, text
            assert parse_answer(text, label, "vlmevalkit") == row["vlmevalkit"].lower(), text
            whole = row["lmms_pope_pred"]
            lmms = whole if whole in ("yes", "no") else "unknown"
            assert parse_answer(text, label, "lmms") == lmms, text
        assert (parse_answer(text, "yes", "vcd") == "yes") == row["vcd_contains_yes"], text
        assert (parse_answer(text, "no", "vcd") == "no") == row["vcd_contains_no"], text


@pytest.mark.parametrize("split", SPLITS)
def test_scores_of_the_harnesses(real_data, split):
    golden = json.loads((real_data / "pope" / "golden" / "golden_scores.json").read_text())
    wanted = golden["splits"][split]
    questions = read_questions(real_data / "pope" / "coco" / f"coco_pope_{split}.json")
    given = real_data / "pope" / "golden" / f"coco_pope_{split}_synthetic_answers.jsonl"
    answers = read_answers(Pope(None, questions), given).texts

    def score(parser):
        totals = tabulate(
            (item.id, pope.tally(answers[item.id], item.label, parser)) for item in questions
        ).totals()
        return totals, report(totals, parser)

    totals, scores = score("rucaibox")
    official = wanted["RUCAIBox_evaluate.py"]
    cells = ("true_positives", "false_positives", "true_negatives", "false_negatives")
    assert [totals[name] for name in cells] == [official[name] for name in ("TP", "FP", "TN", "FN")]
    expect(scores, official, "Accuracy", "Precision", "Recall", "F1 score", "Yes ratio")
    printed = wanted["LLaVA_eval_pope.py"].split("  ")[0].split(", ")
    order = ("F1", "accuracy", "precision", "recall", "yes_ratio")
    llava = score("llava")[1]
    assert [f"{llava[name]:.3f}" for name in order] == printed

    expect(
        score("vcd")[1], wanted["VCD_eval_pope.py"], "Accuracy", "Precision", "Recall", "F1", "yes"
    )
    expect(
        score("lmms")[1],
        wanted["lmms-eval"],
        *("accuracy", "precision", "recall", "f1_score", "yes_ratio"),
    )
    totals, scores = score("vlmevalkit")
    official = wanted["VLMEvalKit_exact_matching"]
    assert totals["unparsable"] == official["n_unknown"]
    percent = {name: value / 100 for name, value in official.items() if name in KIT}
    expect(scores, percent, "acc", "precision", "recall", "Overall", None)


KIT = ("acc", "precision", "recall", "Overall")


def expect(scores, official, accuracy, precision, recall, f1, yes_ratio):
    names = {
        "accuracy": accuracy,
        "precision": precision,
        "recall": recall,
        "F1": f1,
        "yes_ratio": yes_ratio,
    }
    for ours, theirs in names.items():
        if theirs is not None:
            assert scores[ours] == pytest.approx(official[theirs], abs=1e-12), ours


def test_articles():
    assert question_text("dog") == "Is there a dog in the image?"
    assert question_text("umbrella") == "Is there an umbrella in the image?"


def object_of(question):
    return re.fullmatch(r"Is there an? (.+) in the image\?", question.text)[1]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("seed", [0, 1])
def test_questions_are_balanced_and_true(split, seed):
    questions = pope_questions(SCENES, split, categories=CATEGORIES, images=5, seed=seed)
    assert len(questions) == 5 * 6
    assert [item.id for item in questions] == list(range(1, 31))
    assert [item.label for item in questions] == ["yes", "no"] * 15
    asked = defaultdict(list)
    for item in questions:
        present = SCENES[int(item.image)]
        assert (object_of(item) in present) == (item.label == "yes")
        asked[item.image].append(object_of(item))
    assert len(asked) == 5
    for image, names in asked.items():
        assert len(set(names)) == 6
        assert names[::2] == list(SCENES[int(image)][:3])


def test_splits_share_images_and_positives():
    splits = [pope_questions(SCENES, split, categories=CATEGORIES, images=4) for split in SPLITS]
    positives = [
        [(item.image, item.text) for item in questions if item.label == "yes"]
        for questions in splits
    ]
    assert positives[0] == positives[1] == positives[2]


def test_negatives_follow_their_rule():
    frequency = Counter(name for names in SCENES.values() for name in names)
    together = Counter((a, b) for names in SCENES.values() for a in names for b in names if a != b)
    for split in ("popular", "adversarial"):
        asked: dict[str, set[str]] = defaultdict(set)
        positive = ""
        for item in pope_questions(SCENES, split, categories=CATEGORIES):
            name = object_of(item)
            if item.label == "yes":
                positive = name
                continue
            left = set(CATEGORIES) - set(SCENES[int(item.image)]) - asked[item.image]
            weights = {
                other: frequency[other] if split == "popular" else together[positive, other]
                for other in left
            }
            assert weights[name] == max(weights.values())
            asked[item.image].add(name)


def test_random_negatives_reach_every_category():
    drawn = Counter()
    for seed in range(40):
        questions = pope_questions(SCENES, "random", categories=CATEGORIES, seed=seed)
        drawn.update(object_of(item) for item in questions if item.label == "no")
    assert set(drawn) == set(CATEGORIES)
    # Both are absent from all six images: 18 draws among 11 or 12 categories, 40 times.
    assert 40 < drawn["toaster"] < 90
    assert 40 < drawn["vase"] < 90


def test_questions_repeat_with_their_seed():
    sets = {key: frozenset(names) for key, names in SCENES.items()}
    again = [pope_questions(sets, "random", categories=CATEGORIES, seed=3) for _ in range(2)]
    assert again[0] == again[1]
    assert again[0] != pope_questions(sets, "random", categories=CATEGORIES, seed=4)


def test_questions_name_images_as_they_are_told_to():
    questions = pope_questions(SCENES, "popular", image_name=lambda key: f"{key:06d}.png")
    assert questions[0].image.endswith(".png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "hard"}, "split 'hard' is unknown"),
        ({"split": "random", "pairs": 0}, "at least 1 question pair"),
        ({"split": "random", "images": 7}, "needs 7 images with at least 3 objects; there are 6"),
        ({"split": "random", "images": 0}, "needs 1 images"),
        ({"split": "popular", "categories": ["cup", "bowl", "spoon"]}, "no absent category left"),
    ],
)
def test_impossible_questions(arguments, message):
    with pytest.raises(ValueError, match=message):
        pope_questions(SCENES, **arguments)
