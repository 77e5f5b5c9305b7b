"""R10: what the form of the decode loop is worth.

    python -m benchmarks R10

Ours is one `lax.while_loop` in one program over a list of layers. Beside it: a Python loop that
calls the compiled step and reads each token, and the same `lax.while_loop` around a scan over
stacked layers. All decode from copies of one cache and must say the same tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.decoding import Decoding
from benchmarks.protocol import Route, in_turns
from benchmarks.record import figure, milliseconds, record
from benchmarks.small import Bare, bare, prompts, text_of
from vlm_jax.attention import Segment, Visibility
from vlm_jax.models import Cache, abstract, merge
from vlm_jax.models.layers import linear, rms_norm, text_angles

QUANTITY = "other form / ours, time of a decode step"
SCAN_GOAL = 1.5


def settings(quick: bool) -> dict[str, Any]:
    """Batches and the steps of a run."""
    if quick:
        return dict(text=text_of(True), batches=[(1, 4)], context=48, repeats=2)
    return dict(text=text_of(False), batches=[(1, 24), (8, 12)], context=512, repeats=9)


def measure(quick: bool = False) -> dict[str, Any]:
    """Measures the row."""
    chosen = settings(quick)
    model = bare(chosen["text"])

    def figures() -> list[dict[str, Any]]:
        found = []
        for rows, steps in chosen["batches"]:
            batch = prompts(model.config, 1, chosen["context"])
            ours = Decoding.record(model.generator, model.params, batch, steps).repeated(rows)
            routes = {
                "ours": ours.route(),
                "Python loop": host_loop(model, ours),
                "scan of stacked layers": stacked_loop(model, ours),
            }

            def check(done: dict[str, Any], ours=ours) -> None:
                for tokens in done.values():
                    ours.check(tokens)

            series = in_turns(routes, chosen["repeats"], check=check)
            for name in ("Python loop", "scan of stacked layers"):
                judged = not quick and rows == 1 and name == "scan of stacked layers"
                found.append(
                    figure(
                        f"{name}, batch {rows}",
                        series[name].over(series["ours"]),
                        SCAN_GOAL if judged else None,
                        at_most=False,
                        other_ms=milliseconds(series[name].seconds, steps),
                        ours_ms=milliseconds(series["ours"].seconds, steps),
                    )
                )
        return found

    return record("R10", QUANTITY, chosen, figures)


def host_loop(model: Bare, ours: Decoding) -> Route:
    """The same step compiled alone, called from a Python loop that reads each token."""
    graphdef = abstract(model.config)[0]

    @functools.partial(jax.jit, donate_argnums=2)
    def step(params, token_b, cache):
        logits_bv, cache, *_ = merge(graphdef, params).step(token_b, cache)
        return jnp.argmax(logits_bv, axis=-1).astype(jnp.int32), cache

    def run(cache: Cache) -> np.ndarray:
        tokens = [ours.tokens_bn[:, 0]]
        for _ in range(ours.new_tokens):
            token_b, cache = step(model.params, tokens[-1], cache)
            tokens.append(np.asarray(token_b))
        return np.stack(tokens[:-1], axis=1)

    return Route(run, lambda: (jax.block_until_ready(jax.tree.map(jnp.copy, ours.cache)),))


def stacked_loop(model: Bare, ours: Decoding) -> Route:
    """The loop in one program, its layers stacked and scanned."""
    params = {path: a for path, a in model.params.items() if "/layers/" not in path}
    count = model.config.decoder.num_layers
    layers = [_of_layer(model.params, index) for index in range(count)]
    stack = jax.tree.map(lambda *each: jnp.stack(each), *layers)
    cache = ours.cache
    caches = jax.tree.map(lambda *each: jnp.stack(each), *zip(cache.prompt, cache.new))
    rest = (cache.next_position_b, cache.used)
    program = jax.jit(functools.partial(_scanned, model.config, ours.new_tokens), donate_argnums=2)

    def run(caches) -> np.ndarray:
        first_b = jnp.asarray(ours.tokens_bn[:, 0])
        return np.asarray(program(params, stack, caches, rest, first_b)[0])

    return Route(run, lambda: (jax.block_until_ready(jax.tree.map(jnp.copy, caches)),))


def _of_layer(params: dict[str, jax.Array], index: int) -> dict[str, jax.Array]:
    prefix = f"decoder/layers/{index}/"
    return {path.removeprefix(prefix): a for path, a in params.items() if path.startswith(prefix)}


def _scanned(config, steps: int, params, stack, caches, rest, first_b):
    """Runs all steps; returns tokens [B, steps], and the caches, which were donated."""
    c = config.decoder
    layer_def = nnx.split(nnx.eval_shape(lambda: _decoder_layer(config)))[0]
    next_position_b, used = rest
    rows = first_b.shape[0]

    def step(state):
        count, tokens_bn, caches = state
        token_b = jax.lax.dynamic_index_in_dim(tokens_bn, count, axis=1, keepdims=False)
        slot = used + count
        positions = jnp.broadcast_to((next_position_b + count)[:, None, None], (rows, 1, 3))
        angles = text_angles(positions, c.rope_dim, c.rope_theta, c.rope_factor, c.rope_axes)
        order = caches[0].k_bksh.shape[3] + slot
        seen = Visibility(order=jnp.broadcast_to(order, (rows, 1)))

        def through(x_btd, each):
            weights, (prompt, new) = each
            layer = nnx.merge(layer_def, nnx.State({k: nnx.Param(v) for k, v in weights.items()}))
            written: list[Segment] = []

            def extend_cache(k_bksh, v_bksh):
                written.append(new.write(k_bksh, v_bksh, slot))
                return [prompt, written[-1]]

            return layer(x_btd, angles, seen, extend_cache, False), written[0]

        x_btd = params["decoder/embed_vd"][token_b[:, None]]
        x_btd, new = jax.lax.scan(through, x_btd, (stack, caches))
        hidden = rms_norm(x_btd, params["decoder/final_norm_d"], c.rms_norm_eps)[:, 0]
        chosen_b = jnp.argmax(linear(hidden, params["decoder/head_vd"]), axis=-1).astype(jnp.int32)
        tokens_bn = jax.lax.dynamic_update_slice_in_dim(
            tokens_bn, chosen_b[:, None], count + 1, axis=1
        )
        return count + 1, tokens_bn, (caches[0], new)

    tokens_bn = jnp.zeros((rows, steps + 1), jnp.int32).at[:, 0].set(first_b)
    state = jnp.int32(0), tokens_bn, caches
    _, tokens_bn, caches = jax.lax.while_loop(lambda state: state[0] < steps, step, state)
    return tokens_bn[:, :steps], caches


def _decoder_layer(config):
    from vlm_jax.models.decoder import decoder_layer

    one = dataclasses.replace(config.decoder, num_layers=1)
    return decoder_layer(one, 0, nnx.Rngs(0))
