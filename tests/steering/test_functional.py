"""Functional heads: the classification, the policies' identities, folding, and calibration."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vlm_jax
from tests.reference import IMAGES, PROMPTS
from tests.steering.method_fixtures import model_config, readings
from vlm_jax import checkpoint
from vlm_jax.attention import Segment, Visibility, attend
from vlm_jax.attention.parts.visual_gains import visual_gain
from vlm_jax.attention.steering import HeadGains, Rows, Steering
from vlm_jax.batch import Kind
from vlm_jax.edits.head_gains import CERTIFICATE, fold_gains
from vlm_jax.errors import ConfigError, EditError
from vlm_jax.steering.calibration import calibrate
from vlm_jax.steering.classes import classifier, read_classes
from vlm_jax.steering.heads import HeadSets
from vlm_jax.steering.methods.functional_heads import functional_heads
from vlm_jax.steering.methods.policy import POLICIES, policy, policy_gains

SEVEN_B = model_config(28, 28)
SMALL = model_config(6, 8)


def gains(steering: Steering, layer: int, ratios) -> np.ndarray:
    """The gains that heads with these visual attention ratios get in a layer."""
    part = steering.layer(layer).visual_gains
    wide = np.zeros((1, part.perception_gain.shape[1]), np.float32)
    wide[0, : len(ratios)] = ratios
    return np.asarray(visual_gain(part, jnp.asarray(wide))[0])[0, : len(ratios)]


def test_the_published_example():
    steering = functional_heads(SEVEN_B, preset="ocean-r1")
    np.testing.assert_allclose(gains(steering, 5, [0.30, 0.005, 0.10]), [1.16, 1.30, 1.0])


@pytest.mark.parametrize(
    ("preset", "shape", "first", "last"),
    [("kimi-vl", (27, 16), 5, 10), ("ocean-r1", (28, 28), 3, 7), ("r1-onevision", (28, 28), 3, 7)],
)
def test_layer_bounds_belong_to_the_range(preset, shape, first, last):
    steering = functional_heads(model_config(*shape), preset=preset)
    part = steering.visual_gains
    finite = np.isfinite(part.perception_from[0]).all(axis=1)
    assert np.flatnonzero(finite).tolist() == list(range(last + 1))
    finite = np.isfinite(part.reasoning_to[0]).all(axis=1)
    assert np.flatnonzero(finite).tolist() == list(range(first, shape[0]))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(steering))
    assert all(leaf.shape == (1, *shape) for leaf in jax.tree.leaves(steering))


@given(low=st.floats(0, 0.49), high=st.floats(0.5, 1), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_classes_are_disjoint(low, high, seed):
    steering = functional_heads(
        SMALL,
        reasoning_to=low,
        perception_from=high,
        reasoning_first_layer=0,
        perception_last_layer=5,
    )
    ratio_bn = np.random.default_rng(seed).random((3, 8)).astype(np.float32)
    ratio_bn[0, :2] = low, high
    _, perception, reasoning = visual_gain(steering.layer(3).visual_gains, jnp.asarray(ratio_bn))
    assert not np.any(np.asarray(perception) & np.asarray(reasoning))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"preset": "kimi-vl"}, "27 layers of 16 heads, but this one has 6 of 8"),
        ({"preset": "kimi"}, "did you mean 'kimi-vl'"),
        ({"reasoning_to": 0.3}, "reasoning_to=0.3 must be below perception_from=0.22"),
        ({"reasoning_to": 0.5, "perception_from": 0.5}, "must be below"),
        ({"reasoning_gain": float("inf")}, "reasoning_gain must be a finite number"),
        ({"perception_gain": float("nan")}, "perception_gain must be a finite number"),
        ({"perception_gain": -1.0}, "perception_gain"),
        ({"perception_last_layer": 6}, "perception_last_layer must be a whole number from 0 to 5"),
        ({"reasoning_first_layer": -1}, "reasoning_first_layer must be a whole number from 0 to 5"),
        ({"reasoning_first_layer": 1.5}, "whole number"),
        ({"rows": "all"}, "rows must be one of 'q', 'last'"),
        ({"mode": "static"}, "mode must be one of"),
        ({"mode": "dataset_static"}, "needs heads"),
        ({"control": "random"}, "control='random' needs heads"),
        ({"control": "no_sinks"}, "needs heads"),
        ({"heads": "llava-1.5-7b"}, "32 layers of 32 heads"),
        ({"mode": "dataset_static", "heads": [(0, 1)]}, "name no perception and no reasoning"),
        ({"control": "shuffled"}, "control must be one of"),
        ({"control": "inert"}, "control must be one of"),
        ({"passes": 2, "mode": "prefill_cached"}, "mode='prefill_cached' has no meaning; leave"),
        ({"passes": 3}, "passes must be a whole number from 1 to 2"),
    ],
)
def test_one_clear_error_for_each_bad_setting(fields, match):
    with pytest.raises(ConfigError, match=match) as caught:
        functional_heads(SMALL, **fields)
    assert "\n" not in str(caught.value)


def test_a_policy_checks_alpha_and_beta():
    with pytest.raises(ConfigError, match="alpha must be a finite number from 1 to 2"):
        policy(SMALL, alpha=2.5)
    with pytest.raises(ConfigError, match="beta must be"):
        policy(SMALL, alpha=1.2, beta=1.1)
    with pytest.raises(ConfigError, match="policy must be one of"):
        policy(SMALL, policy="E")
    with pytest.raises(ConfigError, match="enhance must be one of"):
        policy(SMALL, enhance="vision")


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("enhance", ["perception", "reasoning"])
def test_dynamic_policies_give_the_gains_of_their_definition(name, enhance):
    bounds = {"reasoning_first_layer": 0, "perception_last_layer": 5}
    steering = policy(SMALL, policy=name, enhance=enhance, alpha=1.4, **bounds)
    found = gains(steering, 2, [0.9, 0.001, 0.1])
    if steering.head_gains is not None:
        found = found * np.asarray(steering.layer(2).head_gains.gain)[0, :3]
    perception, reasoning = np.array([True, False, False]), np.array([False, True, False])
    classes = (perception, reasoning) if enhance == "perception" else (reasoning, perception)
    np.testing.assert_allclose(found, policy_gains(name, *classes, 1.4, 0.6), rtol=1e-6)


class Block:
    """The first attention block of a tiny model in float64, on its own embeddings."""

    def __init__(self, vlm):
        config = vlm.config.decoder
        self.heads = config.num_heads
        layer = {
            name: np.asarray(vlm.params[f"decoder/layers/0/{name}"], np.float64)
            for name in ("wq_dnh", "wk_dkh", "wv_dkh", "wo_nhd")
        }
        x_btd = np.asarray(vlm.params["decoder/embed_vd"], np.float64)[None, 5:17]
        project = lambda w: np.einsum("btd,dnh->btnh", x_btd, w)
        heads_first = lambda a: jnp.asarray(a.transpose(0, 2, 1, 3))
        length = x_btd.shape[1]
        order = jnp.arange(length, dtype=jnp.int32)[None]
        kinds = jnp.asarray([[Kind.SYSTEM] * 3 + [Kind.IMAGE] * 4 + [Kind.TEXT] * 5], jnp.int8)
        self.q = jnp.asarray(project(layer["wq_dnh"]))
        self.segment = Segment(
            heads_first(project(layer["wk_dkh"])),
            heads_first(project(layer["wv_dkh"])),
            Visibility(order=order),
            kinds,
        )
        after = kinds == Kind.TEXT
        self.rows = Rows(after, jnp.ones_like(after), jnp.asarray([length - 1], jnp.int32))
        self.wo_nhd = layer["wo_nhd"]

    def output(self, gain_n) -> np.ndarray:
        """Y, the block's output [T, D] under head gains."""
        steering = Steering(head_gains=HeadGains(jnp.asarray(gain_n)[None]))
        seen = self.segment.keys
        out, _, _ = attend(
            self.q, [self.segment], seen, causal=True, steering=steering, rows=self.rows
        )
        return np.einsum("tnh,nhd->td", np.asarray(out)[0], self.wo_nhd)

    def contributions(self) -> np.ndarray:
        """O, each head's part of the vanilla output [N, T, D]."""
        out = attend(self.q, [self.segment], self.segment.keys, causal=True)
        return np.einsum("tnh,nhd->ntd", np.asarray(out)[0], self.wo_nhd)


