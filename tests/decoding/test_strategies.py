"""Strategies against a plain loop of whole forward passes; identities, controls and bad input."""

import dataclasses
import functools
import json
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import vlm_jax
from tests.decoding import mesh_searches
from tests.decoding.mesh_searches import left_half
from tests.reference import picture
from vlm_jax import models
from vlm_jax.attention.steering import ImageBoost, Steering
from vlm_jax.batch import Images
from vlm_jax.decoding.named import read_named
from vlm_jax.decoding.strategies import STRATEGIES
from vlm_jax.decoding.strategies.base import Step
from vlm_jax.decoding.strategies.dola import divergences
from vlm_jax.decoding.strategies.icd import DISTURBANCE
from vlm_jax.decoding.strategies.vcd import schedule
from vlm_jax.errors import ConfigError, PromptError
from vlm_jax.models import Watched

STEPS = 6
IMAGES = [[picture(56, 70, 1)], [picture(84, 56, 2)], [picture(60, 60, 3)]]
PROMPTS = ["Describe it.", "What is this thing, please?", "Why?"]


SETTINGS = {"vcd": {}, "icd": {}, "agla": {"mask": left_half}, "dola": {}, "m3id": {"alpha": 1},
            "pai": {"alpha": 0}, "first_logit": {"alpha": 2, "beta": 0.01}}  # fmt: skip
GOLDEN = json.loads(pathlib.Path(__file__).with_name("golden_numeric.json").read_text())
"""Made by the released functions where they can be run, and by their formulas elsewhere."""


def noisy(vlm, batch):
    """The batch with the noise of VCD at step 500, spelled out; each row has one image."""
    vision, images = vlm.config.vision, batch.images
    patches_bgue = images.patches_bgue.copy()
    for row, ids in zip(patches_bgue, images.ids_bgu):
        clean = row[ids >= 0]
        random = np.random.default_rng([0, zlib.crc32(clean.tobytes())])
        split = clean.reshape(len(clean), vision.num_channels, -1, vision.patch_size**2)
        drawn = random.standard_normal((*split.shape[:2], 1, split.shape[3]), np.float32)
        row[ids >= 0] = (0.86302 * split + 0.50517 * drawn).reshape(clean.shape)
    changed = Images(patches_bgue, images.ids_bgu, images.positions_bgu2)
    return dataclasses.replace(batch, images=changed)


