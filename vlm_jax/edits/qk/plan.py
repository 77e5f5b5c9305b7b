"""What an edit does to each head of a layer, decided from head-space numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vlm_jax.edits.qk.controls import HeadEdit, Product, base_edit, controlled_edit, mapped_back
from vlm_jax.edits.qk.factor import HeadFactors
from vlm_jax.edits.qk.modes import (
    KeyMap,
    Modes,
    candidate_modes,
    candidates,
    channel_rcond,
    count_for_energy,
    select,
    shared_count,
)
from vlm_jax.edits.qk.spec import QKEdit
from vlm_jax.edits.qk.threads import each
from vlm_jax.edits.qk.weights import LayerWeights


class HeadPlan(NamedTuple):
    """What happens to one head.

    Attributes:
        number: the head.
        head: its factors.
        product: its query-key product.
        modes: all that could be edited.
        asked: how many the edit asked for.
        base: the edit itself, which a control is matched to.
        edit: what is done: the edit, or its control.
        key_map: the map back to queries.
    """

    number: int
    head: HeadFactors
    product: Product
    modes: Modes
    asked: int
    base: HeadEdit
    edit: HeadEdit
    key_map: KeyMap


class Plan(NamedTuple):
    """What happens to a layer.

    Attributes:
        heads: the heads that change.
        num_heads: query heads of the layer.
        width: coordinates in the left basis.
    """

    heads: list[HeadPlan]
    num_heads: int
    width: int


def plan_layer(
    weights: LayerWeights,
    factors: Sequence[HeadFactors],
    spec: QKEdit,
    rotation_hh: np.ndarray | None,
) -> Plan:
    """Decides what happens to each head of a layer.

    Args:
        weights: the layer.
        factors: of its heads.
        spec: the edit.
        rotation_hh: mean rotation between queries and keys, or None for offset 0.

    Raises:
        EditError: the edit does not fit the layer, or a head has too few modes.
    """
    spec.check_layer(weights.layer, weights.head_dim, weights.bq_nh is not None)
    named = spec.heads_of(weights.layer, weights.num_heads)
    numbers = range(weights.num_heads) if named is None else named
    metric = weights.metric(rotation_hh)

    def prepare(n: int):
        product = Product.of(factors[n], metric)
        key_map = KeyMap(product.r_kw, channel_rcond(spec) if spec.joint else spec.rcond or 0.0)
        modes = candidate_modes(factors[n], spec, key_map)
        return product, key_map, modes, candidates(modes, spec)

    if spec.joint:
        prepared = dict(zip(numbers, each(prepare, numbers), strict=True))
    else:
        # A few small products a head: threads, and BLAS threads inside them, would cost more.
        prepared = {n: prepare(n) for n in numbers}
    counts = _counts(prepared, spec)
    chosen = {}
    for n, (_, _, modes, pool_of) in prepared.items():
        where = f"layer {weights.layer} head {n}"
        chosen[n] = select(modes, pool_of, counts[n], spec, where)
    heads = []
    for n in _kept_heads(weights.layer, prepared, chosen, named is None, spec):
        product, key_map, modes, _ = prepared[n]
        base = base_edit(modes, chosen[n], spec)
        rng = np.random.default_rng([spec.seed, weights.layer, n])
        where = f"layer {weights.layer} head {n}"
        edit = controlled_edit(base, modes, product, key_map, spec, rng, where)
        base, edit = mapped_back(base, edit, product, spec)
        heads.append(HeadPlan(n, factors[n], product, modes, counts[n], base, edit, key_map))
    return Plan(heads, weights.num_heads, factors[0].r_q.shape[0])


def _counts(prepared, spec: QKEdit) -> dict[int, int]:
    if spec.energy is None:
        return dict.fromkeys(prepared, spec.modes)
    if not spec.per_head:
        shared = shared_count(
            [(modes, pool) for _, _, modes, pool in prepared.values()], spec.energy
        )
        return {
            n: min(-(-shared // modes.step) * modes.step, pool.size)
            for n, (_, _, modes, pool) in prepared.items()
        }
    return {
        n: count_for_energy(modes, pool, spec.energy) for n, (_, _, modes, pool) in prepared.items()
    }


def _kept_heads(layer, prepared, chosen, concentrated: bool, spec: QKEdit) -> list[int]:
    numbers = list(prepared)
    if concentrated:
        share = {}
        for n, (_, _, modes, _) in prepared.items():
            total = float(np.sum(modes.values**2)) or 1.0
            share[n] = float(np.sum(modes.values[chosen[n]] ** 2)) / total
        middle = np.median(list(share.values()))
        numbers = [n for n in numbers if share[n] >= middle]
    if spec.control == "C6":
        rng = np.random.default_rng([spec.seed, layer])
        numbers = sorted(rng.choice(numbers, max(len(numbers) // 2, 1), replace=False).tolist())
    return numbers