def test_the_identities_of_the_policies(llava_vlm):
    """Equations 6, 7 and 10 to 13 of the paper's appendix, exact before the norm."""
    alpha, beta = 1.3, 0.6
    enhanced, attenuated = np.array([1, 0, 0, 0], bool), np.array([0, 1, 1, 0], bool)
    complement = ~enhanced
    with jax.enable_x64(True):
        block = Block(llava_vlm)
        o_ntd = block.contributions()
        y = block.output(np.ones(4))
        named = {n: policy_gains(n, enhanced, attenuated, alpha, beta) for n in POLICIES}
        outputs = {name: block.output(gain_n) for name, gain_n in named.items()}
    same = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12, rtol=0)
    assert np.abs(o_ntd).max() > 0.01
    same(y, o_ntd.sum(0))
    same(outputs["C"] - outputs["A"], (beta - 1) * o_ntd[complement].sum(0))
    same(outputs["D"] - outputs["A"], (beta - 1) * o_ntd[attenuated].sum(0))
    v = np.random.default_rng(0).normal(size=y.shape[-1])
    utility_n = np.einsum("ntd,d->nt", o_ntd, v)
    for name, gain_n in named.items():
        same((outputs[name] - y) @ v, ((gain_n - 1)[:, None] * utility_n).sum(0))
    delta_a, delta_b = (
        (alpha - 1) * utility_n[enhanced].sum(0),
        (beta - 1) * utility_n[complement].sum(0),
    )
    same((outputs["A"] - y) @ v, delta_a)
    same((outputs["B"] - y) @ v, (beta - 1) * utility_n[attenuated].sum(0))
    same((outputs["C"] - y) @ v, delta_a + delta_b)


