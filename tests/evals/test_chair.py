"""CHAIR tallies, their report, and the published scores."""

import json
import re
import time
from collections import Counter

import pytest

from vlm_jax.evals import chair
from vlm_jax.evals.chair import ChairScorer, report
from vlm_jax.evals.records import ImageId
from vlm_jax.evals.tallies import tabulate
from vlm_jax.evals.vocabulary import coco_vocabulary

TRUTH: dict[ImageId, frozenset[str]] = {
    1: frozenset({"dog", "person"}),
    2: frozenset(),
    3: frozenset({"cup"}),
}


def totals_of(scorer, captions):
    return tabulate((image, scorer.tally(image, text)) for image, text in captions).totals()


def test_mentions_count_in_c_i_and_captions_in_c_s():
    scorer = ChairScorer(TRUTH)
    captions = [(1, "A dog and a cat and a cat."), (2, "Nothing here."), (3, "A mug.")]
    totals = totals_of(scorer, captions)
    assert totals == {
        "captions": 3,
        "hallucinated_captions": 1,
        "object_mentions": 4,
        "hallucinated_mentions": 2,
        "gt_objects": 3,
        "recalled_objects": 2,
        "mentioned_types": 3,
        "words": 9 + 3 + 3,
        "unparsable": 1,
        "truncated": 0,
    }
    scores = report(totals)
    assert scores["C_S"] == pytest.approx(1 / 3)
    assert scores["C_I"] == pytest.approx(1 / 2)
    assert scores["recall"] == pytest.approx(2 / 3)
    assert scores["precision_types"] == pytest.approx(2 / 3)
    assert scores["F1"] == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))
    assert scores["F1_types"] == pytest.approx(2 / 3)
    assert scores["length"] == pytest.approx(5)


def test_mentions_carry_offsets_and_verdicts():
    text = "A dog chases a cat."
    mentions = ChairScorer(TRUTH).score(1, text).mentions
    assert [(text[m.start : m.end], m.node, m.hallucinated) for m in mentions] == [
        ("dog", "dog", False),
        ("cat", "cat", True),
    ]


def test_a_set_without_any_object_scores_zero_everywhere():
    scores = report(totals_of(ChairScorer(TRUTH), [(2, "")]))
    assert scores.pop("unparsable_rate") == scores.pop("truncated_rate") == 1
    assert set(scores.values()) == {0.0}
    assert set(report(dict.fromkeys(chair.COUNTS, 0)).values()) == {0.0}


def test_groups_split_hallucinations():
    groups: dict[ImageId, dict[str, str]] = {1: {"cat": "partner"}, 3: {"fork": "partner"}}
    scorer = ChairScorer(TRUTH, groups=groups)
    captions = [(1, "a dog, a cat, a bowl and a bowl"), (2, "a cat"), (3, "a cup and a fork")]
    totals = totals_of(scorer, captions)
    assert totals["hallucinated_mentions/partner"] == 2
    assert totals["hallucinated_mentions/other"] == 3
    assert totals["hallucinated_captions/partner"] == 2
    assert totals["hallucinated_captions/other"] == 2
    assert totals["hallucinated_mentions"] == 5
    scores = report(totals)
    assert scores["C_S/partner"] == pytest.approx(2 / 3)
    assert scores["C_I/other"] == pytest.approx(3 / 7)
    assert [m.group for m in scorer.score(1, "a dog and a cat").mentions] == [None, "partner"]


def test_an_image_without_truth_is_an_error():
    with pytest.raises(ValueError, match="image 9 has no ground truth"):
        ChairScorer(TRUTH).tally(9, "a dog")


def test_published_scores(real_data, official, coco_truth, real_captions):
    golden = json.loads((real_data / "chair" / "golden_scores.json").read_text())["files"]
    scorer = ChairScorer(coco_truth.objects, official)
    assert set(golden) == set(real_captions)
    for file, captions in real_captions.items():
        wanted = golden[file]["official_maxlinn_chair.py__pattern"]
        totals = Counter()
        for image, text in captions:
            totals.update(scorer.tally(image, text))
        counts = wanted["counts"] | {"recalled_objects": wanted["counts"]["recalled"]}
        assert {name: totals[name] for name in chair.COUNTS[:6]} == {
            name: counts[name] for name in chair.COUNTS[:6]
        }, file
        scores = report(totals)
        assert scores["C_S"] == pytest.approx(wanted["CHAIRs"], abs=1e-12)
        assert scores["C_I"] == pytest.approx(wanted["CHAIRi"], abs=1e-12)
        assert scores["recall"] == pytest.approx(wanted["Recall"], abs=1e-12)
        assert scores["F1"] == pytest.approx(wanted["derived_F1"], abs=1e-12)


def test_our_table_scores_like_the_official_list(official, coco_truth, real_captions):
    """Against one ground truth, our words move no file by a point: C_S, C_I or recall."""
    ours = ChairScorer(coco_truth.objects, coco_vocabulary())
    theirs = ChairScorer(coco_truth.objects, official)
    moved = dict.fromkeys(("C_S", "C_I", "recall"), 0.0)
    for captions in real_captions.values():
        totals = [Counter(), Counter()]
        for image, text in captions:
            totals[0].update(ours.tally(image, text))
            totals[1].update(theirs.tally(image, text))
        here, there = report(totals[0]), report(totals[1])
        for name in moved:
            moved[name] = max(moved[name], 100 * abs(here[name] - there[name]))
    assert moved["C_S"] < 1.0
    assert moved["C_I"] < 0.5
    assert moved["recall"] < 1.0


def test_scoring_keeps_up_with_generation(coco_truth, official, real_captions):
    captions = [pair for pairs in real_captions.values() for pair in pairs]
    scorer = ChairScorer(coco_truth.objects, official)
    start = time.process_time()
    for image, text in captions:
        scorer.tally(image, text)
    assert (time.process_time() - start) / len(captions) < 1e-3


def test_metric_names_are_safe_for_documents():
    assert all(re.fullmatch(r"[A-Za-z0-9_]+", name) for name in chair.METRICS)
