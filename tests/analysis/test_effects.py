"""Effect sizes by hand, ranks, halves, and mentions as tokens."""

import numpy as np
import pytest

from vlm_jax.analysis.effects import effect_sizes, jaccard, ranking, spearman, stability
from vlm_jax.analysis.mentions import matching_tokens, naming_tokens, token_spans
from vlm_jax.evals.chair import ScoredMention


def test_effect_sizes_by_hand():
    drop = np.array([0.5, 0.3, 0.1, 0.0, 0.2])[:, None, None]
    wrong = np.array([True, True, False, False, False])
    found = effect_sizes(drop, wrong)
    assert found.contrast_ln[0, 0] == pytest.approx(0.4 - 0.1)
    variance = 0.01 + (0.01 + 0.01) / 3
    assert found.size_ln[0, 0] == pytest.approx(0.3 / np.sqrt(variance))
    assert (found.hallucinated, found.grounded) == (2, 3)


def test_heads_without_effect_have_size_zero():
    found = effect_sizes(np.zeros((4, 2, 2)), np.array([True, False, True, False]))
    assert np.all(found.size_ln == 0)


def test_effect_sizes_need_both_kinds():
    with pytest.raises(ValueError, match="3 hallucinated and 0 grounded"):
        effect_sizes(np.zeros((3, 1, 1)), np.ones(3, bool))


def test_ranking_is_stable_and_jaccard_counts():
    assert ranking(np.array([[0.1, 0.5], [0.5, 0.2]])) == ((0, 1), (1, 0), (1, 1), (0, 0))
    assert jaccard([1, 2, 3], [2, 3, 4]) == 0.5
    assert jaccard([], []) == 1


def test_spearman_equals_its_definition():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30))
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    assert spearman(a, b) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert spearman(a, np.exp(a)) == pytest.approx(1)
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(
        np.corrcoef([1.5, 1.5, 3], [1, 2, 3])[0, 1]
    )


def test_halves_are_of_samples_not_of_tokens():
    """Samples 4, 7, 9, 11: the first and third favour head 0, the others head 1."""
    sample_m = np.repeat([4, 7, 9, 11], 4)
    wrong_m = np.tile([True, True, False, False], 4)
    drop = np.zeros((16, 1, 2))
    for token in range(16):
        favoured = (token // 4) % 2
        drop[token, 0, favoured] = (0.5 if wrong_m[token] else 0.1) + 0.01 * (token % 2)
    assert stability(drop, wrong_m, sample_m, 1) == 0
    assert stability(drop[:, :, :1], wrong_m, sample_m, 1) == 1
    assert stability(drop[:4], wrong_m[:4], sample_m[:4], 1) is None


def mention(start, end, hallucinated):
    return ScoredMention(start, end, "", "", hallucinated)


def test_mentions_take_all_their_tokens():
    spans = [(0, 1), (1, 5), (5, 9), (9, 10), (10, 15)]
    found = naming_tokens([mention(2, 9, False), mention(10, 15, True)], spans)
    assert [(t.index, t.first, t.hallucinated) for t in found] == [
        (1, True, False),
        (2, False, False),
        (4, True, True),
    ]


def test_a_token_of_two_mentions_is_hallucinated_if_either_is():
    spans = [(0, 4)]
    found = naming_tokens([mention(0, 2, False), mention(2, 4, True)], spans)
    assert [(t.index, t.hallucinated) for t in found] == [(0, True)]


class Words:
    """A tokenizer of words that ends them with their last three letters as a token of its own."""

    def __init__(self):
        self.pieces: list[str] = []

    def __call__(self, text, add_special_tokens=False):
        parts = [p for word in text.split() for p in (word[:-3], word[-3:]) if p]
        self.pieces += [part for part in parts if part not in self.pieces]
        return {"input_ids": [self.pieces.index(part) for part in parts]}

    def decode(self, ids, skip_special_tokens=True):
        return " ".join(self.pieces[n] for n in ids)


def test_matching_strings_label_what_reads_alike():
    """As released: the first piece alone, wherever it occurs, hallucinated winning ties."""
    tokenizer = Words()
    text = "handcart and handbag by a dog"
    tokens = tokenizer(text)["input_ids"]
    mentions = [mention(0, 8, False), mention(13, 20, True), mention(26, 29, False)]
    found = matching_tokens(mentions, tokenizer, tokens, text)
    read = [(tokenizer.decode([tokens[t.index]]), t.hallucinated) for t in found]
    assert read == [("handc", False), ("hand", True), ("dog", False)]
    again = "dog dog hand"
    tokens = tokenizer(again)["input_ids"]
    mentions = [mention(0, 3, False), mention(4, 7, True)]
    found = matching_tokens(mentions, tokenizer, tokens, again)
    assert [(t.index, t.hallucinated, t.first) for t in found] == [(0, True, True), (1, True, True)]


@pytest.mark.parametrize(
    "text", ["a red wine glass on a table", "Ein Glas für dich, naïve 🍷 done"]
)
def test_spans_cover_the_text(vlm, text):
    tokenizer = vlm.processor.tokenizer
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    decoded = tokenizer.decode(tokens, skip_special_tokens=True)
    spans = token_spans(tokenizer, tokens, decoded)
    assert len(spans) == len(tokens)
    assert all(a <= b for a, b in spans)
    assert spans[-1][1] == len(decoded)


def test_spans_of_tokens_that_the_tokenizer_would_not_choose(qwen_vlm):
    """Generated ids need not be what the tokenizer makes of their text."""
    tokenizer = qwen_vlm.processor.tokenizer
    pieces = [tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in "a cup"]
    tokens = [piece for listed in pieces for piece in listed]
    text = tokenizer.decode(tokens)
    assert text == "a cup"
    spans = token_spans(tokenizer, tokens, text)
    found = naming_tokens([mention(2, 5, True)], spans)
    named = "".join(text[slice(*spans[token.index])] for token in found)
    assert named == "cup"
    assert [token.first for token in found] == [True] + [False] * (len(found) - 1)