SETS = HeadSets("found", (3, 4), perception=((0, 1), (1, 2)), reasoning=((2, 3),))


def test_folded_gains_equal_static_gains(llava_vlm, tiny_llava, tmp_path):
    steering = functional_heads(llava_vlm.config, mode="dataset_static", heads=SETS)
    gain_ln = steering.head_gains.gain[0]
    assert gain_ln[0, 1] == np.float32(1.16)
    assert gain_ln[2, 3] == np.float32(1.30)
    assert (gain_ln != 1).sum() == 3
    fold_gains(checkpoint.open_folder(tiny_llava), tmp_path / "folded", gain_ln)
    folded = vlm_jax.load(tmp_path / "folded")
    batch = llava_vlm.processor.batch(IMAGES, PROMPTS)
    real = np.asarray(batch.kinds_bt) != Kind.PAD
    steered, plain = (
        np.asarray(llava_vlm.generator.logits(llava_vlm.params, batch, s)) for s in (steering, None)
    )
    found = np.asarray(llava_vlm.generator.logits(folded.params, batch))
    np.testing.assert_allclose(found[real], steered[real], atol=2e-5, rtol=0)
    assert np.abs(steered[real] - plain[real]).max() > 1e-3


def test_folding_says_what_it_did_and_refuses_nonsense(tiny_llava, tmp_path):
    source = checkpoint.open_folder(tiny_llava)
    fold_gains(source, tmp_path / "a", np.full((3, 4), 2.0), {"why": "test"})
    assert '"why": "test"' in (tmp_path / "a" / CERTIFICATE).read_text()
    with pytest.raises(EditError, match="already"):
        fold_gains(checkpoint.open_folder(tmp_path / "a"), tmp_path / "b", np.ones((3, 4)))
    with pytest.raises(EditError, match=r"3 layers of 4 heads"):
        fold_gains(source, tmp_path / "b", np.ones((4, 3)))
    with pytest.raises(EditError, match="finite"):
        fold_gains(source, tmp_path / "b", np.full((3, 4), np.nan))
    assert not (tmp_path / "b").exists()


def test_the_majority_of_answers_decides():
    share = np.zeros((3, 2, 2), np.float32)
    share[:, 0, 0] = 0.9, 0.6, 0.1  # in most rows of two of three answers
    share[:, 1, 1] = 0.9, 0.4, 0.4  # more rows on average, but of one answer
    found = calibrate([readings(perception_bn=s, reasoning_bn=s[::-1]) for s in share])
    assert found.perception == ((0, 0),)
    assert found.reasoning == ((1, 0),)
    np.testing.assert_allclose(found.perception_ln[0, 0], 1.6 / 3, rtol=1e-6)


def test_too_many_selected_heads_are_warned_of(caplog):
    few, many = np.zeros((6, 8), np.float32), np.zeros((6, 8), np.float32)
    few[2, :6], many[2:4, :5] = 1, 1
    with caplog.at_level(logging.INFO, "vlm_jax.steering.calibration"):
        calibrate([readings(perception_bn=few)]).log()
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert "layer 2: 6.00 perception" in caplog.text
        calibrate([readings(perception_bn=many)]).log()
    assert "select 20.8 % of all heads" in caplog.text


