"""What follows from the definitions of steering, checked on the streaming form in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.attention.dense_steering import dense_steered
from tests.attention.steered import CHOICES, SLOTS, Layout, build, read, steer
from vlm_jax.attention import Segment, Visibility, attend
from vlm_jax.attention.steering import (
    EnergyRescale,
    HeadGains,
    LogitGains,
    Projection,
    Reallocation,
    Rows,
    Steering,
    VisualGains,
)
from vlm_jax.batch import Kind

LAYOUT = Layout(2, 10, 2, 2)
BAR = 1e-12
ACAUSAL = [choice for choice in CHOICES if "official" in str(CHOICES[choice])]
SUMMED = [choice for choice in CHOICES if "batch_sum" in str(CHOICES[choice])]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def full(value, heads=LAYOUT.heads):
    return jnp.full((1, heads), value, jnp.float64)


def problem_with_images(layout=LAYOUT, seed=0, steps=2):
    """A problem whose samples all have an image, and one of them system tokens."""
    for tried in range(seed, seed + 20):
        problem = build(layout, tried, steps=steps, images=1)
        if (np.asarray(problem.prompt.kinds_bs) == Kind.SYSTEM).any():
            return problem
    raise AssertionError("no such problem")


def close(found, expected, bar=BAR):
    np.testing.assert_allclose(found, expected, atol=bar, rtol=0)


def vanilla_rows(problem, steps=0):
    """Weights [B, N, S] and values [B, N, S, H] of the row after the prompt and some tokens."""
    q, _, _ = problem.new[steps]
    k = jnp.concatenate([problem.prompt.k_bksh, *(n[1] for n in problem.new[: steps + 1])], axis=2)
    v = jnp.concatenate([problem.prompt.v_bksh, *(n[2] for n in problem.new[: steps + 1])], axis=2)
    spread = lambda a: jnp.repeat(a, q.shape[2] // a.shape[1], axis=1)
    later = jnp.full((q.shape[0], steps + 1), Kind.TEXT, jnp.int8)
    kinds = jnp.concatenate([problem.prompt.kinds_bs, later], axis=1)
    logits = jnp.einsum("bnh,bnsh->bns", q[:, 0], spread(k)) / np.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where((kinds != Kind.PAD)[:, None], logits, -jnp.inf))
    return weights, spread(v), kinds


def read_rows(weights, values):
    return jnp.einsum("bns,bnsh->bnh", weights, values)


def test_equal_factors_of_one_are_vanilla():
    problem = build(LAYOUT, 1)
    for renormalise in (False, True):
        steering = Steering(reallocation=Reallocation(full(1), full(1), full(0), renormalise))
        for a, b in zip(read(problem, steering)[:2], read(problem, None)[:2]):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_no_text_and_the_image_as_it_is_are_ad_hh(threshold):
    problem = problem_with_images()
    steering = Steering(reallocation=Reallocation(full(1), full(0), full(threshold)))
    _, found, readings = read(problem, steering)
    weights, values, kinds = vanilla_rows(problem)
    is_text = (kinds == Kind.TEXT)[:, None]
    leans = jnp.sum(jnp.where(is_text, weights, 0), axis=-1, keepdims=True) >= threshold
    assert leans.any()
    close(found[0], read_rows(jnp.where(is_text & leans, 0, weights), values))
    np.testing.assert_array_equal(readings[1].fired_bn, leans[..., 0])


def test_masses_sum_to_one_and_scaled_ones_to_the_row_sum():
    problem = problem_with_images()
    ones = jax.tree.map(jnp.ones_like, (problem.prompt.v_bksh, [n[2] for n in problem.new]))
    summing = dataclasses.replace(
        problem,
        prompt=dataclasses.replace(problem.prompt, v_bksh=ones[0]),
        new=tuple((q, k, one) for (q, k, _), one in zip(problem.new, ones[1])),
    )
    steering = Steering(reallocation=Reallocation(full(3.5), full(0.1), full(0.3)))
    _, found, readings = read(summing, steering)
    for row, reading in zip(found, readings[1:]):
        close(reading.image_bn + reading.text_bn + reading.system_bn, 1)
        factor = lambda value, fired=reading.fired_bn: jnp.where(fired == 1, value, 1)
        predicted = reading.system_bn + factor(3.5) * reading.image_bn
        predicted = predicted + factor(0.1) * reading.text_bn
        close(row, jnp.broadcast_to(predicted[..., None], row.shape))
    assert 0 < np.mean([reading.fired_bn for reading in readings]) < 1
    both = dataclasses.replace(steering, projection=Projection(full(1), full(0.3)))
    shrunk = read(summing, both)[1]
    close(shrunk, found)


def test_full_shrinkage_reads_the_mean_of_the_values():
    problem = build(LAYOUT, 3)
    steering = Steering(projection=Projection(full(1), full(1)))
    found = read(problem, steering)[1]
    for step, row in enumerate(found):
        _, values, kinds = vanilla_rows(problem, step)
        real = (kinds != Kind.PAD)[:, None, :, None]
        mean = jnp.sum(jnp.where(real, values, 0), axis=2) / jnp.sum(real, axis=2)
        close(row, mean)
    other = dataclasses.replace(problem, new=tuple((-q, k, v) for q, k, v in problem.new))
    close(read(other, steering)[1], found)


def test_zero_trace_is_no_identity_without_shrinkage():
    """beta = 0 leaves alone rows that only shrink, not those that lose their trace."""
    problem, zero = build(LAYOUT, 3), Projection(full(1), full(0))
    vanilla = read(problem, None)[:2]
    changes = {}
    for zero_trace, prefill in (("skip", "off"), ("running", "off"), ("skip", "official")):
        part = dataclasses.replace(zero, zero_trace=zero_trace, prefill=prefill)
        found = read(problem, Steering(projection=part))[:2]
        changes[zero_trace, prefill] = [np.abs(a - b).max() > 1e-4 for a, b in zip(found, vanilla)]
    assert changes == {
        ("skip", "off"): [False, False],
        ("running", "off"): [True, True],
        ("skip", "official"): [True, False],
    }


def test_a_running_row_is_the_last_row_of_the_projected_map():
    """With vanilla rows before it, frozen: the whole map, projected without any running sum."""
    layout = Layout(1, 9, 1, 2)
    problem = build(layout, 0, steps=1)
    steering = Steering(projection=Projection(full(1, 2), full(0.3, 2), zero_trace="running"))
    found = read(problem, steering)[1][0]
    q = jnp.concatenate([problem.q_btnh, problem.new[0][0]], axis=1)
    k = jnp.concatenate([problem.prompt.k_bksh, problem.new[0][1]], axis=2)[:, 0]
    v = jnp.concatenate([problem.prompt.v_bksh, problem.new[0][2]], axis=2)[:, 0]
    logits = jnp.einsum("btnh,bsh->bnts", q, k) / 2
    a = np.asarray(jax.nn.softmax(jnp.where(np.tri(10, dtype=bool), logits, -jnp.inf)))[0]
    hat = a - np.trace(a, axis1=1, axis2=2)[:, None, None] / 10 * np.eye(10)
    norm = lambda m: np.sqrt((m * m).sum((1, 2)))[:, None, None]
    tilde = hat * norm(a) / np.sqrt(norm(hat) ** 2 + 1e-8)
    assert (norm(a) / norm(hat) < 4).all()
    last = (0.7 * tilde + 0.3 * tilde.mean((1, 2))[:, None, None])[:, -1]
    close(found[0], last @ np.asarray(v[0]))


def test_a_causal_prefill_treats_each_row_as_decoding_would():
    """Ten prompt rows at once, or six and then four tokens."""
    layout = Layout(2, 10, 2, 2)
    problem = build(layout, 4)
    places = jnp.broadcast_to(jnp.arange(10, dtype=jnp.int32), (2, 10))
    kinds = jnp.full((2, 10), Kind.TEXT, jnp.int8).at[:, 1:4].set(Kind.IMAGE)
    prompt = dataclasses.replace(problem.prompt, keys=Visibility(places), kinds_bs=kinds)
    part = Projection(full(1), full(0.2), zero_trace="running", prefill="causal")
    steering = Steering(projection=part)

    def rows(length):
        real = jnp.ones((2, length), bool)
        return Rows(real, real, jnp.full(2, length - 1))

    call = jax.jit(attend, static_argnames="causal")
    whole, *_ = call(
        problem.q_btnh, [prompt], Visibility(places), causal=True, steering=steering, rows=rows(10)
    )
    out, state, _ = call(
        problem.q_btnh[:, :6],
        [prompt.slice(0, 6)],
        Visibility(places[:, :6]),
        causal=True,
        steering=steering,
        rows=rows(6),
    )
    outs = [out]
    for step in range(6, 10):
        out, state, _ = call(
            problem.q_btnh[:, step : step + 1],
            [prompt],
            Visibility(places[:, step : step + 1]),
            steering=steering,
            state=state,
        )
        outs.append(out)
    close(jnp.concatenate(outs, axis=1), whole)


@pytest.mark.parametrize("choice", ["causal running", "all", "all shrink", *ACAUSAL])
def test_only_the_official_projection_reads_the_future(choice):
    layout = Layout(2, 8, 2, 2)
    problem = problem_with_images(layout, steps=1)
    # The last real token of each prompt, moved.
    last = problem.rows.last_b
    at = (jnp.arange(8) == last[:, None])[:, None, :, None]
    moved = dataclasses.replace(
        problem,
        prompt=dataclasses.replace(
            problem.prompt,
            k_bksh=jnp.where(at, -2 * problem.prompt.k_bksh, problem.prompt.k_bksh),
            v_bksh=jnp.where(at, 3 * problem.prompt.v_bksh, problem.prompt.v_bksh),
        ),
    )
    steering = steer(choice, layout, 5)
    if steering.visual_gains is not None:
        # Gains by the whole prompt's ratio are one number for all rows, by definition.
        steering = dataclasses.replace(steering, visual_gains=None)
    before = np.asarray(jnp.arange(8) < last[:, None])
    a, b = (np.asarray(read(p, steering)[0])[before] for p in (problem, moved))
    if choice in ACAUSAL:
        assert np.abs(a - b).max() > 1e-4
    else:
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("choice", ["all", "all shrink", "official running", *SUMMED])
def test_samples_do_not_meet_but_in_a_batch_summed_trigger(choice):
    layout = Layout(3, 8, 2, 2)
    found_difference = False
    for seed in range(3):
        problem = problem_with_images(layout, seed=10 * seed, steps=1)
        steering = steer(choice, layout, seed)
        whole = read(problem, steering)
        for row in range(3):
            alone = jax.tree.map(lambda a, row=row: a[row : row + 1], problem)
            one = read(alone, steering)
            real = np.asarray(problem.valid[row])
            pairs = [(one[0][0][real], whole[0][row][real]), (one[1][:, 0], whole[1][:, row])]
            if choice in SUMMED:
                found_difference |= any(np.abs(a - b).max() > 1e-3 for a, b in pairs)
            else:
                for a, b in pairs:
                    close(a, b)
    assert found_difference == (choice in SUMMED)


@pytest.mark.parametrize("choice", ["all", "all shrink", "AIR* as released"])
def test_padding_changes_nothing(choice):
    layout = Layout(2, 8, 2, 2)
    problem = problem_with_images(layout, steps=1)
    steering = steer(choice, layout, 2)
    pad = lambda a, axis: jnp.concatenate(
        [a, 9 + jnp.zeros_like(a.take(jnp.arange(3), axis))], axis
    )
    never = lambda a: jnp.pad(a, ((0, 0), (0, 3)), constant_values=np.iinfo(np.int32).max)
    zero = lambda a: jnp.pad(a, ((0, 0), (0, 3)))
    wider = dataclasses.replace(
        problem,
        q_btnh=pad(problem.q_btnh, 1),
        prompt=Segment(
            pad(problem.prompt.k_bksh, 2),
            pad(problem.prompt.v_bksh, 2),
            Visibility(never(problem.prompt.keys.order)),
            zero(problem.prompt.kinds_bs),
        ),
        rows=Rows(
            zero(problem.rows.after_image_bt), zero(problem.rows.real_bt), problem.rows.last_b
        ),
        queries=Visibility(jnp.broadcast_to(jnp.arange(11, dtype=jnp.int32), (2, 11))),
    )
    a, b = read(problem, steering), read(wider, steering)
    close(np.asarray(a[0])[problem.valid], np.asarray(b[0])[:, :8][problem.valid])
    close(a[1], b[1])


def test_examples_with_their_own_steering_equal_separate_runs():
    layout = Layout(3, 8, 2, 2, shared=False)
    problem = build(layout, 6)
    steering = steer("all", layout, 6)
    whole = read(problem, steering)
    for row in range(3):
        one = lambda a, row=row: a[row : row + 1]
        apart = read(problem, jax.tree.map(one, steering))
        close(apart[0][row], whole[0][row])
        close(apart[1][:, row], whole[1][:, row])


def test_classes_are_disjoint_and_have_the_published_gains():
    """Ratios .30, .005, .10 under the published setting of Ocean-R1: 1.16, 1.30 and 1."""
    part = VisualGains(*(full(x, 3) for x in (0.22, 1.16, 0.01, 1.30)))
    ratios = np.array([0.30, 0.005, 0.10])
    # Two keys, the first an image: logits log r and log(1 - r), read by unit queries.
    keys = jnp.stack([jnp.log(ratios), jnp.log(1 - ratios)], axis=1)[None, :, :, None]
    segment = Segment(
        keys,
        jnp.ones_like(keys),
        Visibility(jnp.array([[0, 1]], jnp.int32)),
        jnp.array([[Kind.IMAGE, Kind.TEXT]], jnp.int8),
    )
    out, _, reading = attend(
        jnp.ones((1, 1, 3, 1)),
        [segment],
        Visibility(jnp.array([[1]], jnp.int32)),
        steering=Steering(visual_gains=part),
    )
    close(reading.image_bn[0], ratios)
    close(out[0, 0, :, 0], [1.16, 1.30, 1.0])
    np.testing.assert_array_equal(reading.perception_bn[0], [1, 0, 0])
    np.testing.assert_array_equal(reading.reasoning_bn[0], [0, 1, 0])


def test_cached_gains_are_those_of_prefill_and_dynamic_ones_of_the_row():
    problem = problem_with_images(seed=7)
    part = VisualGains(full(0.35), full(2), full(0.25), full(0.5))
    vanilla = read(problem, None)[1]
    for rows in ("q", "last"):
        made = dataclasses.replace(part, rows=rows)
        cached = dataclasses.replace(made, mode="prefill_cached")
        kept, dynamic = (read(problem, Steering(visual_gains=m)) for m in (cached, made))
        gain = np.where(kept[2][0].perception_bn, 2, np.where(kept[2][0].reasoning_bn, 0.5, 1))
        close(kept[1], gain[..., None] * vanilla)
        for reading in kept[2][1:]:
            np.testing.assert_array_equal(reading.perception_bn, kept[2][0].perception_bn)
            np.testing.assert_array_equal(reading.reasoning_bn, kept[2][0].reasoning_bn)
        for step, reading in enumerate(dynamic[2][1:]):
            gain = np.where(reading.image_bn >= 0.35, 2, np.where(reading.image_bn <= 0.25, 0.5, 1))
            close(dynamic[1][step], gain[..., None] * vanilla[step])
        assert not np.array_equal(kept[1], dynamic[1])


def test_ratios_of_question_rows_and_of_the_last_row_differ():
    problem = problem_with_images(seed=30)
    count = np.asarray(problem.rows.after_image_bt).sum(1)
    assert count.max() > 1
    outs = [
        read(problem, Steering(visual_gains=VisualGains(
            full(0.5), full(2), full(ratio), full(0.5), rows=rows)))[0]
        for rows in ("q", "last") for ratio in (0.3,)
    ]  # fmt: skip
    assert not np.array_equal(*outs)


@pytest.mark.parametrize(
    "choice", ["logit gains", "lens", "visual", "visual cached", "system is text"]
)
def test_a_sample_without_an_image_is_left_alone(choice):
    problem = build(LAYOUT, 2)
    text = jnp.where(problem.rows.real_bt, Kind.TEXT, Kind.PAD).astype(jnp.int8)
    rows = dataclasses.replace(
        problem.rows, after_image_bt=jnp.zeros_like(problem.rows.after_image_bt)
    )
    problem = dataclasses.replace(
        problem, prompt=dataclasses.replace(problem.prompt, kinds_bs=text), rows=rows
    )
    for a, b in zip(read(problem, steer(choice, LAYOUT, 2))[:2], read(problem, None)[:2]):
        close(a, b)


def test_gains_commute_with_reallocation_and_projection_but_logit_gains_do_not():
    """A head gain is a factor on what steps 4 and 5 leave, wherever it is applied."""
    problem = problem_with_images()
    chosen = steer("AIR", LAYOUT, 3)
    gain = full(1.7)
    with_gain = dataclasses.replace(chosen, head_gains=HeadGains(gain))
    for a, b in zip(read(problem, with_gain)[:2], read(problem, chosen)[:2]):
        close(a, 1.7 * b)
    doubled = jax.tree.map(lambda a: a, problem)
    doubled = dataclasses.replace(
        problem,
        prompt=dataclasses.replace(problem.prompt, v_bksh=1.7 * problem.prompt.v_bksh),
        new=tuple((q, k, 1.7 * v) for q, k, v in problem.new),
    )
    close(read(doubled, chosen)[1], read(problem, with_gain)[1])
    shifted = dataclasses.replace(chosen, logit_gains=LogitGains(gain, gain))
    assert np.abs(read(problem, shifted)[1] - 1.7 * read(problem, chosen)[1]).max() > 1e-3


def head_energies(problem, sample):
    """Sums of squared logits of a sample's real rows on its real keys, later ones included, [N]."""
    real = np.asarray(problem.valid[sample])
    q_tnh = np.asarray(problem.q_btnh[sample])[real]
    k_nsh = np.repeat(np.asarray(problem.prompt.k_bksh[sample])[:, real], LAYOUT.group, axis=0)
    return np.einsum("tnh,nsh->nts", q_tnh, k_nsh) ** 2 / q_tnh.shape[-1]


