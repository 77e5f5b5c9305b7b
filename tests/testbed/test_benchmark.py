import numpy as np
import pytest

from tests.testbed.words import split_words
from vlm_jax.errors import ConfigError
from vlm_jax.evals.base import Suite
from vlm_jax.testbed import language
from vlm_jax.testbed.scenes import CLASSES, SCENE_TYPES, choose_objects, partner
from vlm_jax.testbed.suites.testbed_chair import TestbedChair
from vlm_jax.testbed.suites.testbed_pope import TestbedPope


def test_true_captions_score_no_hallucination():
    benchmark = TestbedChair("normal", "dev", 20)
    assert isinstance(benchmark, Suite)
    types, present = choose_objects("normal", "dev", 0, np.arange(20))
    totals = {}
    for example in benchmark.examples():
        assert example.prompt == language.CAPTION_PROMPT
        assert example.images[0].size == (56, 56)
        objects = np.flatnonzero(present[example.id]).tolist()
        answer = language.caption(types[example.id], objects)
        for name, value in benchmark.judge(example, answer).counts.items():
            totals[name] = totals.get(name, 0) + value
    report = benchmark.report(totals)
    assert report["C_S"] == report["C_I"] == report["C_S/partner"] == 0
    assert report["recall"] == 1
    assert totals["captions"] == 20
    assert totals["object_mentions"] == present.sum()


def test_hallucinations_are_split_into_partners_and_others():
    benchmark = TestbedChair("broken", "test", 10)
    types, present = choose_objects("broken", "test", 0, np.arange(10))
    for example in benchmark.examples():
        row = present[example.id]
        lone = int(np.flatnonzero(row)[0])
        stranger = next(c for c in range(24) if not row[c] and not row[partner(c)])
        for extra, label in ((partner(lone), "partner"), (stranger, "other")):
            text = f"a {SCENE_TYPES[types[example.id]]} with a {CLASSES[extra]} ."
            tally = benchmark.judge(example, text).counts
            assert tally["hallucinated_mentions"] == 1
            assert tally[f"hallucinated_captions/{label}"] == 1


@pytest.mark.parametrize("kind", ["normal", "broken"])
@pytest.mark.parametrize("negatives", ["random", "popular", "adversarial"])
def test_pope_asks_right_questions_in_the_models_words(negatives, kind):
    benchmark = TestbedPope(negatives, kind, "dev", 30)
    examples = list(benchmark.examples())
    _, present = choose_objects(kind, "dev", 0, np.arange(1000))
    assert len(examples) == 120
    assert sum(example.meta["label"] == "yes" for example in examples) == 60
    for example in examples:
        name = next(w for w in split_words(example.prompt) if w in CLASSES)
        assert example.prompt == language.question(CLASSES.index(name))
        there = present[int(example.meta["image"]), CLASSES.index(name)]
        assert there == (example.meta["label"] == "yes")


def test_adversarial_questions_about_broken_scenes_ask_for_partners():
    examples = list(TestbedPope("adversarial", "broken", "dev", 30).examples())
    asked = [next(w for w in split_words(e.prompt) if w in CLASSES) for e in examples]
    pairs = [(CLASSES.index(a), CLASSES.index(b)) for a, b in zip(asked[::2], asked[1::2])]
    assert sum(partner(a) == b for a, b in pairs) >= 0.9 * len(pairs)


def test_dev_and_test_are_different_protocols():
    one, other = (TestbedChair("normal", split, 5).protocol() for split in ("dev", "test"))
    assert one != other


def test_bad_sets_are_refused():
    for kind, split in (("uniform", "dev"), ("normal", "train")):
        with pytest.raises(ConfigError, match="measured on set"):
            TestbedChair(kind, split, 5)
    with pytest.raises(ConfigError, match="at least 1 scene"):
        TestbedPope("random", count=0)
    with pytest.raises(ConfigError, match="ask about fewer pairs"):
        TestbedPope("random", "broken", count=3, pairs=6)
    with pytest.raises(ValueError, match="unknown"):
        TestbedPope("hard", count=3)
