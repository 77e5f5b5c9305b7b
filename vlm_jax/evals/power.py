"""What a comparison can find, said before it runs."""

import math

from vlm_jax.evals.base import Suite
from vlm_jax.evals.statistics import detectable_change

SHARES = (0.05, 0.1, 0.2)
"""Shares of answers that a method may change; which it will be is not known before."""


def foresight(name: str, suite: Suite) -> str:
    """One line: the least change of a share of answers that a benchmark's size lets one find.

    Answers are taken to be independent; those on one image are alike, so that it is a bound.

    ("pope", 3,000 questions) -> "pope: 3,000 answers on 500 items; ... 1.1, 1.6, 2.3 points if 5,
    10, 20 % of the answers change."; "none" where not even all of them in one direction are found.
    """
    examples = list(suite.examples())
    count, items = len(examples), len({suite.item(example) for example in examples})
    found = [detectable_change(share, count) for share in SHARES]
    shares = ", ".join(f"{100 * share:g}" for share in SHARES)
    answers = f"{count:,} answers" + (f" on {items:,} items" if items != count else "")
    if all(map(math.isnan, found)):
        return (
            f"{name}: {answers}, too few: no paired change is found with 80 % power if {shares} % "
            "of the answers change."
        )
    least = ", ".join("none" if math.isnan(one) else f"{100 * one:.1f}" for one in found)
    return (
        f"{name}: {answers}; least paired change that is found with 80 % power: {least} points if "
        f"{shares} % of the answers change."
    )