def halved(image):
    """The image with its right half black."""
    pixels = np.array(image)
    pixels[:, image.width // 2 :] = 0
    return PIL.Image.fromarray(pixels)


def oracle(vlm, name: str, bug: bool = False) -> list[list[int]]:
    """Greedy answers by a whole forward pass for each token and view, each view on its own."""
    answers: list[list[int]] = [[] for _ in PROMPTS]

    def batch_of(images, prompts):
        return vlm.processor.batch_answers(images, prompts, answers, length=128)[0]

    def last(images, prompts, change=lambda batch: batch):
        batch = batch_of(images, prompts)
        logits = jax.device_get(vlm.generator.logits(vlm.params, change(batch), vlm.steering))
        return np.stack([row[end - 1] for row, end in zip(logits, batch.lengths_b)])

    blind = [[] for _ in IMAGES]
    others = {
        "vcd": lambda: last(IMAGES, PROMPTS, lambda batch: noisy(vlm, batch)),
        "icd": lambda: last(IMAGES, [f"{DISTURBANCE} {prompt}" for prompt in PROMPTS]),
        "agla": lambda: last([[halved(one)] for (one,) in IMAGES], PROMPTS),
        "m3id": lambda: last(blind, PROMPTS),
        "pai": lambda: last(blind, PROMPTS),
        "dola": lambda: early_logits(vlm, batch_of(IMAGES, PROMPTS)),
    }
    first = None
    for count in range(STEPS):
        own = last(IMAGES, PROMPTS)
        first = own if first is None else first
        other = own if bug and count else others.get(name, lambda first=first: first)()
        for answer, *row in zip(answers, own, other):
            answer.append(int(SCORES[name](*row, count).argmax()))
    return answers


@functools.cache
def early_reader(vlm):
    graphdef, levels = models.abstract(vlm.config)[0], range(0, vlm.config.decoder.num_layers, 2)
    watch = models.Watch(hidden=tuple(levels))
    return jax.jit(
        lambda params, batch, steering: models.merge(graphdef, params).prefill(
            batch, 1, steering=steering, watch=watch
        )[2]
    )


def early_logits(vlm, batch) -> np.ndarray:
    """Logits [B, J, V] of what layers 0, 2, ... read in the last rows, without the final norm."""
    watched = early_reader(vlm)(vlm.params, batch, vlm.steering)
    head = vlm.params.get("decoder/head_vd", vlm.params["decoder/embed_vd"])
    return np.einsum("bjd,vd->bjv", np.asarray(watched.hidden_bjd), np.asarray(head))


def contrast_layers(candidates, final) -> tuple[np.ndarray, np.ndarray]:
    """DoLa of one row, spelled out in float64: distances [J], and scores [V]."""
    soft = lambda x: np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    final_p, distances = soft(np.float64(final)), []
    for early in np.asarray(candidates, np.float64):
        early_p = soft(early)
        mean = (early_p + final_p) / 2
        of = lambda p, mean=mean: np.mean(mean * np.log(mean / p))
        distances.append((of(final_p) + of(early_p)) / 2)
    chosen = soft(np.float64(candidates[int(np.argmax(distances))]))
    kept = final_p >= 0.1 * final_p.max()
    return np.array(distances), np.where(kept, np.log(final_p / chosen), -np.inf)


def log_soft(row) -> np.ndarray:
    row = np.float64(row)
    return row - row.max() - np.log(np.exp(row - row.max()).sum())


def among(likely, scores, beta) -> np.ndarray:
    """Scores of tokens at least beta times as likely as the likeliest."""
    return np.where(likely >= np.log(beta) + likely.max(), scores, -np.inf)


def grow(own, blind, count) -> np.ndarray:
    """M3ID where no row is sure of itself."""
    kept = np.exp(-0.02 * (count + 1))
    return log_soft(own) + (1 - kept) / kept * (log_soft(own) - log_soft(blind))


SCORES = {
    "vcd": lambda own, other, count: among(own, 2 * own - other, 0.1),
    "icd": lambda own, other, count: among(own, 2 * own - other, 0.1),
    "agla": lambda own, other, count: among(own, own + 2 * other, 0.5),
    "dola": lambda own, early, count: contrast_layers(early, own)[1],
    "m3id": grow,
    "pai": lambda own, other, count: among(own, 1.1 * log_soft(own) - 0.1 * log_soft(other), 0.1),
    "first_logit": lambda own, first, count: among(
        own, own + 2 * (1 - np.exp(-0.05 * count)) * first, 0.01
    ),
}


def tokens(vlm, strategy, images=IMAGES, prompts=PROMPTS, **options) -> list[list[int]]:
    asked = dict(max_new_tokens=STEPS, min_new_tokens=STEPS, strategy=strategy) | options
    found = {made.index: made for made in vlm.answer(images, prompts, **asked)}
    return [list(found[index].tokens) for index in range(len(prompts))]


@pytest.fixture(scope="module")
def plain(llava_vlm):
    return tokens(llava_vlm, None)


def test_every_file_is_a_strategy():
    assert STRATEGIES.names() == sorted(SETTINGS)
    assert STRATEGIES.find("vcd").__name__ == "VCD"


CASES = [("llava_vlm", name) for name in SETTINGS] + [("qwen_vlm", "vcd")]
CASES += [
    pytest.param("qwen_vlm", name, marks=pytest.mark.slow) for name in SETTINGS if name != "vcd"
]


@pytest.mark.parametrize(("model", "name"), CASES)
def test_answers_are_those_of_whole_passes_view_by_view(request, model, name):
    """And those of a sample alone are those in a batch."""
    vlm, strategy = request.getfixturevalue(model), read_named(name, SETTINGS[name])
    found = tokens(vlm, strategy)
    assert found == oracle(vlm, name)
    assert found != tokens(vlm, None)
    assert tokens(vlm, strategy, IMAGES[1:2], PROMPTS[1:2]) == found[1:2]


def test_the_published_bug_reads_the_second_image_once(llava_vlm):
    vlm = llava_vlm
    for name in ("vcd", "agla"):
        buggy = read_named(name, SETTINGS[name] | {"repo_bug": True})
        assert tokens(vlm, buggy) == oracle(vlm, name, bug=True)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("vcd", {"alpha": 0}), ("vcd", {"control": "clean"}), ("vcd", {"beta": 1}),
     ("icd", {"alpha": 0}), ("icd", {"control": "same"}), ("agla", {"alpha": 0}),
     ("m3id", {"decay": 0}), ("m3id", {"control": "same"}), ("m3id", {"alpha": 0}),
     ("pai", {"gamma": 1}), ("pai", {"alpha": 1, "control": "same"}),
     ("first_logit", {"alpha": 0})],
)  # fmt: skip
def test_without_information_answers_are_greedy(llava_vlm, plain, name, settings):
    assert tokens(llava_vlm, read_named(name, SETTINGS[name] | settings)) == plain


