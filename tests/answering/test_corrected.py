"""HALC beside a plain loop of whole forward passes, the released numbers, and bad input."""

import json
import pathlib

import jax
import numpy as np
import pytest

from tests.decoding.test_strategies import contrast_layers, early_logits
from tests.reference import picture
from vlm_jax.answering import corrected
from vlm_jax.decoding.named import read_named
from vlm_jax.decoding.rerankers.halc import contrasts, fields_of_view
from vlm_jax.errors import ConfigError, PromptError

GOLDEN = json.loads(
    (pathlib.Path(__file__).parents[1] / "decoding/golden_numeric.json").read_text()
)["halc"]
IMAGE, PROMPT, STEPS = picture(60, 80, 1), "Describe it.", 8
BOX = (0.3, 0.4, 0.5, 0.8)


def lengths(texts, image):
    """The longer a text, and the greater its letters, the better it fits."""
    return [float(sum(map(ord, text))) for text in texts]


def some(image, word):
    """One box where a word begins with a letter of the first half, none elsewhere."""
    return [BOX] if word[:1].lower() < "n" else []


PARTS = {"detector": some, "tagger": lambda word: True, "matcher": lengths}


def pairs_of(self, tokens):
    """Words of two tokens each: a random model seldom says a space."""
    return [
        (start, min(start + 2, len(tokens)), self._text(tokens[start : start + 2]))
        for start in range(0, len(tokens), 2)
    ]


def test_numbers_are_those_of_the_released_code():
    """Of fields of view, and of their contrasts both ways and one way."""
    np.testing.assert_allclose(fields_of_view(tuple(GOLDEN["bbox"]), 0.6), GOLDEN["expanded"])
    logits = np.array(GOLDEN["context_logits"])
    np.testing.assert_allclose(contrasts(logits, 4, 0.05), GOLDEN["double_multi_k4"])
    np.testing.assert_allclose(contrasts(logits, 6, 0.05), GOLDEN["multi_k6_upper"])


def last(vlm, images, said):
    """Logits of what follows, by a whole pass; and those of early layers."""
    asked = [[one] for one in images], [PROMPT] * len(images), [said] * len(images)
    batch, _ = vlm.processor.batch_answers(*asked, length=128)
    logits = np.asarray(jax.device_get(vlm.generator.logits(vlm.params, batch)))
    return logits[:, int(batch.lengths_b[0]) - 1], batch


def oracle(vlm, bug: bool) -> tuple[list[int], set[str]]:
    """The answer, and what became of its words, spelled out."""
    text = lambda tokens: vlm.processor.decode([tokens], np.array([len(tokens)]))[0]
    said, looked, fates = [], 0, set()
    while True:
        whole = list(said)
        while len(whole) < STEPS:
            (own,), batch = last(vlm, [IMAGE], whole)
            whole.append(int(contrast_layers(early_logits(vlm, batch)[0], own)[1].argmax()))
        for start in range(0, STEPS, 2):
            if start < looked:
                continue
            found = some(IMAGE, text(whole[start : start + 2]))
            left, top, right, bottom = found[0] if found else (0.2, 0.2, 0.8, 0.8)
            middle, sides = ((left + right) / 2, (top + bottom) / 2), (right - left, bottom - top)
            crops = []
            for by in (0.4, 1, 1.6, 2.56):
                edges = [
                    round(np.clip(m + sign * side * by / 2, 0, 1) * length)
                    for sign in (-1, 1)
                    for m, side, length in zip(middle, sides, IMAGE.size)
                ]
                crops.append(IMAGE.crop(edges))
            logits = last(vlm, crops, whole[:start])[0]
            scores = contrasts(logits, 4, 0.05)
            candidates = list(dict.fromkeys(int(row.argmax()) for row in scores))
            best = max(candidates, key=lambda one: lengths([text([*whole[:start], one])], None))
            if best != whole[start]:
                said, looked = [*whole[:start], best], start + 1
                fates.add("replaced")
                break
            if not found:
                after = whole[start + 2 : start + 3]
                said = [*whole[:start], *[vlm.processor.tokenizer.unk_token_id] * (2 * bug), *after]
                looked = start + 2 * bug + len(after)
                fates.add("removed")
                if not bug and not after:
                    return said, fates
                break
            fates.add("kept")
        else:
            return whole, fates


