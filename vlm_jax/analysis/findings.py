"""What ablations and readings of many captions say about heads, as JSON values and as lines."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax.analysis.effects import (
    Effects,
    effect_sizes,
    jaccard,
    ranking,
    spearman,
    stability,
)
from vlm_jax.attention.steering import Readings
from vlm_jax.errors import ConfigError
from vlm_jax.steering.calibration import Calibration, calibrate
from vlm_jax.steering.heads import HeadSets


def describe(
    found: Mapping[str, np.ndarray], scopes: Sequence[str], count: int, shape: tuple[int, int]
) -> dict[str, Any]:
    """Returns what was found as JSON values: head sets, effects by scope, and how sure they are.

    Args:
        found: arrays of all captions: `sample`, `hallucinated` [m], `drop_<scope>` and
            `slope_<scope>` [m, L, N], the fields of `Readings` [answers, L, N], and `drop_mean`
            [m, L, N] where heads were ablated to their means too.
        scopes: where heads were zeroed; the first ranks them.
        count: heads in the head set.
        shape: (layers, query heads).

    Raises:
        ConfigError: the captions have no hallucinated or no grounded mention.
    """
    wrong_m, sample_m = found["hallucinated"], found["sample"]
    if not wrong_m.any() or wrong_m.all():
        raise ConfigError(
            f"the captions have {wrong_m.sum()} hallucinated and {(~wrong_m).sum()} grounded "
            "tokens, but effects need both; ask for more captions (config.benchmarks)."
        )
    measure = lambda key: _effects(found[key], wrong_m, sample_m, count)
    by_scope = {}
    for scope in scopes:
        quick = effect_sizes(found[f"slope_{scope}"], wrong_m)
        effects, described = measure(f"drop_{scope}")
        by_scope[scope] = {**described, "first_order": _agreement(quick, effects, count)}
    control = {}
    if "drop_mean" in found:
        effects, described = measure("drop_mean")
        zero = effect_sizes(found["drop_row"], wrong_m)
        control["mean_ablation"] = {
            "over": f"the rows that predict the {len(wrong_m)} measured tokens",
            **described,
            "zero_ablation": _agreement(effects, zero, count),
        }
    calibration = _calibration(found)
    calibration.log()
    sets = _head_sets(by_scope[scopes[0]], calibration, count, shape)
    return {
        "kind": "head sets",
        "sets": sets.document(),
        "tokens": {"hallucinated": int(wrong_m.sum()), "grounded": int((~wrong_m).sum())},
        "captions": {"made": calibration.answers, "measured": len(np.unique(sample_m))},
        "scopes": by_scope,
        **control,
        "overlap_of_scopes": _scope_overlap(by_scope, count),
        "masses": {
            name: getattr(calibration, f"{name}_ln").round(6).tolist()
            for name in ("image", "text", "system")
        },
        "selected_share": calibration.selected,
    }


def _head_sets(
    effects: Mapping[str, Any], calibration: Calibration, count: int, shape: tuple[int, int]
) -> HeadSets:
    """Returns the sets of heads that effects of one scope, and readings, tell apart."""
    size_ln = np.asarray(effects["effect_size_ln"])
    half = size_ln.size // 2
    return HeadSets(
        "",
        shape,
        sensitive=ranking(size_ln)[:half],
        insensitive=ranking(-np.asarray(effects["contrast_ln"]))[:half],
        inert=ranking(-np.abs(size_ln))[:half],
        count=count,
        perception=calibration.perception,
        reasoning=calibration.reasoning,
        perception_ln=calibration.perception_ln,
        reasoning_ln=calibration.reasoning_ln,
        system_mass_ln=calibration.system_ln,
    )


def _effects(
    drop_mln: np.ndarray, wrong_m: np.ndarray, sample_m: np.ndarray, count: int
) -> tuple[Effects, dict[str, Any]]:
    """Returns effect sizes, and as JSON values the ranking and how stable it is."""
    effects = effect_sizes(drop_mln, wrong_m)
    halves = stability(drop_mln, wrong_m, sample_m, count)
    return effects, {
        "effect_size_ln": effects.size_ln.tolist(),
        "contrast_ln": effects.contrast_ln.tolist(),
        "ranking": [list(head) for head in ranking(effects.size_ln)],
        "stability": {"count": count, "jaccard_between_halves": halves},
    }


def _agreement(one: Effects, other: Effects, count: int) -> dict[str, float]:
    """How far two ways to measure the heads agree."""
    tops = (ranking(effects.size_ln)[:count] for effects in (one, other))
    return {
        "rank_correlation_of_contrast": spearman(one.contrast_ln, other.contrast_ln),
        "rank_correlation_of_effect_size": spearman(one.size_ln, other.size_ln),
        "jaccard_of_top": jaccard(*tops),
    }


def _calibration(found: Mapping[str, np.ndarray]) -> Calibration:
    names = [field.name for field in dataclasses.fields(Readings)]
    rows = zip(*(found[name] for name in names))
    return calibrate(Readings(**dict(zip(names, row))) for row in rows)


def _scope_overlap(scopes: Mapping[str, Any], count: int) -> float | None:
    tops = [[tuple(head) for head in scope["ranking"][:count]] for scope in scopes.values()]
    return jaccard(*tops) if len(tops) == 2 else None


def show(document: Mapping[str, Any]) -> None:
    """Prints the heads and how sure they are."""
    tokens, captions = document["tokens"], document["captions"]
    print(
        f"{captions['made']} captions, {captions['measured']} measured: "
        f"{tokens['hallucinated']} hallucinated and {tokens['grounded']} grounded tokens."
    )
    for name, scope in document["scopes"].items():
        sure, quick = scope["stability"], scope["first_order"]
        heads = scope["ranking"][: sure["count"]]
        listed = ", ".join(
            f"({layer}, {head}) {scope['effect_size_ln'][layer][head]:+.2f}"
            for layer, head in heads[:8]
        )
        shared = sure["jaccard_between_halves"]
        halves = "-" if shared is None else f"{shared:.2f}"
        print(
            f"{name}: {listed}; halves agree {halves}, rank correlation with first order "
            f"{quick['rank_correlation_of_contrast']:.2f}."
        )
    if control := document.get("mean_ablation"):
        zero = control["zero_ablation"]
        print(
            f"Heads as their mean over {control['over']}: rank correlation with zero ablation "
            f"{zero['rank_correlation_of_contrast']:.2f}, {zero['jaccard_of_top']:.2f} of the top "
            "shared."
        )
    sets = document["sets"]
    print(
        f"{len(sets['perception'])} perception and {len(sets['reasoning'])} reasoning heads by "
        f"majority; {document['selected_share']:.1%} of heads selected in a mean row."
    )
