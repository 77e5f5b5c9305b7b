"""Yes/no verdicts of benchmarks other than POPE: named rules, with what they found on the way."""

from collections.abc import Mapping
from typing import Any

from vlm_jax.evals.final_answer import final, yes_no
from vlm_jax.evals.pope import PARSERS

RULES = ("vlmevalkit", "lmms_mme", "rucaibox", "reasoning", "contains_yes", "exact")


def verdict(answer: str, rule: str) -> tuple[str, Mapping[str, Any]]:
    """An answer's verdict ("yes", "no", "unknown") and what is recorded of how it was found.

    Args:
        answer: the text.
        rule: one of `RULES`: a parser of POPE's, "reasoning" (see `final_answer`), "contains_yes"
            (yes if the word is anywhere, else no) or "exact" ("Yes" or "No" and nothing else).
    """
    found = final(answer)
    if rule == "reasoning":
        said = yes_no(found.segment)
    elif rule == "contains_yes":
        said = "yes" if "yes" in answer.lower() else "no"
    elif rule == "exact":
        said = {"Yes": "yes", "No": "no"}.get(answer, "unknown")
    else:
        said = PARSERS[rule](answer, "yes")
    return said, {
        "verdict": said,
        "rule": found.rule if rule == "reasoning" else rule,
        "unparsable": said == "unknown",
        "truncated": found.truncated,
    }