@pytest.mark.parametrize("bug", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_answer_is_that_of_whole_passes(llava_vlm, monkeypatch, bug):
    monkeypatch.setattr(corrected._Corrected, "_words", pairs_of)
    model = llava_vlm.apply("halc", **PARTS, repo_bug=bug)
    options = {"max_new_tokens": STEPS, "min_new_tokens": STEPS}
    (found,) = model.ask([[IMAGE]], [PROMPT], options)
    expected, fates = oracle(llava_vlm, bug)
    assert list(found.tokens) == expected
    assert fates


def test_words_are_what_lies_between_spaces_without_marks_and_plural(llava_vlm):
    vlm = llava_vlm
    tokens = vlm.processor.tokenizer.encode("two cats, (a dog). Yes", add_special_tokens=False)
    one = corrected._Corrected(*[None] * 8)
    object.__setattr__(one, "engine", type("Engine", (), {"processor": vlm.processor}))
    words = [word for _, _, word in one._words(tokens)]
    assert [word for word in words if word] == ["two", "cat", "(a", "dog", "Ye"]


def test_boxes_are_chosen_drawn_and_refused():
    random = np.random.default_rng(0)
    boxes = [[0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]]
    asked = lambda found, **more: read_named(
        "halc", {**PARTS, "detector": lambda image, word: found, **more}
    ).box(IMAGE, "cat", random)
    assert asked(boxes) == ((0.1, 0.2, 0.3, 0.4), True)
    assert asked([]) == ((0.2, 0.2, 0.8, 0.8), False)
    assert asked(boxes * 2) is None
    assert asked(None) is None
    (drawn, found) = asked(boxes, control="random")
    assert found
    np.testing.assert_allclose([drawn[2] - drawn[0], drawn[3] - drawn[1]], [0.2, 0.2])
    assert drawn[0] != 0.1
    for wrong in ([[0, 0, 2, 1]], [[0.5, 0, 0.4, 1]], [1, 2, 3], [[np.nan] * 4]):
        with pytest.raises(ConfigError, match="detector must return boxes"):
            asked(wrong)


def test_nouns_are_left_alone_that_are_exempt_or_drawn():
    wants = lambda **more: read_named("halc", {**PARTS, **more}).wants(
        "Cat", np.random.default_rng(0)
    )
    assert wants()
    assert not wants(exempt=("cat",))
    assert not wants(skip_rate=1.0)
    assert not wants(tagger=lambda word: word != "Cat")


def test_what_cannot_be_is_one_clear_error(llava_vlm):
    vlm = llava_vlm
    for given, message in (
        ({}, "'halc' needs a detector"),
        ({**PARTS, "tagger": "no.such:tagger"}, "cannot be imported"),
        ({**PARTS, "pairs": 7}, "pairs"),
        ({**PARTS, "layers": "odd"}, "layers"),
    ):
        with pytest.raises(ConfigError, match=message):
            vlm.apply("halc", **given)
    model = vlm.apply("halc", **PARTS)
    with pytest.raises(ConfigError, match="'halc' decodes greedily; set temperature to 0"):
        model.ask([[IMAGE]], [PROMPT], {"max_new_tokens": 2, "temperature": 1.0})
    with pytest.raises(PromptError, match="nouns are looked for in one image"):
        model.ask([[]], [PROMPT], {"max_new_tokens": 2})
    with pytest.raises(ConfigError, match="matcher must return a finite number for each of 2"):
        read_named("halc", {**PARTS, "matcher": lambda texts, image: [0, np.nan]}).best("ab", IMAGE)
