"""Experts against a loop over all of them, and what a single token reads."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.config import MoE
from vlm_jax.models.mlp import choose, run_experts

COUNT, WIDTH, DIM, CHOSEN = 8, 24, 16, 3


def stacks(count: int = COUNT, dtype=np.float32):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape) / shape[-1] ** 0.5, dtype)
    return draw(count, WIDTH, DIM), draw(count, WIDTH, DIM), draw(count, DIM, WIDTH)


def loop(x_td, weights_tk, ids_tk, gate, up, down):
    """Every token through every one of its experts, one by one, in float64."""
    gate, up, down = (np.asarray(a, np.float64) for a in (gate, up, down))
    out = np.zeros(x_td.shape)
    for token, x in enumerate(np.asarray(x_td, np.float64)):
        for weight, expert in zip(weights_tk[token], ids_tk[token]):
            hidden = gate[expert] @ x
            hidden = hidden / (1 + np.exp(-hidden)) * (up[expert] @ x)
            out[token] += weight * (down[expert] @ hidden)
    return out


@pytest.mark.parametrize("tokens", [1, 2, 5, 40])
def test_experts_are_a_loop_over_them(tokens):
    rng = np.random.default_rng(tokens)
    x = rng.standard_normal((tokens, DIM)).astype(np.float32)
    # Some experts have many tokens, some none.
    ids = np.stack([rng.permutation(COUNT - 1)[:CHOSEN] for _ in range(tokens)]).astype(np.int32)
    ids[: tokens // 2, 0] = 0
    weights = rng.uniform(size=(tokens, CHOSEN)).astype(np.float32)
    found = jax.jit(run_experts)(x, weights, ids, *stacks())
    np.testing.assert_allclose(found, loop(x, weights, ids, *stacks()), atol=2e-6)


def test_a_token_reads_its_own_experts_alone():
    """XLA's count of bytes does not grow with the experts that are there, and none is copied."""

    def compiled(count):
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in stacks(count)]
        given = (
            jax.ShapeDtypeStruct((1, DIM), jnp.float32),
            jax.ShapeDtypeStruct((1, CHOSEN), jnp.float32),
            jax.ShapeDtypeStruct((1, CHOSEN), jnp.int32),
        )
        return jax.jit(run_experts).lower(*given, *shapes).compile()

    few, many = compiled(8), compiled(64)
    read = lambda program: program.cost_analysis()["bytes accessed"]
    one_expert = 3 * WIDTH * DIM * 4
    assert read(many) - read(few) < one_expert
    text = str(many.as_text())
    made = [line for line in text.splitlines() if re.search(r"= f32\[64,\d+,\d+\]", line)]
    assert made
    assert all(re.search(r" (parameter|get-tuple-element)\(", line) for line in made), made


def route(moe: MoE, logits: np.ndarray, bias=None):
    """Returns weights and ids of tokens with these logits."""
    router = jnp.eye(logits.shape[1], dtype=jnp.float32)
    bias = None if bias is None else jnp.asarray(bias)
    return map(np.asarray, choose(moe, jnp.asarray(logits, jnp.float32), router, bias))


def moe(**changes) -> MoE:
    plain = dict(count=4, width=8, chosen=2, shared_width=0, scoring="softmax", normalise=False)
    return MoE(**plain | dict(scale=1.0, bias=False) | changes)  # type: ignore[arg-type]


def test_a_softmax_router_weighs_by_its_scores():
    logits = np.log([[0.1, 0.4, 0.2, 0.3]])
    weights, ids = route(moe(scale=2.0), logits)
    assert ids.tolist() == [[1, 3]]
    np.testing.assert_allclose(weights, [[0.8, 0.6]], rtol=1e-6)
    weights, _ = route(moe(normalise=True), logits)
    np.testing.assert_allclose(weights, [[4 / 7, 3 / 7]], rtol=1e-6)


def test_a_bias_moves_the_choice_and_not_the_weights():
    logits = np.array([[0.0, 1.0, 2.0, 3.0]])
    bias = np.array([2.0, 0.0, 0.0, 0.0], np.float32)
    weights, ids = route(moe(scoring="sigmoid", bias=True), logits, bias)
    assert ids.tolist() == [[0, 3]]
    np.testing.assert_allclose(weights, 1 / (1 + np.exp(-logits[:, [0, 3]])), rtol=1e-6)


def test_groups_are_ranked_by_their_best():
    # The best expert is alone in its group; the other group's two together are better.
    logits = np.array([[3.0, -9.0, 2.5, 2.4]])
    grouped = dict(groups=2, groups_kept=1)
    assert [*route(moe(scoring="sigmoid", **grouped), logits)][1].tolist() == [[2, 3]]
    assert [*route(moe(scoring="softmax", **grouped), logits)][1].tolist() == [[0, 1]]


def test_the_router_is_float32_in_half_precision():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 16)), jnp.bfloat16)
    router = jnp.asarray(np.random.default_rng(1).standard_normal((4, 16)), jnp.bfloat16)
    weights, ids = choose(moe(), x, router, None)
    wide_weights, wide_ids = choose(moe(), x.astype(jnp.float32), router.astype(jnp.float32), None)
    assert weights.dtype == jnp.float32
    np.testing.assert_array_equal(ids, wide_ids)
    np.testing.assert_array_equal(weights, wide_weights)
