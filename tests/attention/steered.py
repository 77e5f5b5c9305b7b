"""Prompts with generated tokens, read by the streaming form and by the dense oracle of steering."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.attention.dense_steering import dense_steered
from vlm_jax.attention import NEVER, Segment, Visibility, attend
from vlm_jax.attention.steering import (
    EnergyRescale,
    HeadGains,
    ImageBoost,
    Lens,
    LogitGains,
    Projection,
    Reallocation,
    Registers,
    Rows,
    Steering,
    VisualGains,
)
from vlm_jax.batch import Kind

SLOTS = 4


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sizes: B, T, K, G, keys of an earlier prompt segment, and whether steering is shared."""

    batch: int = 2
    length: int = 7
    kv_heads: int = 1
    group: int = 2
    before: int = 0
    shared: bool = True

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group


LAYOUTS = (
    Layout(2, 7, 1, 2),
    Layout(3, 9, 2, 1, shared=False),
    Layout(2, 6, 2, 3, shared=False),
    Layout(1, 11, 3, 2),
)
TWO_PROMPT_SEGMENTS = (Layout(2, 5, 1, 3, before=6), Layout(3, 6, 2, 2, before=4, shared=False))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """Queries, keys and values of a prompt and of the tokens after it; `Kind`s and lengths."""

    q_btnh: np.ndarray
    prompt: Segment
    before: Segment | None
    rows: Rows
    new: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]
    queries: Visibility

    @property
    def valid(self):
        return np.asarray(self.rows.real_bt)


