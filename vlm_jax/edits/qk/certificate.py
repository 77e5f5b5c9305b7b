"""The numbers of one edited head, as plain Python values that JSON can hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vlm_jax.edits.qk.controls import HeadEdit, Product, temperature
from vlm_jax.edits.qk.factor import HeadFactors
from vlm_jax.edits.qk.modes import Modes, alignment_of
from vlm_jax.errors import EditError


def overlap(head: HeadFactors) -> float:
    """kappa = ||Z_Q^T Z_K||_F^2 / H: 1 where both read the same subspace, H / D by chance."""
    between = _orthonormal(head.r_q).T @ _cross(head) @ _orthonormal(head.r_k)
    return float(np.sum(between**2) / head.r_q.shape[1])


def symmetry(head: HeadFactors, product: Product) -> float:
    """tr(M^2) / ||M||^2 in [-1, 1]: 1 for a symmetric product, -1 for an antisymmetric one."""
    turned = product.core @ _cross(head).T
    return float(np.sum(turned * turned.T) / product.energy) if product.energy else 0.0


def magnitudes(
    edit: HeadEdit, product: Product, strength: float, directions_rd: np.ndarray, w_norm: float
) -> dict[str, Any]:
    """The quantities in which controls are matched: rank, energies and norms of a change.

    `energy_touched` is the squared strength of the modes acted on as a share of the product's;
    `energy_removed` the share the product's squared norm loses, negative if it grows.
    """
    removed = product.removed(edit, strength)
    energy = product.energy or 1.0
    if edit.temperature is not None:
        dw_norm = abs(1 - temperature(edit.temperature, strength)) * w_norm
        rank = product.r_q.shape[1]
        touched = 1.0
    else:
        gram = (edit.columns.T @ edit.columns) * (directions_rd @ directions_rd.T)
        dw_norm = abs(strength) * float(np.sqrt(max(gram.sum(), 0.0)))
        rank = edit.columns.shape[1]
        touched = float(np.sum((product.r_kw @ edit.columns) ** 2)) / energy
    return {
        "rank": int(rank),
        "energy_touched": touched,
        "energy_removed": 1 - float(np.sum((product.core - removed) ** 2)) / energy,
        "dw_norm": dw_norm,
        "dw_relative": dw_norm / w_norm if w_norm else 0.0,
        "dm_norm": float(np.linalg.norm(removed)),
        "dm_relative": float(np.linalg.norm(removed)) / float(np.sqrt(energy)),
    }


def behind_norm(
    before_dh: np.ndarray, after_dh: np.ndarray, gain_d: np.ndarray | None, removed: float
) -> dict[str, float]:
    """What is left of an edit behind the norm of a head's queries (Qwen3, InternVL-3.5).

    The norm divides a query by its own root mean square. What the edit takes off makes that
    smaller, so that the rest is scaled up: the head's modes are weighed anew, not suppressed.

    Args:
        before_dh, after_dh: the head's query weights.
        gain_d: of the norm before attention, by which inputs differ in size.
        removed: `energy_removed` of the edit, in front of the norm.

    Returns:
        `reinflation`, the factor by which the rest grows, of the root mean squares over inputs of
        equal size in all directions; infinite where nothing is left. `energy_removed` behind it, 0
        where all queries shrink alike.
    """
    gain_d1 = np.ones((len(before_dh), 1)) if gain_d is None else gain_d.astype(np.float64)[:, None]
    before, after = (np.linalg.norm(gain_d1 * w.astype(np.float64)) for w in (before_dh, after_dh))
    grown = float(before / after) if after else float("inf")
    left = grown**2 * (1 - removed) if after else 0.0
    return {"reinflation": grown, "energy_removed": 1 - left}


def spectra(head: HeadFactors, product: Product, edit: HeadEdit, strength: float) -> dict[str, Any]:
    """Returns the spectrum before and after, and what describes it."""
    after = np.linalg.svd(product.core - product.removed(edit, strength), compute_uv=False)
    values = head.values
    energy = float(np.sum(values**2)) or 1.0
    return {
        "spectrum_before": values.tolist(),
        "spectrum_after": after[: values.size].tolist(),
        "stable_rank": float(energy / values[0] ** 2) if values[0] else 0.0,
        "alignment": alignment_of(head).tolist(),
        "symmetry": symmetry(head, product),
        "overlap": overlap(head),
    }


def residual(modes: Modes, chosen: np.ndarray, product: Product) -> float:
    """The share of the target that the map-back misses, ||D - D_realised|| / ||D||."""
    if modes.exact or not chosen.size:
        return 0.0
    target = modes.right[:, chosen] * modes.values[chosen]
    missed = target - product.r_kw @ modes.columns[:, chosen]
    return float(np.linalg.norm(missed) / np.linalg.norm(target))


def least_residual(modes: Modes, chosen: np.ndarray, product: Product, strength: float) -> float:
    """As `residual`, were the head free to change its keys too: the best product of its rank.

    No map-back can miss less of the target.
    """
    if modes.exact or not chosen.size or not strength:
        return 0.0
    target = (modes.left[:, chosen] * modes.values[chosen]) @ modes.right[:, chosen].T
    values = np.linalg.svd(product.core - strength * target, compute_uv=False)
    missed = np.linalg.norm(values[product.r_q.shape[1] :])
    return float(missed / np.linalg.norm(strength * target))


def cosine_of(one: HeadEdit, other: HeadEdit, product: Product) -> float:
    """The cosine between the changes of the product that two edits realise."""
    first, second = product.removed(one, 1.0), product.removed(other, 1.0)
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.sum(first * second)) / norms if norms else 0.0


def rope_capture(edit: HeadEdit, cores_obc: np.ndarray) -> dict[str, Any]:
    """Returns rho: the energy in the edited directions over that of as many best ones, by offset.

    1 where the modes of offset 0 are still the strongest of the rotated product; 0.5 where others
    hold twice as much there.

    Args:
        edit: of the head; the first columns of `left` are its directions.
        cores_obc: the head's product between rotated queries and keys, one core an offset.

    Returns:
        `values`, one an offset, and their `median`; nothing where no direction was edited.
    """
    count = edit.modes.size
    if not count:
        return {"values": [], "median": None}
    kept = np.sum((edit.left[:, :count].T @ cores_obc) ** 2, axis=(1, 2))
    squares = np.linalg.eigvalsh(cores_obc @ np.swapaxes(cores_obc, -1, -2))
    total = np.sum(squares[:, -count:], axis=1)
    values = kept / np.where(total > 0, total, 1.0)
    return {"values": values.tolist(), "median": float(np.median(values))}


def summary(heads: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Totals over heads, the control's beside those of the edit it stands for.

    Returns:
        number of heads, median rank, energy shares and norms of `edit` (what was done) and, for a
        control, of `reference` (the edit it is matched to), and whether every head could be
        matched; where the heads have them, medians of `norm` (see `behind_norm`), of rho and of the
        rounding noise.
    """
    heads = list(heads)
    total: dict[str, Any] = {"heads": len(heads), "edit": _pooled([h["edit"] for h in heads])}
    references = [h["reference"] for h in heads if "reference" in h]
    if references:
        total["reference"] = _pooled(references)
        total["matched"] = all(h["matched"] for h in heads)
    normed = [h["norm"] for h in heads if "norm" in h]
    if normed:
        names = ("reinflation", "energy_removed")
        total["norm"] = {name: float(np.median([one[name] for one in normed])) for name in names}
    rho = [h["rho"]["median"] for h in heads if "rho" in h and h["rho"]["median"] is not None]
    noise = [h["rounding_noise"] for h in heads if "rounding_noise" in h]
    if rho:
        total["rho"] = float(np.median(rho))
    if noise:
        total["rounding_noise"] = float(np.median(noise))
    return total


