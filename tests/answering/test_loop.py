"""Answers do not depend on how prompts are read: together, apart, or from what was kept."""

import dataclasses

import numpy as np
import pytest

from tests.compiles import counted
from tests.reference import IMAGES, PROMPTS, picture
from vlm_jax.answering import Failure
from vlm_jax.attention.steering import HeadGains, Reallocation, Steering
from vlm_jax.decoding import Generator
from vlm_jax.errors import PromptError

WORDS = ["Is there a dog?", "Is there a cat in the picture?", "What is it?", "Count them."]


ONE_DAILY = pytest.mark.parametrize(
    "vlm", [pytest.param("llava", marks=pytest.mark.slow), "qwen2_5_vl"], indirect=True
)
"""For what knows no family: of one every day, of both in the slow tests."""


@pytest.fixture(scope="module")
def suite():
    """Fifteen questions on four images, three of them asked twice, and one with no image."""
    images = [[picture(60, 84, seed)] for seed in range(3)] + [IMAGES[0]]
    asked = [(images[n % 4], WORDS[n // 4]) for n in range(11)]
    asked += [asked[2], asked[5], asked[2], ([], "Hello")]
    return [group for group, _ in asked], [prompt for _, prompt in asked]


@pytest.fixture
def fresh(vlm):
    """The session's model with no prefix kept; counts the rows that prefill reads."""
    return vlm.with_params(vlm.params)


def rows_read(model, monkeypatch):
    """Counts questions that reach the generator, and prefixes and rows of images that are read."""
    counts = {"rows": 0, "prefixes": 0, "images": 0}
    generate, read = type(model.generator).__call__, type(model.generator).read_prefix
    look = type(model.generator).read_images

    def counted(self, params, batch, **settings):
        counts["rows"] += batch.size
        return generate(self, params, batch, **settings)

    def counted_read(self, params, batch, *rest):
        counts["prefixes"] += batch.size
        return read(self, params, batch, *rest)

    def counted_look(self, params, batch):
        counts["images"] += batch.size
        return look(self, params, batch)

    monkeypatch.setattr(type(model.generator), "read_images", counted_look)
    monkeypatch.setattr(type(model.generator), "__call__", counted)
    monkeypatch.setattr(type(model.generator), "read_prefix", counted_read)
    return counts


def by_index(answers):
    return {answer.index: answer for answer in answers}


@ONE_DAILY
def test_sharing_prefixes_changes_no_answer(fresh, suite, monkeypatch):
    counts = rows_read(fresh, monkeypatch)
    settings = {"max_new_tokens": 4, "batch_size": 4}
    apart = by_index(fresh.answer(*suite, **settings, share_prefix=False))
    assert counts == {"rows": 12, "prefixes": 0, "images": 0}  # twelve different questions
    shared = by_index(fresh.answer(*suite, **settings))
    assert shared == apart
    assert sorted(shared) == list(range(15))
    assert counts["prefixes"] == 4
    for index in (3, 12):
        images, prompts = ([part[index]] for part in suite)
        (alone,) = fresh.answer(images, prompts, max_new_tokens=4)
        assert alone.tokens == shared[index].tokens


@ONE_DAILY
def test_kept_prefixes_serve_later_calls(fresh, suite, monkeypatch):
    settings = {"max_new_tokens": 4, "batch_size": 4}
    expected = by_index(fresh.answer(*suite, **settings))
    bias = np.zeros(fresh.config.decoder.vocab_size, np.float32)
    bias[expected[0].tokens[0]] = -1e4
    biased = by_index(fresh.answer(*suite, **settings, logit_bias=bias))
    fresh.keep_prefixes(1 << 30)
    counts = rows_read(fresh, monkeypatch)
    assert by_index(fresh.answer(*suite, **settings)) == expected
    assert by_index(fresh.answer(*suite, **settings, logit_bias=bias)) == biased
    assert biased[0].tokens[0] != expected[0].tokens[0]
    assert (fresh.prefixes.read, fresh.prefixes.reused, counts["prefixes"]) == (1, 1, 4)
    other = fresh.with_params(fresh.params)
    assert other.prefixes.bytes == 0
    assert other.prefixes.limit_bytes == 1 << 30


@ONE_DAILY
def test_an_edited_decoder_reads_no_image_again(fresh, suite, monkeypatch):
    settings = {"max_new_tokens": 4, "batch_size": 4}
    path = "decoder/layers/1/wq_dnh"
    edited = {**fresh.params, path: fresh.params[path] * 1.5}
    apart = by_index(fresh.with_params(edited).answer(*suite, **settings))
    fresh.keep_prefixes(1 << 30)
    counts, decoded = rows_read(fresh, monkeypatch), []
    read = type(fresh.processor).read
    monkeypatch.setattr(
        type(fresh.processor),
        "read",
        lambda self, draft, part, made: decoded.append(part) or read(self, draft, part, made),
    )
    plain = by_index(fresh.answer(*suite, **settings))
    assert (counts["images"], counts["prefixes"], decoded.count("prefix")) == (4, 4, 4)
    other = fresh.with_params(edited)
    assert by_index(other.answer(*suite, **settings)) == apart
    assert apart != plain
    assert (counts["images"], counts["prefixes"], decoded.count("prefix")) == (4, 8, 4)
    assert other.images.bytes < fresh.prefixes.bytes


@ONE_DAILY
def test_an_edited_tower_reads_every_image_again(fresh, suite):
    settings = {"max_new_tokens": 4, "batch_size": 4}
    fresh.keep_prefixes(1 << 30)
    list(fresh.answer(*suite, **settings))
    path = next(path for path in fresh.params if path.startswith("projector/"))
    other = fresh.with_params({**fresh.params, path: fresh.params[path] * 0.5})
    assert other.images.bytes == 0
    list(other.answer(*suite, **settings))
    assert (fresh.images.read, other.images.read, other.images.reused) == (1, 1, 0)


@ONE_DAILY
def test_prefixes_that_calls_come_round_to_stay(fresh):
    ask = lambda seed: list(
        fresh.answer([[picture(60, 84, seed)]], WORDS[:1], max_new_tokens=4, batch_size=1)
    )
    fresh.keep_prefixes(1 << 30)
    ask(0)
    fresh.keep_prefixes(2 * fresh.prefixes.bytes)
    for seed in (0, 1, 2, 0, 1, 2):
        ask(seed)
    # 2 takes the place of 1, then 1 that of 0: two of three are there in every further round.
    assert (fresh.prefixes.read, fresh.prefixes.reused) == (4, 2)
    assert 0 < fresh.prefixes.bytes <= fresh.prefixes.limit_bytes


@ONE_DAILY
@pytest.mark.parametrize("share", [True, False])
def test_a_sample_that_cannot_be_read_fails_alone(fresh, suite, tmp_path, share):
    images, prompts = map(list, suite)
    missing, torn = tmp_path / "missing.png", tmp_path / "torn.png"
    picture(60, 84, 9).save(torn)
    torn.write_bytes(torn.read_bytes()[:-2000])  # its header is whole
    images[1], images[4], images[8] = [missing], [torn], [torn]
    prompts[6] = "  "
    settings = {"max_new_tokens": 4, "batch_size": 4, "share_prefix": share}
    found = by_index(fresh.answer(images, prompts, **settings, on_error="yield"))
    failures = {index: one.reason for index, one in found.items() if isinstance(one, Failure)}
    assert sorted(failures) == [1, 4, 6, 8]
    assert sorted(found) == list(range(15))
    assert "missing.png" in failures[1]
    assert all("torn.png) is corrupt" in failures[index] for index in (4, 8))
    assert "Sample 6: its prompt is empty" in failures[6]
    whole = by_index(fresh.answer(*suite, **settings))
    assert all(found[n] == whole[n] for n in found if n not in failures)
    with pytest.raises(PromptError, match="missing"):
        list(fresh.answer(images, prompts, **settings))
    with pytest.raises(PromptError, match="torn"):
        list(fresh.answer(images[4:5], prompts[4:5], **settings))


def test_a_batch_of_nothing_but_failures_is_not_read(fresh, tmp_path, monkeypatch):
    torn = tmp_path / "torn.png"
    picture(60, 84, 9).save(torn)
    torn.write_bytes(torn.read_bytes()[:-2000])
    counts = rows_read(fresh, monkeypatch)
    for words in (WORDS[:1], WORDS[:2]):
        found = list(fresh.answer([[torn]] * len(words), words, max_new_tokens=2, on_error="yield"))
        assert [type(one) for one in found] == [Failure] * len(words)
    assert counts == {"rows": 0, "prefixes": 0, "images": 0}


@ONE_DAILY
def test_all_buckets_are_compiled_before_the_first_answer(fresh, suite):
    model = fresh.with_params(fresh.params)
    model.generator, model.buckets = Generator(model.config, model.mesh), set()
    images, prompts = map(list, suite)
    prompts[0] += " word" * 40  # a second bucket of what follows an image
    ask = lambda **more: model.answer(images, prompts, max_new_tokens=4, batch_size=4, **more)
    answers = ask()
    next(answers)
    with counted() as compiled:
        list(answers)
    assert not compiled
    sizes = [size for size, _ in model.buckets]
    prefixes = {size.prefix for size in sizes} - {None}
    assert len(sizes) > len(prefixes) + 1
    assert model.generator.compilations == len(prefixes) + 2 * len(sizes)
    with counted() as compiled:
        list(ask())
        list(ask(logit_bias=None))
    assert not compiled


@ONE_DAILY
def test_every_sample_has_its_own_steering_whatever_batch_it_is_in(fresh):
    decoder = fresh.config.decoder
    rng = np.random.default_rng(0)
    shape = (len(PROMPTS), decoder.num_layers, decoder.num_heads)
    gains = rng.uniform(0, 3, shape).astype(np.float32)
    steer = lambda rows: Steering(head_gains=HeadGains(gains[rows]))
    ask = lambda rows, steering: by_index(
        fresh.answer(
            [IMAGES[row] for row in rows],
            [PROMPTS[row] for row in rows],
            max_new_tokens=4,
            batch_size=2,
            steering=steering,
        )
    )
    together = ask(range(4), steer(slice(None)))
    for row in range(4):
        assert ask([row], steer([row]))[0].tokens == together[row].tokens
    plain = ask(range(4), None)
    assert [plain[row].tokens for row in range(4)] != [together[row].tokens for row in range(4)]


@ONE_DAILY
def test_steering_that_acts_on_prefixes_is_read_with_them(fresh, suite, monkeypatch):
    decoder = fresh.config.decoder
    shape = (1, decoder.num_layers, decoder.num_heads)
    gain = np.random.default_rng(1).uniform(0, 3, shape).astype(np.float32)
    steering = Steering(head_gains=HeadGains(gain))
    settings = {"max_new_tokens": 4, "batch_size": 4, "steering": steering}
    fresh.keep_prefixes(1 << 30)
    list(fresh.answer(*suite, max_new_tokens=4, batch_size=4))
    counts = rows_read(fresh, monkeypatch)
    tokens = lambda answers: {index: one.tokens for index, one in by_index(answers).items()}
    shared = tokens(fresh.answer(*suite, **settings))
    assert counts["prefixes"] == 4  # read anew: those that are kept were not steered
    assert shared == tokens(fresh.answer(*suite, **settings, share_prefix=False))


@ONE_DAILY
def test_answers_count_heads_by_step(fresh):
    decoder = fresh.config.decoder
    leaf = lambda value: np.full((1, decoder.num_layers, decoder.num_heads), value, np.float32)
    always = Steering(reallocation=Reallocation(leaf(1.0), leaf(0.5), leaf(-1.0)))
    ask = lambda steering: fresh.answer(
        IMAGES[:2], PROMPTS[:2], max_new_tokens=4, steering=steering
    )
    for made in ask(always):
        shape = (len(made.tokens) + made.ended, decoder.num_layers)
        np.testing.assert_array_equal(made.counts.fired, np.full(shape, decoder.num_heads))
        assert made.counts.perception is None
    assert all(made.counts is None for made in ask(None))


@ONE_DAILY
def test_samples_that_are_drawn_are_drawn_apart(fresh):
    images, prompts = [IMAGES[1]] * 4, [WORDS[0]] * 4
    settings = {"max_new_tokens": 4, "batch_size": 4, "temperature": 2.0}
    found = by_index(fresh.answer(images, prompts, **settings))
    assert len({one.tokens for one in found.values()}) > 1
    whole = by_index(fresh.answer(images, prompts, **settings, share_prefix=False))
    assert {n: dataclasses.replace(one) for n, one in whole.items()} == found


@ONE_DAILY
def test_a_part_of_a_list_draws_what_the_whole_list_draws(fresh, suite):
    images, prompts = suite
    settings = {"max_new_tokens": 4, "batch_size": 4, "temperature": 1.5, "seed": 3}
    whole = by_index(fresh.answer(images, prompts, **settings))
    part = [3, 7, 12, 13]
    found = by_index(
        fresh.answer(
            [images[n] for n in part], [prompts[n] for n in part], **settings, streams=part
        )
    )
    assert [found[n].tokens for n in range(4)] == [whole[n].tokens for n in part]
    assert whole[2].tokens != whole[11].tokens  # one question, two draws
