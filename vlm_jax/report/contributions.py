"""A page on where answers come from: each token by source, and each source by head."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlm_jax.report.charts import bars, maps
from vlm_jax.report.tables import Section, Table, number

_TOKENS = 32  # bars of one plot
_SCOPES = {
    "row": "gates at the row that predicts each token",
    "all": "gates at all rows, so that what earlier rows took from a part counts too",
}
BARS_NOTE = (
    "Support of each token by what heads read from each part of the input, in nats: above the line "
    "the token leans on it, below it speaks against the token. To first order, what the token's "
    "log-probability loses without it; a token that is certain has little to lose."
)
MAPS_NOTE = (
    "The same by layer and head, the mean over the answer's tokens: blue supports them, orange "
    "speaks against them."
)


@dataclass(frozen=True)
class Support:
    """One answer.

    Attributes:
        name: of the request.
        prompt: what was asked.
        tokens: the answer, piece by piece.
        sources: what heads read from.
        support_mlns: support of each token by each head's reading of each source.
    """

    name: str
    prompt: str
    tokens: Sequence[str]
    sources: Sequence[str]
    support_mlns: np.ndarray

    @property
    def by_token(self) -> np.ndarray:
        """[tokens, sources], summed over heads."""
        return self.support_mlns.sum((1, 2), dtype=np.float64)

    @property
    def shares(self) -> dict[str, float]:
        """Each source's share of the mean |support| of single heads; they add up to 1."""
        size_s = np.abs(self.support_mlns).mean((0, 1, 2), dtype=np.float64)
        total = size_s.sum() or 1.0
        return {name: float(size / total) for name, size in zip(self.sources, size_s)}


def sections(one: Support) -> list[Section]:
    """The plots of one answer."""
    found = []
    for start in range(0, len(one.tokens), _TOKENS):
        part = slice(start, start + _TOKENS)
        values = dict(zip(one.sources, one.by_token[part].T.tolist()))
        heading = f"{one.name}: {one.prompt}" if not start else f"{one.name}, from token {start}"
        plot = bars(one.tokens[part], values, "support, nats", title=heading)
        found.append(Section(heading, plot, "" if start else BARS_NOTE))
    mean_lns = one.support_mlns.mean(0, dtype=np.float64)
    panels = {name: mean_lns[..., n].tolist() for n, name in enumerate(one.sources)}
    heading = f"{one.name}, by head"
    return [*found, Section(heading, maps(panels, "head", "layer", title=heading), MAPS_NOTE)]


def table(all_of: Sequence[Support], scope: str) -> Table:
    """The share of every source in every answer, heads gated at "row" or at "all" rows."""
    rows = [
        [one.name, str(len(one.tokens)), *(number(share) for share in one.shares.values())]
        for one in all_of
    ]
    return Table(
        "Where answers come from",
        ["answer", "tokens", *(f"{name}, %" for name in all_of[0].sources)],
        rows,
        [f"Shares of the mean absolute support of single heads; {_SCOPES[scope]}."],
    )