def kinds_of_sample(rng, length: int, image: bool = True) -> np.ndarray:
    """System, image, and perhaps text and another image, then text; or text alone."""
    kinds = np.full(length, Kind.TEXT, np.int8)
    if not image:
        return kinds
    start = int(rng.integers(0, max(1, length // 3)))
    stop = int(rng.integers(start + 1, length))
    kinds[:start] = Kind.SYSTEM
    kinds[start:stop] = Kind.IMAGE
    if stop - start > 2 and rng.random() < 0.7:
        kinds[rng.integers(start + 1, stop - 1)] = Kind.TEXT
    return kinds


def build(
    layout: Layout, seed: int, dtype: str = "float64", steps: int = 2, images: float = 0.7
) -> Problem:
    """A random ragged problem; a sample has images with a probability."""
    rng = np.random.default_rng(seed)
    dim, batch, length, before = 4, layout.batch, layout.length, layout.before
    normal = lambda *shape: rng.normal(size=shape).astype(dtype)
    keys = lambda length: [normal(batch, layout.kv_heads, length, dim) for _ in range(2)]
    lengths = rng.integers(2, length + 1, batch)
    lengths[rng.integers(batch)] = length
    kinds = np.zeros((batch, before + length), np.int8)
    for row, real in enumerate(lengths):
        kinds[row, : before + real] = kinds_of_sample(rng, before + real, rng.random() < images)
    places = np.broadcast_to(np.arange(before + length, dtype=np.int32), kinds.shape)
    order = np.where(kinds == Kind.PAD, np.int32(NEVER), places)
    last_image = np.max(np.where(kinds == Kind.IMAGE, places, -1), axis=1, keepdims=True)
    after = (kinds == Kind.TEXT) & (last_image >= 0) & (places > last_image)
    segment = lambda where: Segment(
        *keys(kinds[:, where].shape[1]), Visibility(order[:, where]), kinds[:, where]
    )
    query = lambda length: normal(batch, length, layout.heads, dim)
    problem = Problem(
        query(length),
        segment(slice(before, None)),
        segment(slice(0, before)) if before else None,
        Rows(after[:, before:], kinds[:, before:] != Kind.PAD, (lengths - 1).astype(np.int32)),
        tuple((query(1), *keys(1)) for _ in range(steps)),
        Visibility(places[:, before:]),
    )
    return jax.tree.map(jnp.asarray, problem)


def parts(layout: Layout, seed: int, dtype: str = "float64") -> dict:
    """Random parts of a layer's steering, with heads on both sides of every threshold."""
    rng = np.random.default_rng(seed + 10_000)
    shape = (1 if layout.shared else layout.batch, layout.heads)
    draw = lambda low, high: jnp.asarray(rng.uniform(low, high, shape).astype(dtype))
    some = lambda values, other: jnp.where(jnp.asarray(rng.random(shape) < 0.7), values, other)
    reallocation = functools.partial(
        Reallocation, draw(0.5, 3.5), draw(0.0, 0.8), some(draw(0.1, 0.7), np.inf)
    )
    projection = functools.partial(Projection, some(draw(1, 1), 0.0), draw(0.0, 0.6))
    visual = functools.partial(
        VisualGains,
        some(draw(0.3, 0.6), np.inf),
        draw(1.1, 1.5),
        some(draw(0.1, 0.3), -np.inf),
        draw(0.5, 0.9),
    )
    return dict(
        logit_gains=LogitGains(draw(0.5, 1.5), draw(0.5, 1.5)),
        lens=Lens(draw(-0.3, 0.5)),
        head_gains=HeadGains(draw(0.0, 2.0)),
        reallocation=reallocation,
        projection=projection,
        visual_gains=visual,
        energy_rescale=functools.partial(EnergyRescale, some(draw(1, 1), 0.0), draw(0.7, 1.4)),
        image_boost=ImageBoost(draw(-0.3, 0.5)),
        registers=functools.partial(
            Registers,
            some(draw(0.1, 1.0), np.inf),
            draw(12, 12),
            jnp.asarray(rng.integers(0, layout.heads, shape).astype(dtype)),
        ),
    )


CHOICES = {
    "nothing": {},
    "energy": dict(energy_rescale={}),
    "official energy": dict(energy_rescale=dict(prefill="official")),
    "logit gains": dict(logit_gains=True),
    "lens": dict(lens=True),
    "head gains": dict(head_gains=True),
    "visual": dict(visual_gains={}),
    "visual last": dict(visual_gains=dict(rows="last")),
    "visual cached": dict(visual_gains=dict(mode="prefill_cached")),
    "visual last cached": dict(visual_gains=dict(rows="last", mode="prefill_cached")),
    "reallocation": dict(reallocation={}),
    "renormalised": dict(reallocation=dict(renormalise=True)),
    "system is text": dict(reallocation=dict(text_includes_system=True, renormalise=True)),
    "batch sum": dict(reallocation=dict(trigger_reduce="batch_sum", text_includes_system=True)),
    "shrink": dict(projection={}),
    "running": dict(projection=dict(zero_trace="running")),
    "causal": dict(projection=dict(prefill="causal")),
    "causal running": dict(projection=dict(prefill="causal", zero_trace="running")),
    "official": dict(projection=dict(prefill="official")),
    "official running": dict(projection=dict(prefill="official", zero_trace="running")),
    "boost": dict(image_boost=True),
    "registers": dict(registers={}),
    "registers of a budget": dict(registers=dict(mode="budget")),
    "registers by length, dealt": dict(registers=dict(log_length=True, dealt=True)),
    "AIR": dict(reallocation={}, projection={}),
    "FarSight and PAI": dict(
        image_boost=True, head_gains=True, registers=dict(mode="budget", log_length=True)
    ),
    "all": dict(
        energy_rescale={},
        logit_gains=True,
        lens=True,
        head_gains=True,
        visual_gains={},
        reallocation={},
        projection=dict(prefill="causal", zero_trace="running"),
    ),
    "all shrink": dict(
        logit_gains=True,
        lens=True,
        head_gains=True,
        visual_gains=dict(mode="prefill_cached"),
        reallocation=dict(renormalise=True),
        projection={},
    ),
    "AIR* as released": dict(
        energy_rescale=dict(prefill="official"),
        logit_gains=True,
        lens=True,
        reallocation=dict(trigger_reduce="batch_sum"),
        projection=dict(prefill="official"),
    ),
}
"""Which parts, with which switches."""


def counts(choice: str) -> bool:
    """Whether the choice projects with traces and norms of earlier rows."""
    switches = CHOICES[choice].get("projection")
    return bool(switches)


def steer(choice: str, layout: Layout, seed: int, dtype: str = "float64") -> Steering:
    """A random steering of the chosen parts."""
    made = parts(layout, seed, dtype)
    chosen = {
        name: made[name] if switches is True else made[name](**switches)
        for name, switches in CHOICES[choice].items()
    }
    return Steering(**chosen)


@functools.partial(jax.jit, static_argnames=("dense", "cut", "joined"))
def read(
    problem: Problem,
    steering: Steering | None,
    dense: bool = False,
    cut: int = 0,
    joined: bool = False,
):
    """Reads the prompt and every token after it.

    Args:
        problem, steering: what to read.
        dense: whether through the oracle.
        cut: read so many rows of the prompt in a call before.
        joined: whether the keys of both calls are one segment.

    Returns:
        The output at prompt rows, the outputs of the steps [steps, B, N, H], and the readings of
        all decode rows.
    """
    batch, length, _, dim = problem.q_btnh.shape
    earlier = [] if problem.before is None else [problem.before]
    start = sum(segment.length for segment in earlier) + length
    kv_heads = problem.prompt.k_bksh.shape[1]
    empty = jnp.zeros((batch, kv_heads, SLOTS, dim), problem.q_btnh.dtype)
    order = jnp.broadcast_to(start + jnp.arange(SLOTS, dtype=jnp.int32), (batch, SLOTS))
    new = Segment(
        empty, empty, Visibility(order), jnp.full((batch, SLOTS), Kind.TEXT, dtype=jnp.int8)
    )

    def call(q, segments, seen, rows, memory, causal=False):
        if dense:
            return dense_steered(q, segments, seen, steering, rows, memory)
        if steering is None:
            return attend(q, segments, seen, causal=causal), None, None
        return attend(q, segments, seen, causal=causal, steering=steering, rows=rows, state=memory)

    prompt = [*earlier, problem.prompt]
    memory, q, seen, rows, head = None, problem.q_btnh, problem.queries, problem.rows, []
    if cut:
        first, rest = problem.prompt.slice(0, cut), problem.prompt.slice(cut, length - cut)
        prompt = [*earlier, first]
        until = Rows(rows.after_image_bt[:, :cut], rows.real_bt[:, :cut], None)
        out, memory, _ = call(q[:, :cut], prompt, seen.slice(0, cut), until, None, causal=True)
        head, q, seen = [out], q[:, cut:], seen.slice(cut, length - cut)
        rows = Rows(rows.after_image_bt[:, cut:], rows.real_bt[:, cut:], rows.last_b - cut)
        prompt = [*earlier, problem.prompt] if joined else [*prompt, rest]
    out, memory, reading = call(q, prompt, seen, rows, memory, causal=not cut)
    out = jnp.concatenate([*head, out], axis=1)
    outs, readings = [], [reading]
    for step, (q, k, v) in enumerate(problem.new):
        new = new.write(k, v, step)
        seen = Visibility(jnp.full((batch, 1), start + step, jnp.int32))
        row, memory, reading = call(q, [*prompt, new], seen, None, memory)
        outs.append(row[:, 0])
        readings.append(reading)
    return out, jnp.stack(outs) if outs else jnp.zeros(0), readings


def widen(tree):
    """The same numbers in float64."""
    wide = lambda a: a.astype(np.float64) if a.dtype == np.float32 else a
    return jax.tree.map(lambda a: wide(np.asarray(a)), tree)
