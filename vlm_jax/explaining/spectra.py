"""Spectra of query-key products: singular values, alignment, symmetry, rotation, localisation."""

import dataclasses
import functools
from typing import Any

import numpy as np

from vlm_jax.analysis.spectra import THETAS, VARIANCES, Spectra, gaussian_energy, spectra
from vlm_jax.edits.qk.folder import image_rope
from vlm_jax.explaining.base import Analysis, Finding, Subject
from vlm_jax.report.tables import Table
from vlm_jax.settings import setting, whole
from vlm_jax.steering.layers import layer_range

_DIGITS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectraSettings:
    """Settings of the analysis.

    Attributes:
        layers: first and last; None is all.
        modes: how many of the strongest are told about.
    """

    layers: Any = None
    modes: int = setting(4, whole, low=1, high=1 << 12)


@dataclasses.dataclass(frozen=True, repr=False)
class FoundSpectra(Finding):
    """The spectra of a model's products.

    Attributes:
        spectra: of the layers that were asked for.
    """

    spectra: Spectra

    @functools.cached_property
    def by_chance(self) -> float:
        """Share of the energy that as many modes hold in Gaussian weights of this shape."""
        found = self.spectra
        return gaussian_energy(found.width, found.values_lnm.shape[-1], found.modes)

    def document(self) -> dict[str, Any]:
        """See `Finding`."""
        found = self.spectra
        curves = {word: _rounded(found.curves(word)) for word in VARIANCES}
        return {
            "layers": list(found.layers),
            "modes": found.modes,
            "singular_values": _rounded(found.values_lnm),
            "energy": _rounded(found.energy_lnm),
            "energy_of_gaussian_weights": self.by_chance,
            "alignment": _rounded(found.alignment_lnm),
            "stable_rank": _rounded(found.stable_rank_ln),
            "symmetry": _rounded(found.symmetry_ln),
            "overlap": _rounded(found.overlap_ln),
            "rope_capture": _rounded(found.capture_ln),
            "trace": _rounded(found.trace_ln),
            "squared_trace": _rounded(found.squared_trace_ln),
            "localisation": {"theta": THETAS.tolist(), **curves},
            "regime": found.regimes(),
        }

    def tables(self) -> list[Table]:
        """See `Finding`."""
        found = self.spectra
        modes = min(found.modes, found.values_lnm.shape[-1])
        columns = {
            "s_1": found.values_lnm[..., 0],
            "stable rank": found.stable_rank_ln,
            f"energy of {modes}": found.energy_lnm[..., modes - 1],
            "u.v of mode 1": found.alignment_lnm[..., 0],
            "symmetry": found.symmetry_ln,
            "overlap": found.overlap_ln,
            "rotated": found.capture_ln,
            "tr W": found.trace_ln,
            "tr S^2": found.squared_trace_ln,
        }
        peaks = [THETAS[found.curves(word).argmax(-1)] for word in VARIANCES]
        columns |= {f"peak, {word}": peak for word, peak in zip(VARIANCES, peaks)}
        rows = [
            [str(layer), *(f"{np.median(values[n]):.3g}" for values in columns.values())]
            for n, layer in enumerate(found.layers)
        ]
        return [
            Table(
                "Query-key products: medians over the heads of a layer",
                ["layer", *columns],
                rows,
                [
                    f"energy of {modes}: {np.median(found.energy_lnm[..., modes - 1]):.3g} is the "
                    f"median over all heads, and {self.by_chance:.3g} the mean of Gaussian weights "
                    "of their shape.",
                    "u.v: 1 attracts what is alike, -1 repels it, 0 reads different things.",
                    f"rotated: energy that the {modes} strongest modes keep at the offsets of text "
                    "behind an image, over the best possible.",
                    "peak: relative depth of the keys at which the localisation curve is highest, "
                    "by the exact variance and by the one that is printed in AIR's supplement.",
                ],
            )
        ]


def run(subject: Subject, settings: SpectraSettings) -> FoundSpectra:
    """Reads the weights a layer at a time; the model is not loaded."""
    depth = subject.config.decoder.num_layers
    chosen = range(depth)
    if settings.layers is not None:
        chosen = layer_range("layers", settings.layers, depth)
    rope = image_rope(subject.config)
    layers = (subject.layer(index) for index in chosen)
    return FoundSpectra(spectra(layers, rope, indices=chosen, modes=settings.modes))


def _rounded(values: np.ndarray) -> list:
    """A JSON list of numbers with few digits each."""
    exponent = np.floor(np.log10(np.abs(values), where=values != 0, out=np.zeros(values.shape)))
    scale = 10.0 ** (_DIGITS - 1 - exponent)
    return (np.round(values * scale) / scale).tolist()


ANALYSIS = Analysis(
    "Query-key products of every head: modes, alignment, symmetry, rotation, localisation.",
    SpectraSettings,
    run,
)