def test_m3id_without_its_threshold_is_that_of_those_who_compare_with_it():
    """logits + (logits - blind) (1 - g) / g, implausible tokens left out, at several tokens."""
    rng = np.random.default_rng(0)
    own, blind = rng.standard_normal((2, 11)).astype(np.float32) * 3
    method = read_named("m3id", {"alpha": 1, "beta": 0.1})
    for count in (0, 7, 40):
        step = Step(np.int32(count), Watched())
        kept = np.exp(-0.02 * (count + 1))
        expected = among(own, own + (own - blind) * (1 - kept) / kept, 0.1)
        found = np.asarray(method.scores(jnp.asarray([[own, blind]]), step)[0])
        np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))
        soft = lambda row: np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        np.testing.assert_allclose(soft(found), soft(expected), atol=1e-5)


def test_a_random_mask_keeps_the_area():
    control = read_named("agla", {"mask": left_half, "control": "random"})
    image = PIL.Image.new("RGB", (20, 10), "white")
    (view,) = control.views([image], "")
    assert view.images is not None
    pixels = np.asarray(view.images[0])
    assert (pixels == 255).sum() == 3 * 100
    assert (pixels[:, :10] == 0).any()


def test_other_numbers_compile_nothing(llava_vlm):
    vlm = llava_vlm
    tokens(vlm, read_named("vcd", {}))
    before = vlm.generator.compilations
    tokens(vlm, read_named("vcd", {"alpha": 0.5, "beta": 0.2}))
    assert vlm.generator.compilations == before


def test_noise_is_that_of_the_released_schedule():
    known = {100: (0.99829, 0.05841), 250: (0.98913, 0.14702), 500: (0.86302, 0.50517),
             700: (0.59268, 0.80544), 900: (0.36489, 0.93105), 999: (0.28504, 0.95851)}  # fmt: skip
    for step, factors in known.items():
        np.testing.assert_allclose(schedule(step), factors, atol=5e-6)


def test_numbers_are_those_of_the_released_code():
    """Of VCD, AGLA and DoLa, whose distances and whose choice of a layer are given too."""
    step = Step(np.int32(0), Watched())
    for name in ("vcd", "agla"):
        golden = GOLDEN[f"{name}_combine"]
        other = golden["noised" if name == "vcd" else "augmented"]
        settings = {key: golden[key] for key in ("alpha", "beta")}
        one = read_named(name, SETTINGS[name] | settings)
        scores = one.scores(jnp.asarray([[golden["orig"], other]]), step)[0]
        np.testing.assert_allclose(scores, as_scores(golden["result"]), rtol=1e-5)
    golden = GOLDEN["dola"]
    early, final = (jnp.asarray(golden[f"{name}_logits"]) for name in ("premature", "mature"))
    found = divergences(early[None], final[None])[0]
    np.testing.assert_allclose(found, golden["js"], rtol=1e-4)
    step = Step(np.int32(0), Watched(early_bjv=early[None, None]))
    scores = read_named("dola", {}).scores(final[None, None], step)[0]
    np.testing.assert_allclose(scores, as_scores(golden["contrast"]), rtol=1e-4)
    assert int(np.argmax(scores)) == golden["argmax"]
    np.testing.assert_allclose(contrast_layers(early, final)[0], golden["js"], rtol=1e-6)


def as_scores(values) -> np.ndarray:
    """Scores, where null stands for -inf."""
    return np.array([-np.inf if value is None else value for value in values])


def watched_levels(strategy, depth: int) -> tuple[int, ...]:
    watch = strategy.watch(depth)
    assert watch is not None
    return watch.early


def test_layers_are_those_that_words_mean():
    levels = lambda layers, depth: watched_levels(read_named("dola", {"layers": layers}), depth)
    assert levels("even", 32) == tuple(range(0, 32, 2))
    assert levels("low", 32) == tuple(range(0, 16, 2))
    assert levels("high", 32) == tuple(range(16, 32, 2))
    assert levels("high", 6) == (4,)
    assert levels([5, 0], 6) == (5, 0)
    with pytest.raises(ConfigError, match=r"names 6.*the model's 6 layers: 0 to 5"):
        levels([0, 6], 6)


