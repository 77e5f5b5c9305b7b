import json

import numpy as np
import PIL.Image
import pytest
from transformers import AutoTokenizer

from tests.testbed.words import split_words
from vlm_jax.errors import ConfigError
from vlm_jax.families import read_config
from vlm_jax.processing import Processor
from vlm_jax.testbed import language, packing, pixels
from vlm_jax.testbed.architecture import FAMILIES, get_family, hf_config, model_config
from vlm_jax.testbed.companions import write_companions
from vlm_jax.testbed.scenes import CLASSES, SceneRules, draw_scenes

SOME = np.arange(200)


@pytest.fixture(params=sorted(name for name, each in FAMILIES.items() if not each.released))
def family(request):
    return get_family(request.param)


@pytest.fixture
def folder(family, tmp_path):
    write_companions(tmp_path, family)
    return tmp_path


@pytest.fixture
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def scenes(family):
    return draw_scenes("normal", "train", 0, SOME, SceneRules(size=family.image_size))


def test_captions_name_what_is_there_larger_first_on_the_whole(scenes):
    texts = language.captions(scenes, "s", 0, SOME)
    areas, places = scenes.areas(), []
    for row, text in enumerate(texts):
        named = [w for w in split_words(text) if w in CLASSES]
        assert sorted(named) == sorted(CLASSES[c] for c in np.flatnonzero(scenes.present[row]))
        seen = areas[row, [CLASSES.index(name) for name in named]]
        places += [np.argsort(np.argsort(-seen))] if len(named) == 5 else []
    means = np.mean(places, axis=0)
    assert (np.diff(means) > 0).all()
    assert 0.2 < means[0] < 1.5


def test_captions_read_like_english():
    expected = "a kitchen with a cup , an oven and a spoon ."
    assert language.caption(0, [0, 4, 1]) == expected
    assert language.caption(1, [6]) == "an office with a laptop ."
    assert language.caption(2, [12, 13]) == "a street with a car and a truck ."


def test_questions_are_half_positive_and_right(scenes):
    asked = language.questions(scenes, "s", 0, SOME, pairs=2)
    firsts = []
    for row, turns in enumerate(asked):
        assert [answer for _, answer in turns].count("yes") == 2
        firsts.append(turns[0][1])
        for words, answer in turns:
            name = next(w for w in split_words(words) if w in CLASSES)
            assert scenes.present[row, CLASSES.index(name)] == (answer == "yes")
            assert words == language.question(CLASSES.index(name))
    assert 0.35 < firsts.count("yes") / len(firsts) < 0.65


def test_the_tokenizer_round_trips_every_text(tokenizer, scenes):
    texts = language.captions(scenes, "s", 0, SOME)
    texts += [language.question(c) for c in range(24)] + [language.CAPTION_PROMPT, "Yes"]
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        words = split_words(text)
        assert tokenizer.convert_ids_to_tokens(ids) == words
        assert tokenizer.decode(ids) == " ".join(words)


def test_the_tokenizer_gives_unknown_words_the_unknown_token(tokenizer):
    ids = tokenizer("a zebra", add_special_tokens=False)["input_ids"]
    assert ids[1] == tokenizer.unk_token_id != ids[0]


def test_the_chat_template_ends_where_the_answer_begins(folder, family, tokenizer):
    user = [{"type": "image"}, {"type": "text", "text": language.CAPTION_PROMPT}]
    chat = [{"role": "user", "content": user}]
    asked = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    start = family.before + family.image + family.between
    assert asked == start + language.CAPTION_PROMPT + family.after
    told = tokenizer.apply_chat_template(
        [*chat, {"role": "assistant", "content": "yes"}], tokenize=False
    )
    assert told == asked + family.gap + "yes" + family.eos
    part = lambda text: [{"type": "text", "text": text}]
    again = [{"role": "assistant", "content": part("yes")}, {"role": "user", "content": part("no")}]
    turns = [{"role": "system", "content": part("so")}, *chat, *again]
    before, behind = family.system
    assert tokenizer.apply_chat_template(turns, tokenize=False) == (
        f"{before}so{behind}{told}{family.before}no"
    )
    assert read_config(folder) == model_config(family.name)
    assert json.loads((folder / "config.json").read_text()) == hf_config(family)


def test_pixels_are_those_of_the_image_processor(folder, family, scenes):
    processor = Processor.from_folder(folder)
    images = [PIL.Image.fromarray(image) for image in scenes.images[:3]]
    batch = processor.batch([[image] for image in images], ["a"] * 3)
    ours, slots = pixels.cut_images(scenes.images[:3], model_config(family.name))
    groups = ours.patches_bgue.shape[1]
    np.testing.assert_allclose(ours.patches_bgue, batch.images.patches_bgue[:, :groups], atol=2e-6)
    np.testing.assert_array_equal(ours.ids_bgu, batch.images.ids_bgu[:, :groups])
    np.testing.assert_array_equal(ours.positions_bgu2, batch.images.positions_bgu2[:, :groups])
    is_image = batch.tokens_bt[0] == processor.config.image_token_id
    np.testing.assert_array_equal(batch.slots_bt[0][is_image], slots)


def test_labels_follow_the_order_of_the_patches(family):
    config = model_config(family.name)
    size, side = family.image_size, family.image_size // family.cell
    ratio = family.cell // config.vision.patch_size
    images, _ = pixels.cut_images(np.zeros((2, size, size, 3), np.uint8), config)
    labels = np.arange(side * side * 2).reshape(2, side * side, 1) % (side * side)
    placed = pixels.label_patches(labels, images, ratio)[..., 0]
    rows, columns = np.moveaxis(images.positions_bgu2 // ratio, -1, 0)
    np.testing.assert_array_equal(placed, rows * side + columns)


def test_turns_are_packed_with_their_targets(folder, family, tokenizer):
    rows = [[("a cup", "yes", 1.0), ("a fork", "no", 0.5)], [("the", "a cup .", 2.0)]]
    turns = packing.pack_turns(tokenizer, family, rows, 30)
    words = lambda ids: tokenizer.convert_ids_to_tokens(ids)
    first = turns.turns_bu[0] == 0
    after = language_tokens(tokenizer, family.after)
    assert words(turns.tokens_bu[0][first]) == ["a", "cup", *after, "yes"]
    assert words(turns.targets_bu[0][first]) == ["cup", *after, "yes", family.eos]
    np.testing.assert_array_equal(turns.offsets_bu[0][first], np.arange(first.sum()))
    assert turns.weights_bu[0][first].tolist()[-2:] == [0.5, 0.5]
    assert not turns.weights_bu[0][first][:-2].any()
    np.testing.assert_allclose(turns.weights_bu.sum(1), [1.5, 2.0])
    assert (turns.turns_bu[1] == -1).sum() == 30 - (turns.turns_bu[1] == 0).sum()
    with pytest.raises(ConfigError, match="has room for 3"):
        packing.pack_turns(tokenizer, family, rows, 3)


def language_tokens(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False))


def test_unknown_families_are_refused():
    with pytest.raises(ConfigError, match="no testbed of family 'blip'"):
        get_family("blip")
