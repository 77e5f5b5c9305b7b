"""Edits of whole models, a few layers at a time: read, factor on all devices, change, report."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vlm_jax.edits.qk import certificate
from vlm_jax.edits.qk.controls import base_edit
from vlm_jax.edits.qk.factor import Factors, factor_layers, layers_at_once
from vlm_jax.edits.qk.modes import channel_modes, plain_modes
from vlm_jax.edits.qk.plan import HeadPlan, Plan, plan_layer
from vlm_jax.edits.qk.rope import Rope
from vlm_jax.edits.qk.sidecar import Sidecar
from vlm_jax.edits.qk.spec import CHANNELS, QKEdit
from vlm_jax.edits.qk.threads import each
from vlm_jax.edits.qk.weights import LayerWeights
from vlm_jax.errors import EditError

Read = Callable[[int], Mapping[str, np.ndarray]]


class EditedLayer(NamedTuple):
    """One layer after an edit.

    Attributes:
        layer: its index.
        arrays: the arrays that changed, `wq_dnh` and, where biases move, `bq_nh`, in their own
            dtypes.
        sidecar: the change in low-rank form.
        heads: the certificate's numbers, one mapping an edited head.
    """

    layer: int
    arrays: dict[str, np.ndarray]
    sidecar: Sidecar
    heads: list[dict[str, Any]]


def edit_layers(
    read: Read,
    num_layers: int,
    spec: QKEdit,
    *,
    rope: Rope | None = None,
    route: str = "auto",
    undo: bool = True,
    certify: bool = True,
    only: Collection[int] | None = None,
) -> Iterator[EditedLayer]:
    """Edits the layers of the band, holding only as many at a time as the local devices share.

    Args:
        read: gives a layer's arrays by name (see `LayerWeights`), called once a layer of the band.
        num_layers: layers of the decoder.
        spec: the edit.
        rope: rotation and offsets; adds rho to the report, and is needed for `rope_avg`.
        route: how factors are taken (see `factor`).
        undo: whether sidecars keep what an exact revert needs.
        certify: whether to report on every head; without, `heads` is empty and the edit is cheaper.
        only: the layers of the band to edit now; all of them by default. A layer's edit does not
            depend on the others.

    Raises:
        EditError: the model cannot be edited this way; nothing is written by this room.
    """
    options: dict[str, Any] = {
        "rope": rope, "route": route, "undo": undo, "certify": certify, "only": only
    }  # fmt: skip
    for edited in edit_many(read, num_layers, [spec], **options):
        yield from edited.values()


def edit_many(
    read: Read,
    num_layers: int,
    specs: Sequence[QKEdit],
    *,
    rope: Rope | None = None,
    route: str = "auto",
    undo: bool = False,
    certify: bool = True,
    only: Collection[int] | None = None,
) -> Iterator[dict[int, EditedLayer]]:
    """Makes many edits of the same model, reading and factoring every layer once a kind of product.

    Yields:
        a layer's edits by their index in `specs`, for each layer that any of them touches, in
        order.

    Raises:
        EditError: an edit averages over offsets, and `rope` is not given; or one cannot be made.
    """
    wanted = [spec.layers(num_layers) for spec in specs]
    if rope is None and any(spec.rope_avg for spec in specs):
        raise EditError("rope_avg averages over offsets; give rope=Rope(inv_freq_f, offsets_oa).")
    if only is not None:
        wanted = [tuple(n for n in layers if n in only) for layers in wanted]
    pending = sorted(set().union(*wanted)) if wanted else []
    step = 1
    while pending:
        group = [LayerWeights.of(pending[0], read(pending[0]))]
        step = layers_at_once(group[0].num_kv_heads)
        group += [LayerWeights.of(n, read(n)) for n in pending[1:step]]
        pending = pending[step:]
        yield from _edit_group(group, specs, wanted, _Options(rope, route, undo, certify))


class _Options(NamedTuple):
    rope: Rope | None
    route: str
    undo: bool
    certify: bool


def _edit_group(
    group: Sequence[LayerWeights],
    specs: Sequence[QKEdit],
    wanted: Sequence[tuple[int, ...]],
    options: _Options,
) -> Iterator[dict[int, EditedLayer]]:
    edited: dict[int, dict[int, EditedLayer]] = {weights.layer: {} for weights in group}
    kinds: dict[tuple, list[int]] = {}
    for index, spec in enumerate(specs):
        if any(weights.layer in wanted[index] for weights in group):
            kind = (spec.joint, spec.fold_norm, spec.bias == "augmented", spec.rope_avg)
            kinds.setdefault(kind, []).append(index)
    for (joint, fold_norm, augmented, averaged), members in kinds.items():
        rotation = None
        if averaged and options.rope is not None:
            rotation = options.rope.mean_rotation(group[0].head_dim)
        factors = factor_layers(
            group,
            joint=joint,
            fold_norm=fold_norm,
            augmented=augmented,
            rotation_hh=rotation,
            cross=options.certify or any(specs[n].method == "alignment" for n in members),
            route=options.route,
        )
        for index in members:
            planned = [
                plan_layer(weights, heads, specs[index], rotation)
                if weights.layer in wanted[index]
                else None
                for weights, heads in zip(group, factors.heads, strict=True)
            ]
            directions = _lift(factors, planned)
            for weights, plan, lifted in zip(group, planned, directions, strict=True):
                if plan is not None:
                    result = _realise(weights, plan, lifted, specs[index], options)
                    edited[weights.layer][index] = result
    yield from (by_spec for by_spec in edited.values() if by_spec)


def _lift(factors: Factors, planned: Sequence[Plan | None]) -> list[np.ndarray]:
    """Per layer, [N, R, D'] directions of the edit and, behind them, of its base."""
    some = next(plan for plan in planned if plan is not None)
    coordinates = []
    for plan in planned:
        heads = plan.heads if plan is not None else []
        rank = max((h.edit.left.shape[1] + h.base.left.shape[1] for h in heads), default=0)
        left = np.zeros((some.num_heads, some.width, max(rank, 1)))
        for h in heads:
            own = h.edit.left.shape[1]
            left[h.number, :, :own] = h.edit.left
            if h.edit is not h.base:
                left[h.number, :, own : own + h.base.left.shape[1]] = h.base.left
        coordinates.append(left)
    return factors.basis.lift(coordinates)


def _realise(
    weights: LayerWeights,
    plan: Plan,
    lifted_nrd: np.ndarray,
    spec: QKEdit,
    options: _Options,
) -> EditedLayer:
    strength = spec.realised_strength
    gain = weights.gain(spec.fold_norm)
    rows = weights.wq_dnh.shape[0]
    directions = lifted_nrd[:, :, :rows]
    if gain is not None:
        directions = directions / gain
    sidecar = _sidecar(weights, plan, directions, lifted_nrd[:, :, rows:], spec)
    edited, bias, noise = sidecar.apply_measured(weights.wq_dnh, weights.bq_nh)
    if options.undo:
        sidecar = sidecar.recorded(weights.wq_dnh, edited, weights.bq_nh)
    arrays = {"wq_dnh": edited}
    if sidecar.moves_bias and bias is not None:
        arrays["bq_nh"] = bias

    turned = {} if options.rope is None else _turned_keys(weights, plan, options.rope, spec.joint)

    def report(e: int) -> dict[str, Any]:
        h = plan.heads[e]
        numbers = _describe(weights, h, directions[h.number], spec, strength)
        numbers["rounding_noise"] = float(noise[e])
        if weights.q_norm_h is not None:
            before, after = (w[:, h.number] for w in (weights.wq_dnh, edited))
            removed = numbers["edit"]["energy_removed"]
            numbers["norm"] = certificate.behind_norm(before, after, weights.attn_norm_d, removed)
        if options.rope is not None:
            numbers["rho"] = certificate.rope_capture(h.base, h.product.r_q @ turned[h.number])
        return numbers

    heads = []
    if options.certify:
        heads = each(report, range(len(plan.heads)))
    return EditedLayer(weights.layer, arrays, sidecar, heads)


def _sidecar(weights, plan: Plan, directions_nrd, bias_column_nr1, spec: QKEdit) -> Sidecar:
    count = len(plan.heads)
    rank = max((h.edit.left.shape[1] for h in plan.heads), default=0)
    columns = np.zeros((count, weights.head_dim, rank))
    directions = np.zeros((count, rank, weights.wq_dnh.shape[0]))
    bias = None if spec.bias == "weights" else np.zeros((count, rank))
    laws = None
    for e, h in enumerate(plan.heads):
        own = h.edit.left.shape[1]
        columns[e, :, :own] = h.edit.columns
        directions[e, :own] = directions_nrd[h.number, :own]
        if bias is not None and spec.bias == "augmented":
            bias[e, :own] = bias_column_nr1[h.number, :own, 0]
        elif bias is not None:
            bias[e, :own] = h.edit.left.T @ _virtual_input(h, weights.bq_nh[h.number])
        if h.edit.temperature is not None:
            laws = np.zeros((count, 2)) if laws is None else laws
            laws[e] = h.edit.temperature
    numbers = np.array([h.number for h in plan.heads], np.int32)
    return Sidecar(spec.realised_strength, numbers, columns, directions, bias, laws)


def _virtual_input(h: HeadPlan, bias_h: np.ndarray) -> np.ndarray:
    """[b] coordinates of the smallest input whose query is the bias: it is edited as any input."""
    return np.linalg.lstsq(h.product.r_q.T, bias_h.astype(np.float64), rcond=None)[0]


def _describe(weights, h: HeadPlan, directions_rd, spec: QKEdit, strength: float):
    w_norm = float(np.linalg.norm(weights.wq_dnh[:, h.number].astype(np.float64)))
    own = h.edit.left.shape[1]
    energy = float(np.sum(h.modes.values**2)) or 1.0
    numbers: dict[str, Any] = {
        "layer": weights.layer,
        "head": h.number,
        "kv_head": h.number // (weights.num_heads // weights.num_kv_heads),
        "k_asked": h.asked,
        "k": int(h.base.modes.size),
        "modes": h.edit.modes.tolist(),
        "strength": strength,
        "energy_fraction": float(np.sum(h.modes.values[h.base.modes] ** 2)) / energy,
        "qk_norm": weights.qk_norm,
        "seed": spec.seed,
        **certificate.spectra(h.head, h.product, h.edit, strength),
        "residual": certificate.residual(h.modes, h.base.modes, h.product),
        "edit": certificate.magnitudes(h.edit, h.product, strength, directions_rd[:own], w_norm),
    }
    if h.edit is not h.base:
        behind = directions_rd[own : own + h.base.left.shape[1]]
        numbers["reference"] = certificate.magnitudes(h.base, h.product, strength, behind, w_norm)
        numbers["matched"] = h.edit.matched
    if spec.joint:
        numbers["least_residual"] = certificate.least_residual(
            h.modes, h.base.modes, h.product, strength
        )
        numbers["cosine"] = _cosines(h, spec)
    return numbers


def _cosines(h: HeadPlan, spec: QKEdit) -> dict[str, float]:
    """How alike the realised edits are: of the two channels, and of half as many plain modes."""
    count = h.base.modes.size
    even = np.arange(count + count % 2)
    edits = {}
    for channel in CHANNELS:
        modes = (
            h.modes if channel == spec.method else channel_modes(h.head, spec, h.key_map, channel)
        )
        edits[channel] = base_edit(modes, even[even < modes.values.size], QKEdit())
    plain = plain_modes(h.head)
    half = np.arange(min((count + 1) // 2, plain.values.size))
    return {
        "symmetric_antisymmetric": certificate.cosine_of(
            edits["symmetric"], edits["antisymmetric"], h.product
        ),
        "plain_half": certificate.cosine_of(h.base, base_edit(plain, half, QKEdit()), h.product),
    }


def _turned_keys(weights, plan: Plan, rope: Rope, joint: bool) -> dict[int, np.ndarray]:
    """Head -> [O, H, b] keys as seen from each offset; heads of a group share them."""
    rotations = rope.rotations(weights.head_dim)
    metric = np.stack([weights.metric(rotation) for rotation in rotations])
    group = 1 if joint else weights.num_heads // weights.num_kv_heads
    turned: dict[int, np.ndarray] = {}
    for h in plan.heads:
        if h.number // group not in turned:
            turned[h.number // group] = metric @ h.head.r_k.T
    return {h.number: turned[h.number // group] for h in plan.heads}
