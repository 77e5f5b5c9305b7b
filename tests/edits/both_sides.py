"""A channel edit that changes keys too: what map-backs with fixed keys are compared with.

A product of other queries and other keys is any matrix of rank head_dim, so the best of that rank
misses least of the target. Keys that several query heads share cannot follow one of them, so this
is for multi-head attention, and for study: it writes no folder.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vlm_jax.edits.qk.controls import Product
from vlm_jax.edits.qk.factor import factor_layers
from vlm_jax.edits.qk.modes import KeyMap, candidate_modes, candidates, channel_rcond, select
from vlm_jax.edits.qk.spec import QKEdit
from vlm_jax.edits.qk.weights import LayerWeights
from vlm_jax.errors import EditError


class BothEdited(NamedTuple):
    """A layer whose queries and keys were edited.

    Attributes:
        wq_dnh, wk_dkh: float64 weights.
        residual_n: share of each head's target that is missed, ||D - D_realised|| / ||D||.
    """

    wq_dnh: np.ndarray
    wk_dkh: np.ndarray
    residual_n: np.ndarray


def edit_both(weights: LayerWeights, spec: QKEdit) -> BothEdited:
    """Edits every head's product in one channel, queries and keys taking equal shares.

    Args:
        weights: of a layer whose heads have keys of their own.
        spec: a channel edit of `k` modes at offset 0, without a control.

    Raises:
        EditError: keys are shared, or the edit is none of one channel.
    """
    if weights.num_kv_heads != weights.num_heads:
        raise EditError(
            f"layer {weights.layer} has {weights.num_heads} query heads on {weights.num_kv_heads} "
            "key heads; keys that heads share cannot change for one of them."
        )
    if not spec.joint or spec.control or spec.energy is not None or spec.rope_avg:
        raise EditError(
            "an edit of queries and keys is one of k modes of the symmetric or antisymmetric "
            "channel, without control, energy and rope_avg."
        )
    if weights.qk_norm:
        raise EditError(
            f"layer {weights.layer} normalises its queries or keys, which fixes their scales."
        )
    factors = factor_layers([weights], joint=True)
    queries, keys, residuals = [], [], []
    for n, head in enumerate(factors.heads[0]):
        product = Product.of(head, np.eye(weights.head_dim))
        modes = candidate_modes(head, spec, KeyMap(product.r_kw, channel_rcond(spec)))
        where = f"layer {weights.layer} head {n}"
        chosen = select(modes, candidates(modes, spec), spec.modes, spec, where)
        removed = (modes.left[:, chosen] * modes.values[chosen]) @ modes.right[:, chosen].T
        target = product.core - spec.strength * removed
        left, values, right = np.linalg.svd(target)
        count = weights.head_dim
        root = np.sqrt(values[:count])
        queries.append(left[:, :count] * root)
        keys.append(right[:count].T * root)
        whole = np.linalg.norm(spec.strength * removed) or 1.0
        residuals.append(float(np.linalg.norm(values[count:]) / whole))
    wide = np.concatenate([np.stack(queries), np.stack(keys)], axis=2)
    (lifted_nrd,) = factors.basis.lift([wide])
    both = np.moveaxis(lifted_nrd, 2, 0)
    wq_dnh, wk_dkh = (np.ascontiguousarray(half) for half in np.split(both, 2, axis=2))
    return BothEdited(wq_dnh, wk_dkh, np.array(residuals))
