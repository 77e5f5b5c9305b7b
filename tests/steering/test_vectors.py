"""Vectors in the residual stream: where they are added, how, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.reference import picture
from vlm_jax.attention.steering import Steering, Vectors
from vlm_jax.batch import Kind
from vlm_jax.errors import ConfigError
from vlm_jax.models import Watch, abstract, merge
from vlm_jax.steering.methods import build
from vlm_jax.study.acted import acted, details

IMAGES = [[picture(56, 70, 1)], [picture(84, 56, 2)]]
ASKED = IMAGES, ["Describe it.", "What is this thing, please?"]


@pytest.fixture(scope="module")
def drawn(llava_vlm):
    decoder = llava_vlm.config.decoder
    shape = decoder.num_layers, decoder.hidden_size
    return np.random.default_rng(0).standard_normal(shape).astype("f")


@functools.cache
def reader(vlm):
    every = Watch(hidden=tuple(range(1, vlm.config.decoder.num_layers + 1)))

    def read(params, batch, steering):
        model = merge(abstract(vlm.config)[0], params)
        _, cache, first = model.prefill(batch, 2, steering, watch=every)
        token_b = jnp.full(batch.size, 7, jnp.int32)
        return first.hidden_bjd, model.step(token_b, cache, steering, every)[2].hidden_bjd

    return jax.jit(read)


def levels(vlm, steering):
    """The stream behind all layers in the last rows of two prompts, and of a token after them."""
    found = reader(vlm)(vlm.params, vlm.processor.batch(*ASKED), steering)
    return [np.asarray(a) for a in found]


def last_only(vlm, vector, layer, **switches):
    add = np.zeros((1, vlm.config.decoder.num_layers, len(vector)), "f")
    add[:, layer] = vector
    return Steering(vectors=Vectors(add, **switches))


def test_a_vector_behind_the_last_layer_is_added_as_it_is(llava_vlm, drawn):
    """Nothing behind it: the stream of chosen rows is the vanilla one and the vector."""
    vlm, last = llava_vlm, llava_vlm.config.decoder.num_layers - 1
    vanilla = levels(vlm, None)
    cases = {"all": (1, 1), "text": (1, 1), "answer": (1, 1), "image": (0, 0)}
    for where, acts in cases.items():
        found = levels(vlm, last_only(vlm, drawn[last], last, where=where))
        for row, plain, on in zip(found, vanilla, acts):
            np.testing.assert_array_equal(row[:, :last], plain[:, :last])
            np.testing.assert_allclose(row[:, last], plain[:, last] + on * drawn[last], atol=2e-5)
    found = levels(vlm, last_only(vlm, drawn[last], last, relative=True, keep_norm=True))
    norm = lambda a: np.linalg.norm(a, axis=-1, keepdims=True)
    for row, plain in zip(found, vanilla):
        turned = plain[:, last] / norm(plain[:, last]) + drawn[last]
        expected = turned / norm(turned) * norm(plain[:, last])
        np.testing.assert_allclose(row[:, last], expected, atol=2e-5)


def test_rows_are_chosen_by_kind_and_by_position(llava_vlm, drawn):
    """Behind the first layer: later rows read what image rows became; a position is one row."""
    vlm = llava_vlm
    batch = vlm.processor.batch(*ASKED)
    last = np.asarray(batch.lengths_b) - 1
    vanilla = levels(vlm, None)
    images = levels(vlm, last_only(vlm, drawn[0], 0, where="image"))
    np.testing.assert_array_equal(images[0][:, 0], vanilla[0][:, 0])
    assert np.abs(images[0][:, 1] - vanilla[0][:, 1]).max() > 1e-3
    assert (np.asarray(batch.kinds_bt) == Kind.IMAGE).any(axis=1).all()
    end = levels(vlm, last_only(vlm, drawn[0], 0, positions=(-1,)))
    np.testing.assert_allclose(end[0][:, 0], vanilla[0][:, 0] + drawn[0], atol=2e-5)
    np.testing.assert_array_equal(end[1][:, 0], vanilla[1][:, 0])
    same = levels(vlm, last_only(vlm, drawn[0], 0, positions=(int(last[0]),)))
    np.testing.assert_array_equal(same[0][0], end[0][0])
    assert last[0] != last[1]


def test_identity_keeps_every_bit_and_methods_compose(llava_vlm, drawn, tmp_path):
    vlm = llava_vlm
    ask = lambda model: model.ask(*ASKED, {"max_new_tokens": 4})
    said = lambda model: [answer.tokens for answer in ask(model)]
    zero = Steering(vectors=Vectors(np.zeros((1, *drawn.shape), "f")))
    for found, plain in zip(levels(vlm, zero), levels(vlm, None)):
        np.testing.assert_array_equal(found, plain)
    np.save(tmp_path / "vectors.npy", drawn)
    steered = vlm.apply("activation_addition", vectors=str(tmp_path / "vectors.npy"), strength=3)
    assert said(steered) != said(vlm)
    both = steered.apply("air", heads="all", text_threshold=0, visual_gain=50, text_gain=0)
    assert said(both) != said(steered)
    assert said(vlm.apply("vti", vectors=drawn, strength=40)) != said(vlm)


def test_what_was_done_is_known_of_new_parts(llava_vlm, drawn):
    """As results of an evaluation say it: layers and heads that are acted on."""
    for name, settings, heads in (
        ("farsight", {"mode": "budget"}, 12),
        ("activation_addition", {"vectors": drawn, "layers": (1, 2)}, 2),
    ):
        model = llava_vlm.apply(name, **settings)
        (answer,) = model.ask(IMAGES[:1], ["Describe it."], {"max_new_tokens": 2})
        assert model.steering is not None
        found = acted(model.steering, {"one": [details(answer)]})
        assert found["heads"] == heads
        assert found["trigger_rate"] is None


def test_a_random_control_keeps_norms(llava_vlm, drawn):
    steering = build(
        "activation_addition", llava_vlm.config, vectors=drawn, layers=(1, 2), control="random"
    )
    assert steering.vectors is not None
    norms = np.linalg.norm(steering.vectors.add[0], axis=1)
    np.testing.assert_allclose(norms, [0, *np.linalg.norm(drawn[1:], axis=1)], rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({}, "vectors must be an .npy file"), ({"vectors": "none.npy"}, "there is no file none.npy"),
     ({"vectors": np.zeros((2, 3))}, r"shape \(2, 3\), but the model has 3 layers of 64 dims"),
     ({"vectors": np.full((3, 64), np.nan)}, "not finite"),
     ({"vectors": np.ones((3, 64)), "where": "al"}, "did you mean 'all'"),
     ({"vectors": np.ones((3, 64)), "layers": (1, 3)}, "layers must be the first and last"),
     ({"vectors": np.ones((3, 64)), "positions": "end"}, "positions must be a list")],
)  # fmt: skip
def test_bad_vectors_are_one_clear_error(llava_vlm, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build("activation_addition", llava_vlm.config, **settings)
    assert "\n" not in str(caught.value)


def test_farsight_builds_registers(llava_vlm):
    made = build("farsight", llava_vlm.config, mode="budget").registers
    assert made is not None
    np.testing.assert_allclose(made.sigma * np.log(1024), 1, rtol=1e-6)
    assert (made.mode, made.log_length) == ("budget", True)
    with pytest.raises(ConfigError, match="sigma must be above 0"):
        build("farsight", llava_vlm.config, sigma=0)
    control = build("farsight", llava_vlm.config, mode="budget", control="shuffled").registers
    assert control is not None
    assert control.dealt
    np.testing.assert_array_equal(control.sigma, made.sigma)
    for ahead_n in control.ahead[0]:
        assert sorted((np.arange(4) + ahead_n) % 4) == [0, 1, 2, 3]
    assert not np.array_equal(*control.ahead[0, :2])
    answers = lambda **settings: [
        one.tokens
        for one in llava_vlm.apply("farsight", **settings).ask(*ASKED, {"max_new_tokens": 6})
    ]
    plain = [one.tokens for one in llava_vlm.ask(*ASKED, {"max_new_tokens": 6})]
    assert answers(sigma=1e6) == plain
    assert answers(sigma=1e-3, mode="budget") != plain
