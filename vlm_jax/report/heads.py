"""What is known of heads and of the products of their weights: maps, spectra, the certificate."""

import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from vlm_jax.report.charts import COLOURS, SOFT, Mark, Series, lines, maps
from vlm_jax.report.comparison import styles_of
from vlm_jax.report.stored import EDITS, HEADS, Run
from vlm_jax.report.tables import Section, Table

_LAYERS = 9  # panels of spectra
_MODES = 32
EFFECT_NOTE = (
    "By layer and head, zeroed where an object word is predicted. Effect size: the mean change of "
    "the word's log-probability over its spread. Contrast: how much more hallucinated words lose "
    "than grounded ones; heads that favour hallucination are high."
)
MASS_NOTE = "Mean share of attention on the image, on text behind it, and on what stands before."
SPECTRA_NOTE = (
    "Singular values of the query-key products of edited layers, strongest first: median over "
    "heads, and their range; grey before the edit, coloured after it."
)


def head_sections(run: Run, part: str) -> list[Section]:
    """The maps of heads and the spectra that a run's folder holds.

    Args:
        run: whose `heads.json`, `edits.json`, and outputs of `explain` are read.
        part: of the page.
    """
    known = run.document(HEADS)
    return [
        *([] if known is None else _of_heads(known, part)),
        *_contributions(run.document("contributions.json"), part),
        *_spectra(run, part),
        *_certificates(run, part),
    ]


def _of_heads(known: Mapping[str, Any], part: str) -> list[Section]:
    sets = known.get("sets", {})
    count = sets.get("count", 0)
    outlined = {
        name: [tuple(head) for head in sets.get(name, ())[:count]]
        for name in ("sensitive", "insensitive")
    }
    outlined = {name: heads for name, heads in outlined.items() if heads}
    found = []
    scope = known.get("scopes", {}).get("row")
    if scope is not None:
        panels = {"effect size": scope["effect_size_ln"], "contrast": scope["contrast_ln"]}
        title = "What zeroing a head does to object words"
        chart = maps(panels, "head", "layer", title=title, outlined=outlined, alike=False)
        found.append(Section(title, chart, EFFECT_NOTE, part))
    masses = known.get("masses") or {}
    if masses:
        title = "Where heads look while captions are written"
        chart = maps(masses, "head", "layer", title=title, outlined=outlined)
        found.append(Section(title, chart, MASS_NOTE, part))
    return found


def _contributions(document: Mapping[str, Any] | None, part: str) -> list[Section]:
    """The mean support of answers' tokens by each head, where `explain` wrote it here."""
    if document is None or "by_head" not in document:
        return []
    title = "Which heads support the tokens of answers"
    chart = maps(document["by_head"], "head", "layer", title=title)
    note = "Mean support in nats by what heads read from each part of the input."
    return [Section(title, chart, note, part)]


def _spectra(run: Run, part: str) -> list[Section]:
    found, styles = [], styles_of(run.comparison)
    for arm, heads in (run.document(EDITS) or {}).items():
        if not _told_about(run, arm):
            continue
        coloured = ("before", SOFT), ("after", styles[arm][0] if arm in styles else COLOURS[0])
        layers = sorted({head["layer"] for head in heads})
        some = layers[:: -(-len(layers) // _LAYERS)]
        panels = {}
        for layer in some:
            own = [head for head in heads if head["layer"] == layer]
            panels[f"layer {layer}, {len(own)} heads"] = [
                Series(when, _curve([head[when] for head in own], when), colour, line=True)
                for when, colour in coloured
            ]
        if panels:
            title = f"{arm}: query-key spectra before and after"
            chart = lines(panels, "mode", "singular value", title=title)
            note = SPECTRA_NOTE
            if len(some) < len(layers):
                note += f" {len(some)} of {len(layers)} layers."
            found.append(Section(title, chart, note, part))
    return found


def _told_about(run: Run, arm: str) -> bool:
    """Whether an arm's edit is shown: of a sweep's many, that of the setting that was chosen."""
    return run.sweep is None or arm == run.sweep.chosen


def _curve(values: Sequence[Sequence[float]], when: str) -> list[Mark]:
    marks = []
    for mode, column in enumerate(zip(*(one[:_MODES] for one in values)), 1):
        middle, low, high = median(column), min(column), max(column)
        text = f"mode {mode} {when}: {middle:.3g} ({low:.3g} to {high:.3g})"
        marks.append(Mark(mode, middle, low, high, text))
    return marks


def _certificates(run: Run, part: str) -> list[Section]:
    """What was done to the weights, by arm that edits them and is no control."""
    controls = {contrast.control for contrast in run.comparison.contrasts}
    rows = []
    for arm, edit in run.edits.items():
        if arm in controls or not run.sizes.get(arm) or not _told_about(run, arm):
            continue
        sizes = dict(run.sizes[arm][0])
        done = sizes.get("edit", {})
        settings = {k: v for k, v in edit.items() if v not in (None, "", False)}
        listed = {
            "settings": ", ".join(f"{k}={json.dumps(v)}" for k, v in settings.items()),
            "layers": ", ".join(map(str, sizes.get("layers", ()))),
            "heads": str(sizes.get("heads", "")),
            "modes a head (median)": f"{done.get('rank', 0):g}",
            "energy of the modes acted on": f"{100 * done.get('energy_touched', 0):.1f} %",
            "energy removed (median)": f"{100 * done.get('energy_removed', 0):.1f} %",
            "norm of the change of query weights": f"{done.get('dw_norm', 0):.4g}",
            "the same, of theirs (median)": f"{100 * done.get('dw_relative', 0):.2f} %",
        }
        rows += [[f"{arm}: {name}", value] for name, value in listed.items()]
    if not rows:
        return []
    table = Table(
        "Certificate", ["arm: what", "value"], rows, ["What the edit did to the weights."]
    )
    return [table.section(part)]