def test_the_classifier_reads_and_changes_nothing(llava_vlm):
    classes = read_classes(
        llava_vlm.config,
        perception_from=0.2,
        reasoning_to=0.1,
        reasoning_first_layer=0,
        perception_last_layer=2,
    )
    options = {"max_new_tokens": 6, "batch_size": 4}
    plain = list(llava_vlm.answer(IMAGES, PROMPTS, **options))
    read = list(llava_vlm.answer(IMAGES, PROMPTS, steering=classifier(classes), **options))
    assert [answer.tokens for answer in read] == [answer.tokens for answer in plain]
    found = calibrate(answer.readings for answer in read)
    assert found.answers == len(PROMPTS)
    assert 0 < found.selected < 1
    np.testing.assert_allclose(found.image_ln + found.text_ln + found.system_ln, 1, atol=1e-5)


def test_gains_of_one_select_as_the_method_does(llava_vlm):
    """A dynamic run with gains differs from vanilla, and its counts come with it."""
    bounds = {"perception_last_layer": 2, "perception_from": 0.2, "perception_gain": 4.0}
    steering = functional_heads(llava_vlm.config, **bounds)
    options = {"max_new_tokens": 6, "batch_size": 4}
    answers = list(llava_vlm.answer(IMAGES, PROMPTS, steering=steering, **options))
    plain = list(llava_vlm.answer(IMAGES, PROMPTS, **options))
    assert calibrate(answer.readings for answer in answers).selected > 0
    assert [a.tokens for a in answers] != [a.tokens for a in plain]


def test_random_heads_of_the_dynamic_mode_match_a_mean_row():
    small = model_config(3, 4)
    perception, reasoning = np.zeros((3, 4)), np.zeros((3, 4))
    perception[0], reasoning[2] = 0.3, 0.5  # 1.2 and 2 heads in a mean row
    perception[1, 0] = 0.4
    sets = dataclasses.replace(SETS, perception_ln=perception, reasoning_ln=reasoning)
    found = [
        functional_heads(small, heads=sets, control="random", seed=seed).head_gains.gain[0]
        for seed in range(6)
    ]
    for gain_ln in found:
        assert np.sum(gain_ln == np.float32(1.16), axis=1).tolist() == [1, 0, 0]
        assert np.sum(gain_ln == np.float32(1.30), axis=1).tolist() == [0, 0, 2]
    assert len({gain_ln.tobytes() for gain_ln in found}) > 1
    with pytest.raises(ConfigError, match="how often each head is in which class"):
        functional_heads(small, heads=SETS, control="random")
    empty = dataclasses.replace(sets, perception_ln=perception / 4, reasoning_ln=reasoning / 9)
    with pytest.raises(ConfigError, match="nothing to match"):
        functional_heads(small, heads=empty, control="random")


def test_controls_of_functional_heads():
    small = model_config(3, 4)
    mass = np.zeros((3, 4))
    mass[2, 3] = 0.95
    sets = dataclasses.replace(SETS, system_mass_ln=mass)
    static = lambda **more: functional_heads(
        small, mode="dataset_static", heads=sets, **more
    ).head_gains.gain[0]
    named = static()
    for seed in range(5):
        drawn = static(control="random", seed=seed)
        np.testing.assert_array_equal(np.sort(drawn, axis=1), np.sort(named, axis=1))
    draws = {static(control="random", seed=seed).tobytes() for seed in range(8)}
    assert len(draws) > 1
    np.testing.assert_array_equal(
        static(control="random", seed=3), static(control="random", seed=3)
    )
    swapped = static(control="other")
    assert swapped[0, 1] == np.float32(1.30)
    assert swapped[2, 3] == np.float32(1.16)
    assert np.all(static(control="all") == np.float32((1.16 + 1.30) / 2))
    assert static(control="no_sinks")[2, 3] == 1
    assert static(control="no_sinks")[0, 1] == named[0, 1]
    dynamic = functional_heads(small, heads=sets, control="no_sinks").visual_gains
    assert dynamic.reasoning_to[0, 2, 3] == -np.inf
    assert np.isfinite(dynamic.reasoning_to[0, 2, 2])
    with pytest.raises(ConfigError, match="mass before the image"):
        functional_heads(small, heads=SETS, control="no_sinks")
