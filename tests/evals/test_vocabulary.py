"""What counts as naming an object, and where it is found."""

import gzip
import json

import pytest

from vlm_jax.evals.object_words import COCO_OBJECT_WORDS
from vlm_jax.evals.vocabulary import (
    Vocabulary,
    coco_vocabulary,
    from_table,
    read_double_words,
    read_synonyms,
    standard_double_words,
)
from vlm_jax.evals.words import singularize


def nodes(text: str, vocabulary: Vocabulary | None = None) -> list[str]:
    return [m.node for m in (vocabulary or coco_vocabulary()).read(text).mentions]


def test_the_table_has_the_80_categories_and_no_dead_words():
    categories = list(COCO_OBJECT_WORDS)
    assert len(categories) == 80
    assert categories[0] == "person"
    assert categories[-1] == "toothbrush"
    words = [word for entry in COCO_OBJECT_WORDS.values() for word in entry]
    assert all(word == word.lower().strip() and word for word in words)
    assert all(word.count(" ") <= 1 for word in words)
    lost = [word for word in words if " " not in word and singularize(word) != word]
    # As "bus" itself, these match in the plural alone: the variant strips their -s.
    assert lost == ["airbus", "minibus", "omnibus"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man and a woman ride two bikes.", ["person", "person", "bicycle"]),
        ("A hot dog next to a dog", ["hot dog", "dog"]),
        ("two baby elephants near a train track", ["elephant"]),
        ("he runs to home plate; wine glasses", ["wine glass"]),
        ("passenger trains and a passenger jet", ["train", "airplane"]),
        ("a man in a bow tie", ["person", "tie"]),
        ("the toilet seat is up", ["toilet"]),
        ("the seat of the toilet is up", ["toilet"]),
        ("a seat by the window", ["chair"]),
        ("stop signs, fire hydrants", ["stop sign", "fire hydrant"]),
        ("a stop, sign", []),
        ("The bus leaves. Buses leave.", ["bus"]),
        ("a dining table", ["dining table"]),
        ("potted plants and a plant", ["potted plant"]),
        ("teddy-bear", []),
        ("", []),
    ],
)
def test_mentions(text, expected):
    assert nodes(text) == expected


def test_mentions_point_into_the_text():
    text = "Two Hot Dogs, and\na Teddy  bear\u2019s CUP."
    found = [
        (text[m.start : m.end], m.surface, m.node) for m in coco_vocabulary().read(text).mentions
    ]
    assert found == [
        ("Hot Dogs", "Hot Dogs", "hot dog"),
        ("Teddy  bear", "Teddy  bear", "teddy bear"),
        ("CUP", "CUP", "cup"),
    ]


def test_length_counts_merged_words():
    assert coco_vocabulary().read("A hot dog.").length == 3
    assert coco_vocabulary().read("a seat on a toilet").length == 4


def test_offsets_survive_letters_that_grow_in_lower_case():
    text = "İİİ a cup"
    (mention,) = coco_vocabulary().read(text).mentions
    assert text[mention.start : mention.end] == "cup"


def test_official_form_keeps_its_quirks(write):
    path = write("synonyms.txt", "\nperson, man\ncake,  cheesecake, pie\nphone, iPhone\n")
    vocabulary = read_synonyms(path)
    assert vocabulary.categories == ("person", "cake", "phone")
    assert nodes("men eat cheesecake and pie, phone iPhone", vocabulary) == [
        "person",
        "cake",
        "phone",
    ]
    assert " cheesecake" in vocabulary.nodes


def test_double_words_are_the_reference_s(real_data):
    rules = read_double_words(real_data / "chair" / "double_word_dict.json")
    assert rules == standard_double_words()


def test_double_words_can_be_given(write):
    rules = read_double_words(write("rules.json", '{"ice cream": "cake"}'))
    vocabulary = from_table({"cake": ["pie"]}, double_words=rules)
    assert nodes("ice creams and pie", vocabulary) == ["cake", "cake"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1"),
        ("[]", "Expected `object`"),
        ('{"a b": 1}', "Expected `str`"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_double_words(write, content, message):
    path = write("rules.json", content)
    with pytest.raises(ValueError, match=message) as error:
        read_double_words(path)
    assert str(path) in str(error.value)


def test_bad_vocabularies(write, tmp_path):
    with pytest.raises(ValueError, match="lists no category"):
        read_synonyms(write("empty.txt", "\n\n"))
    with pytest.raises(ValueError, match=r"cannot read .*absent\.txt"):
        read_synonyms(tmp_path / "absent.txt")
    with pytest.raises(ValueError, match="'pie' is listed under both 'cake' and 'bread'"):
        from_table({"cake": ["pie"], "bread": ["pie"]})
    with pytest.raises(ValueError, match="variant 'lemma' is unknown"):
        coco_vocabulary("lemma")
    with pytest.raises(ValueError, match="two-word rule 'icecream'"):
        from_table({"cake": []}, double_words={"icecream": "cake"})


def test_fingerprints_tell_vocabularies_apart():
    small = from_table({"cake": ["pie"]})
    assert small.fingerprint() == from_table({"cake": ["pie"]}).fingerprint()
    assert small.fingerprint() != from_table({"cake": ["tart"]}).fingerprint()


def test_every_caption_reads_as_in_the_reference(real_data, official, coco_truth, real_captions):
    golden = real_data / "chair" / "golden_per_caption_pattern.tsv.gz"
    differing, checked = [], 0
    for line in gzip.decompress(golden.read_bytes()).decode().splitlines()[1:]:
        file, number, image, words, flags = (line + "\t\t").split("\t")[:5]
        key, caption = real_captions[file][int(number)]
        assert key == int(image)
        present = coco_truth.objects[key]
        mentions = official.read(caption).mentions
        ours = (
            "|".join(m.node for m in mentions),
            "|".join(str(int(m.node not in present)) for m in mentions),
        )
        checked += 1
        if ours != (words, flags):
            differing.append((file, number))
    assert checked >= 19_500
    assert len(differing) <= checked / 5000, differing[:5]


def test_lengths_are_near_the_reference_s(real_data, official, real_captions):
    """The stored lengths are of the wordnet variant, which merges a few words more."""
    scores = json.loads((real_data / "chair" / "golden_scores.json").read_text())["files"]
    for file, captions in real_captions.items():
        mean = sum(official.read(text).length for _, text in captions) / len(captions)
        reference = 100 * scores[file]["official_opera_chair.py__wordnet"]["Len"]
        assert mean == pytest.approx(reference, rel=1e-3)
