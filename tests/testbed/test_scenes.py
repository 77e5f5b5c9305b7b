import numpy as np
import pytest

from vlm_jax.errors import ConfigError
from vlm_jax.evals.vocabulary import coco_vocabulary
from vlm_jax.testbed import icons, scenes
from vlm_jax.testbed.randoms import coarse_noise, uniforms
from vlm_jax.testbed.scenes import CLASSES, SceneRules, choose_objects, draw_scenes, partner

MANY = np.arange(20_000)
A, B = np.arange(0, 24, 2), np.arange(1, 24, 2)


def test_uniforms_are_uniform_and_independent():
    u = uniforms("x", 3, np.arange(2000), 50)
    assert u.min() >= 0
    assert u.max() < 1
    np.testing.assert_allclose(u.mean(), 0.5, atol=0.005)
    np.testing.assert_allclose(u.var(), 1 / 12, atol=0.002)
    assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 0.08
    for other in (uniforms("y", 3, np.arange(2000), 50), uniforms("x", 4, np.arange(2000), 50)):
        assert abs(np.corrcoef(u.ravel(), other.ravel())[0, 1]) < 0.01


def test_randoms_do_not_depend_on_company():
    whole = uniforms("x", 0, np.arange(100), 20)
    np.testing.assert_array_equal(uniforms("x", 0, np.array([41, 7]), 12), whole[[41, 7], :12])
    noise = coarse_noise("x", 0, np.arange(10), 30)
    np.testing.assert_array_equal(coarse_noise("x", 0, np.array([4]), 30)[0], noise[4])
    np.testing.assert_allclose(coarse_noise("x", 0, np.arange(500), 99).mean(), 0.5, atol=0.01)


@pytest.mark.parametrize("kind", scenes.SETS)
def test_a_scene_is_the_same_whatever_is_drawn_with_it(kind):
    whole = draw_scenes(kind, "dev", 5, np.arange(40))
    alone = draw_scenes(kind, "dev", 5, np.array([33]))
    np.testing.assert_array_equal(alone.images[0], whole.images[33])
    np.testing.assert_array_equal(alone.present[0], whole.present[33])
    np.testing.assert_array_equal(alone.owners[0], whole.owners[33])


def test_splits_and_seeds_share_no_scene():
    drawn = [
        draw_scenes("normal", split, seed, np.arange(200)).images
        for split, seed in (("train", 0), ("dev", 0), ("test", 0), ("train", 1))
    ]
    hashes = [{image.tobytes() for image in images} for images in drawn]
    assert sum(map(len, hashes)) == len(set().union(*hashes)) == 800


def test_pairs_are_complete_with_probability_p_co():
    _, present = choose_objects("normal", "train", 0, MANY)
    types, _ = choose_objects("normal", "train", 0, MANY)
    own = np.arange(24) // 6 == types[:, None]  # without strays, which complete nothing
    first, second = (present & own)[:, A], (present & own)[:, B]
    active = first | second
    np.testing.assert_allclose((first & second).sum() / active.sum(), 0.8, atol=0.01)
    np.testing.assert_allclose((first & ~second).sum() / active.sum(), 0.1, atol=0.01)
    np.testing.assert_allclose((present & ~own).any(1).mean(), 0.35, atol=0.01)
    counts = np.bincount(active.sum(1), minlength=4) / len(MANY)
    np.testing.assert_allclose(counts, [0, *SceneRules().pair_weights], atol=0.012)


def test_broken_scenes_hold_no_b_and_some_a():
    _, present = choose_objects("broken", "test", 0, MANY)
    assert not present[:, B].any()
    assert present.any(1).all()
    assert (present[:, A].mean(0) > 0.05).all()


def test_uniform_scenes_have_no_prior():
    types, present = choose_objects("uniform", "train", 0, MANY)
    assert set(np.unique(present.sum(1))) == {1, 2, 3, 4, 5, 6}
    np.testing.assert_allclose(present.mean(0), present.mean(), atol=0.015)
    together = (present[:, A] & present[:, B]).mean()
    strangers = (present[:, A] & np.roll(present[:, B], 3, axis=1)).mean()
    np.testing.assert_allclose(together, strangers, atol=0.004)
    for kind in range(4):
        np.testing.assert_allclose(present[types == kind].mean(0), present.mean(), atol=0.03)


@pytest.mark.parametrize("size", [56, 84])
def test_every_object_is_visible_and_nothing_else_is(size):
    drawn = draw_scenes("normal", "dev", 0, np.arange(300), SceneRules(size=size))
    assert drawn.images.shape == (300, size, size, 3)
    areas = drawn.areas()
    assert not areas[~drawn.present].any()
    assert (areas[drawn.present] > 0).mean() > 0.995
    np.testing.assert_allclose(areas[drawn.present].mean(), 0.043, atol=0.01)


def test_patch_labels_are_the_classes_that_cover_a_patch():
    drawn = draw_scenes("normal", "dev", 0, np.arange(20))
    labels = drawn.patch_labels(8, share=0.25)
    assert labels.shape == (20, 49, 24)
    for scene, row, column in [(0, 0, 0), (3, 2, 5), (7, 6, 6), (11, 4, 1)]:
        tile = drawn.owners[scene, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
        expected = [(tile == c).mean() >= 0.25 for c in range(24)]
        assert labels[scene, row * 7 + column].tolist() == expected
    assert 0.02 < labels.any(2).mean() < 0.9


def test_looks_are_unique_and_attributes_are_shared():
    looks = list(zip(scenes.CLASS_SHAPES, scenes.CLASS_HUES, scenes.CLASS_TEXTURES))
    assert len(set(looks)) == 24
    for values, kinds in zip(zip(*looks), (len(icons.SHAPES), icons.NUM_HUES, 4)):
        assert np.bincount(values, minlength=kinds).min() >= 2


def test_classes_are_known_objects_and_scene_types_are_not():
    vocabulary = coco_vocabulary()
    for name in CLASSES:
        assert [mention.node for mention in vocabulary.read(f"a {name} .").mentions] == [name]
    for name in scenes.SCENE_TYPES:
        assert not vocabulary.read(f"a {name} with").mentions


def test_partners_are_mutual():
    assert [partner(partner(c)) for c in range(24)] == list(range(24))
    assert CLASSES[partner(CLASSES.index("cup"))] == "spoon"


def test_bad_requests_are_refused():
    with pytest.raises(ConfigError, match="sets are normal, broken, uniform"):
        draw_scenes("usual", "dev", 0, np.arange(1))
    with pytest.raises(ConfigError, match="splits train, dev, test"):
        draw_scenes("normal", "val", 0, np.arange(1))


def test_unknown_icons_are_refused():
    with pytest.raises(ValueError, match="shape 'star'"):
        icons._distance("star", np.zeros(1), np.zeros(1))
    with pytest.raises(ValueError, match="texture 'fur'"):
        icons._shade("fur", np.zeros(1), np.zeros(1))
