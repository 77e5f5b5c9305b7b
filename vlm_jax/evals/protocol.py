"""What must be equal for two results to be comparable, part by part, and what differs.

A protocol's parts are short JSON values, or hashes of long ones:

    {"benchmark": "pope", "parser": "rucaibox", "ids": "3000 of 5be1...", "max_new_tokens": 16}
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

from vlm_jax.errors import AnswersError
from vlm_jax.evals.results import Results, protocol_hash

_SHORT = 80
MODEL_PARTS = ("template", "pixels")
"""Parts that are of a model's folder: models of several families have several."""


def parts_of(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a protocol: its values, long ones as their number of entries and a hash."""
    return {name: _short(value) for name, value in sorted(protocol.items())}


def differing(
    first: Mapping[str, Any], second: Mapping[str, Any], without: Collection[str] = ()
) -> str:
    """What differs between the parts of two protocols, in words; "" where nothing does.

    ({"parser": "vcd", "n": 1}, {"parser": "lmms", "n": 1}) -> "parser is 'vcd' and 'lmms'".
    """
    names = [name for name in dict.fromkeys([*first, *second]) if name not in without]
    return "; ".join(
        f"{name} is {first.get(name)!r} and {second.get(name)!r}"
        for name in names
        if first.get(name) != second.get(name)
    )


def refuse_incomparable(first: Results, second: Results, names: tuple[str, str]) -> None:
    """Refuses to compare results that were not made alike.

    Args:
        first, second: the results.
        names: what a reader calls them, such as their files.

    Raises:
        AnswersError: one line that says what differs.
    """
    if first.protocol == second.protocol:
        return
    what = differing(first.protocol_parts, second.protocol_parts) or (
        f"their protocols are {first.protocol or 'unknown'} and {second.protocol or 'unknown'}"
    )
    raise AnswersError(f"{names[0]} and {names[1]} cannot be compared: {what}.")


def _short(value: Any) -> Any:
    if len(json.dumps(value)) <= _SHORT:
        return value
    hashed = protocol_hash({"of": value})
    return f"{len(value)} of {hashed}" if isinstance(value, list) else hashed
