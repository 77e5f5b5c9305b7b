"""The jitted loop against plain forward passes, and its limits, stops, seeds and programs."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.compiles import counted
from tests.decoding.conftest import SLOTS, generate
from vlm_jax import models
from vlm_jax.decoding import generate as generator


def test_greedy_equals_a_loop_of_forward_passes(vlm, asked):
    steps = 5
    answers: list[list[int]] = [[], []]
    length = asked.batch.tokens_bt.shape[1] + 16
    for _ in range(steps):
        batch, _ = vlm.processor.batch_answers(asked.images, asked.prompts, answers, length=length)
        logits = jax.device_get(vlm.generator.logits(vlm.params, batch))
        for row, answer in enumerate(answers):
            answer.append(int(logits[row, batch.lengths_b[row] - 1].argmax()))
    assert asked.greedy.tokens_bn[:, :steps].tolist() == answers


def test_cached_steps_give_the_logits_of_a_full_pass(vlm, asked):
    graphdef, _ = models.abstract(vlm.config)
    forced = np.random.default_rng(0).integers(5, 250, (2, 4), dtype=np.int32)
    batch, starts = vlm.processor.batch_answers(
        asked.images, asked.prompts, forced.tolist(), length=asked.batch.tokens_bt.shape[1] + 16
    )
    full = jax.device_get(vlm.generator.logits(vlm.params, batch))
    prefill = jax.jit(lambda params, batch: models.merge(graphdef, params).prefill(batch, 8))
    step = jax.jit(lambda params, *args: models.merge(graphdef, params).step(*args))
    logits, cache, _ = prefill(vlm.params, asked.batch)
    assert cache.slots == 8
    for column in range(4):
        for row, start in enumerate(starts):
            expected = full[row, start - 1 + column]
            np.testing.assert_allclose(logits[row], expected, atol=1.5e-5, rtol=0)
        logits, cache, _ = step(vlm.params, jnp.asarray(forced[:, column]), cache)
    assert int(cache.used) == 4
    expected_position = asked.batch.next_position_b + 4
    np.testing.assert_array_equal(cache.next_position_b, expected_position)


def test_many_logits_are_made_of_some_places_at_a_time(vlm, asked, monkeypatch):
    rows, length = asked.batch.tokens_bt.shape
    whole = vlm.generator.logits(vlm.params, asked.batch)
    places = length // 2 - 1
    assert length % places, "the last places overlap"
    monkeypatch.setattr(generator, "LOGITS_BYTES", 4 * rows * whole.shape[2] * places)
    vlm.generator.warm_logits(vlm.params, asked.batch)
    with counted() as compiled:
        found = vlm.generator.logits(vlm.params, asked.batch)
    assert not compiled
    np.testing.assert_allclose(found, whole, atol=1e-5, rtol=0)


def test_a_stop_id_ends_its_row_only(vlm, asked):
    free = asked.greedy.tokens_bn
    stop = int(next(token for token in free[0, 2:] if token not in free[1]))
    end = free[0].tolist().index(stop)
    made = generate(vlm, asked.batch, stop_ids=[stop])
    assert made.lengths_b.tolist() == [end, SLOTS]
    assert made.ended_b.tolist() == [True, False]
    np.testing.assert_array_equal(made.tokens_bn[0, : end + 1], free[0, : end + 1])
    assert (made.tokens_bn[0, end + 1 :] == 3).all()
    np.testing.assert_array_equal(made.tokens_bn[1], free[1])


def test_the_loop_ends_when_every_row_has(vlm, asked):
    stops = asked.greedy.tokens_bn[:, 0].tolist()
    made = generate(vlm, asked.batch, stop_ids=stops)
    assert made.lengths_b.tolist() == [0, 0]
    assert made.ended_b.all()
    np.testing.assert_array_equal(made.tokens_bn[:, 0], stops)
    assert (made.tokens_bn[:, 1:] == 3).all()


def test_the_limit_is_not_the_number_of_slots(vlm, asked):
    before = vlm.generator.compilations
    made = generate(vlm, asked.batch, max_new_tokens=3)
    assert vlm.generator.compilations == before
    assert made.tokens_bn.shape == (2, SLOTS)
    np.testing.assert_array_equal(made.tokens_bn[:, :3], asked.greedy.tokens_bn[:, :3])
    assert (made.tokens_bn[:, 3:] == 3).all()
    assert made.lengths_b.tolist() == [3, 3]
    assert not made.ended_b.any()


def test_a_seed_gives_the_same_draws(vlm, asked):
    draw = lambda seed, temperature=1.5: (
        generate(vlm, asked.batch, temperature=temperature, seed=seed).tokens_bn
    )
    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).any(axis=1).all()
    assert (draw(1) != asked.greedy.tokens_bn).any()
    np.testing.assert_array_equal(draw(1, 1e-4), asked.greedy.tokens_bn)


def test_a_draw_does_not_depend_on_the_batch(vlm, asked):
    sampling = dict(temperature=1.0, seed=3)
    together = generate(vlm, asked.batch, **sampling, row_ids=[7, 8])
    swapped = jax.tree.map(lambda leaf: leaf[::-1], asked.batch)
    found = generate(vlm, swapped, **sampling, row_ids=[8, 7])
    np.testing.assert_array_equal(found.tokens_bn[::-1], together.tokens_bn)
    twins = jax.tree.map(lambda leaf: leaf[[1, 1]], asked.batch)
    found = generate(vlm, twins, **sampling, row_ids=[8, 9])
    np.testing.assert_array_equal(found.tokens_bn[0], together.tokens_bn[1])
    assert (found.tokens_bn[0] != found.tokens_bn[1]).any()


def test_a_logit_bias_is_added_at_every_step(vlm, asked):
    vocabulary = vlm.config.decoder.vocab_size
    bias = np.zeros((2, vocabulary), np.float32)
    bias[0, 42] = 1e4
    banned = np.unique(asked.greedy.tokens_bn[1])
    bias[1, banned] = -1e4
    made = generate(vlm, asked.batch, logit_bias=bias)
    assert (made.tokens_bn[0] == 42).all()
    assert not np.isin(made.tokens_bn[1], banned).any()
    for_all = generate(vlm, asked.batch, logit_bias=bias[0])
    assert (for_all.tokens_bn == 42).all()


def test_settings_compile_nothing(vlm, asked):
    generate(vlm, asked.batch, temperature=0.7, stop_ids=[5, 6])
    generate(vlm, asked.batch, stop_ids=[5, 6])
    before = vlm.generator.compilations
    for seed in range(3):
        generate(
            vlm,
            asked.batch,
            temperature=0.1 + seed,
            top_k=seed,
            top_p=1 - 0.2 * seed,
            seed=seed,
            stop_ids=[seed, 9],
            max_new_tokens=2 + seed,
            pad_id=seed,
            row_ids=[seed, 4],
        )
        generate(vlm, asked.batch, stop_ids=[seed, 8], max_new_tokens=2 + seed)
    assert vlm.generator.compilations == before


def test_nothing_moves_between_host_and_devices_unasked(vlm, asked):
    sampling = dict(temperature=1.0, top_k=5)
    generate(vlm, asked.batch, **sampling)
    with jax.transfer_guard("disallow"):
        made = generate(vlm, asked.batch)
        generate(vlm, asked.batch, **sampling)
    np.testing.assert_array_equal(made.tokens_bn, asked.greedy.tokens_bn)


def test_the_cache_is_donated(vlm, asked, monkeypatch):
    decode, caches = vlm.generator.programs.decode, []

    def watched(params, logits, cache, *args, **options):
        caches.append(cache)
        return decode(params, logits, cache, *args, **options)

    monkeypatch.setattr(vlm.generator.programs, "decode", watched)
    generate(vlm, asked.batch, max_new_tokens=2)
    leaves = jax.tree.leaves([segment for segment in caches[0].new + caches[0].prompt])
    assert len(leaves) >= 4 * vlm.config.decoder.num_layers
    assert all(leaf.is_deleted() for leaf in leaves)
    assert not any(leaf.is_deleted() for leaf in vlm.params.values())