def _pooled(rows: list[Mapping[str, float]]) -> dict[str, float]:
    if not rows:
        return {}
    medians = ("rank", "energy_touched", "energy_removed", "dw_relative", "dm_relative")
    pooled = {name: float(np.median([row[name] for row in rows])) for name in medians}
    for name in ("dw_norm", "dm_norm"):
        pooled[name] = float(np.sqrt(sum(row[name] ** 2 for row in rows)))
    return pooled


def _cross(head: HeadFactors) -> np.ndarray:
    if head.cross is None:
        raise EditError("the overlap of query and key spaces was not asked for.")
    return head.cross


def _orthonormal(r_bh: np.ndarray) -> np.ndarray:
    """[b, rank] an orthonormal basis of the columns."""
    diagonal = np.abs(np.diag(r_bh))
    square = r_bh.shape[0] == r_bh.shape[1]
    if square and diagonal.size and diagonal.min() > 1e-8 * diagonal.max():
        return np.eye(r_bh.shape[0])
    basis, values, _ = np.linalg.svd(r_bh, full_matrices=False)
    return basis[:, values > 1e-10 * values[0]] if values[0] else basis[:, :0]


def sentence(certificate: Mapping[str, Any]) -> str:
    """Returns what an edit did to a folder, as a line for people."""
    totals, layers = certificate["summary"], ", ".join(map(str, certificate["layers"]))
    done, norm = totals["edit"], totals.get("norm")
    behind = ""
    if norm is not None:
        behind = (
            f", {100 * norm['energy_removed']:.1f} % behind the norm of queries, which scales the "
            f"rest up by {norm['reinflation']:.3g}"
        )
    return (
        f"Edited {totals['heads']} heads of layers {layers}: ||dW|| {done['dw_norm']:.4g}, median "
        f"energy removed {100 * done['energy_removed']:.1f} %{behind}."
    )