def test_the_official_energy_is_that_of_the_whole_block():
    """By hand for every sample: queries times the factor are vanilla attention of other queries."""
    problem = problem_with_images(steps=0)
    part = EnergyRescale(full(1).at[0, 1].set(0), full(1), prefill="official")
    found = read(problem, Steering(energy_rescale=part))[0]
    factor_bn = []
    for sample in range(2):
        energy_n = head_energies(problem, sample).sum((1, 2))
        factor_n = np.clip(np.sqrt(energy_n.mean() / (energy_n + 1e-8)), 0.8, 1.25)
        factor_n[1] = 1
        factor_bn.append(factor_n)
    factor_bn = np.array(factor_bn)
    assert len(np.unique(factor_bn)) > 3
    scaled = dataclasses.replace(problem, q_btnh=problem.q_btnh * factor_bn[:, None, :, None])
    close(found[problem.valid], read(scaled, None)[0][problem.valid])


def test_equal_energies_are_left_alone_and_factors_have_limits():
    """A head with a hundred times the energy of the others loses a fifth, those gain a quarter."""
    problem = problem_with_images(steps=1)
    (q, k, v), heads = problem.new[0], LAYOUT.heads
    same = jnp.repeat(q[:, :, :1], heads, axis=2)
    tied = dataclasses.replace(
        problem,
        prompt=dataclasses.replace(
            problem.prompt, k_bksh=jnp.repeat(problem.prompt.k_bksh[:, :1], 2, axis=1)
        ),
        new=((same, jnp.repeat(k[:, :1], 2, axis=1), v),),
    )
    steering = Steering(energy_rescale=EnergyRescale(full(1), full(1)))
    close(read(tied, steering)[1], read(tied, None)[1], 1e-7)
    loud = jnp.asarray([10.0, 1, 1, 1])[:, None] * same
    clipped = jnp.asarray([0.8, 1.25, 1.25, 1.25])[:, None] * loud
    given, expected = (
        dataclasses.replace(tied, new=((x, *tied.new[0][1:]),)) for x in (loud, clipped)
    )
    close(read(given, steering)[1], read(expected, None)[1])