def test_a_random_layer_and_a_norm_are_other_answers(llava_vlm):
    """With one candidate there is nothing to choose, at random neither."""
    ask = lambda **settings: tokens(llava_vlm, read_named("dola", settings))
    assert ask(layers=[1]) == ask(layers=[1], control="random")
    assert ask(layers=[0, 1, 2], control="random") != ask(layers=[0, 1, 2])
    assert ask(layers=[1], norm=True) != ask(layers=[1])


def test_pai_raises_attention_on_the_image_too(llava_vlm):
    """Its two halves are the contrast, and a part of attention in layers from one on."""
    vlm, whole = llava_vlm, read_named("pai", {"alpha": 3, "first_layer": 1})
    strength = np.zeros((1, vlm.config.decoder.num_layers, vlm.config.decoder.num_heads), "f")
    strength[:, 1:] = 3
    steering = Steering(image_boost=ImageBoost(strength))
    contrast = read_named("pai", {"alpha": 0})
    found = tokens(vlm, whole)
    assert found == tokens(vlm, contrast, steering=steering) != tokens(vlm, contrast)
    assert found == tokens(vlm.apply("pai", alpha=3, first_layer=1), None)
    with pytest.raises(ConfigError, match="both set image_boost"):
        tokens(vlm, whole, steering=steering)
    with pytest.raises(ConfigError, match="first_layer is 9, but the model has layers 0 to 2"):
        tokens(vlm, read_named("pai", {"first_layer": 9}))


def test_frames_of_a_still_image_share_their_noise():
    (view,) = read_named("vcd", {}).views([], "")
    assert view.pixels is not None
    changed = view.pixels(np.zeros((2, 3, 2, 16), np.float32), np.random.default_rng(0))
    np.testing.assert_array_equal(changed[:, :, 0], changed[:, :, 1])
    assert len(np.unique(changed)) == 2 * 3 * 16


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [("vdc", {}, "did you mean 'vcd'"), ("vcd", {"alhpa": 1}, "did you mean 'alpha'"),
     ("vcd", {"beta": 2}, "beta must be"), ("vcd", {"noise_step": 1000}, "noise_step"),
     ("icd", {"control": "clean"}, "'same'"), ("agla", {}, "mask must be a function"),
     ("dola", {"layers": "odd"}, "layers must be one of"), ("dola", {"layers": [0, 0]}, "twice"),
     ("dola", {"layers": []}, "or a list"), ("dola", {"layers": [-1]}, "whole number")],
)  # fmt: skip
def test_bad_settings_are_one_clear_error(name, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read_named(name, settings)
    assert "\n" not in str(caught.value)


def test_a_sample_without_an_image_fails_alone(llava_vlm):
    strategy = read_named("vcd", {})
    with pytest.raises(PromptError, match=r"Sample 1: method 'vcd' contrasts images"):
        list(llava_vlm.answer([IMAGES[0], []], PROMPTS[:2], strategy=strategy))
    found = llava_vlm.answer(
        [IMAGES[0], []], PROMPTS[:2], strategy=strategy, max_new_tokens=2, on_error="yield"
    )
    assert sorted(type(made).__name__ for made in found) == ["Answer", "Failure"]


def test_a_mask_of_another_shape_is_named(llava_vlm):
    wrong = read_named("agla", {"mask": lambda image, prompt: np.ones((3, 3))})
    with pytest.raises(PromptError, match=r"mask must return .*\(70, 56\)"):
        list(llava_vlm.answer(IMAGES[:1], PROMPTS[:1], strategy=wrong))


def test_a_strategy_is_applied_by_name(llava_vlm):
    treated = llava_vlm.apply("vcd", alpha=0.5)
    expected = tokens(llava_vlm, read_named("vcd", {"alpha": 0.5}))
    assert tokens(treated, None) == expected
    with pytest.raises(ConfigError, match="'vcd' and 'icd' both choose tokens"):
        treated.apply("icd")
    with pytest.raises(ConfigError, match="already"):
        tokens(treated, read_named("icd", {}))
    with pytest.raises(ConfigError, match=r"vcd\(alpha=0.5\) acts while the model answers"):
        treated.save("nowhere")
    assert vlm_jax.methods()["vcd"].settings["noise_step"] == 500


@pytest.mark.slow
def test_eight_devices_say_what_one_does(eight, tiny_llava):
    one = eight(mesh_searches.said, str(tiny_llava), 1, 1)
    assert one.keys() == SETTINGS.keys()
    assert len({str(answers) for answers in one.values()}) > 3  # strategies say different things
    assert eight(mesh_searches.said, str(tiny_llava), 4, 2) == one