def test_memory_stays_far_below_the_materialised_map():
    """At 4096 tokens, every part at once."""
    length, heads, dim = 4096, 2, 8
    with jax.enable_x64(False):
        shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
        ints = lambda *s: jax.ShapeDtypeStruct(s, jnp.int32)
        flags = jax.ShapeDtypeStruct((1, length), jnp.bool_)
        keys = Segment(
            shape(1, 1, length, dim),
            shape(1, 1, length, dim),
            Visibility(ints(1, length)),
            jax.ShapeDtypeStruct((1, length), jnp.int8),
        )
        layout = Layout(1, length, 1, heads)
        rows = Rows(flags, flags, ints(1))

        def temporary(form, **options):
            steering = steer("all", layout, 0, "float32")
            call = lambda q, keys, seen, steering, rows: form(
                q, [keys], seen, steering=steering, rows=rows, **options
            )[0]
            lowered = jax.jit(call).lower(
                shape(1, length, heads, dim), keys, Visibility(ints(1, length)), steering, rows
            )
            return lowered.compile().memory_analysis().temp_size_in_bytes

        streaming, dense = temporary(attend, causal=True), temporary(dense_steered)
    assert dense >= length * length * heads * 4
    assert 4 * streaming <= dense


def test_decoding_needs_the_state_it_goes_on_from():
    problem = build(LAYOUT, 0)
    seen = Visibility(jnp.full((2, 1), 10 + SLOTS, jnp.int32))
    for steering in (
        Steering(projection=Projection(full(1), full(0), zero_trace="running")),
        Steering(
            visual_gains=VisualGains(full(1), full(1), full(0), full(1), mode="prefill_cached")
        ),
    ):
        with pytest.raises(ValueError, match="pass the state"):
            attend(problem.new[0][0], [problem.prompt], seen, steering=steering)
