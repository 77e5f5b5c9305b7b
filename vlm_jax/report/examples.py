"""Examples to look at: each picture with the answers of every arm, words marked, mistakes told.

An example browser holds at most `LIMIT` examples of a benchmark and `PICTURE_BYTES` of pictures;
where there are more, examples are taken evenly and the section says so.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_jax.evals.base import Example, Suite
from vlm_jax.evals.pictures import FORMATS, MAX_PIXELS
from vlm_jax.report.tables import Section

LIMIT = 300
PICTURE_BYTES = 1_000_000  # a benchmark; two of them and the charts' script stay below 5 MB
_EDGES = (256, 192, 128, 96, 64)
_SMALL = 96  # pictures of fewer pixels are enlarged, and kept sharper
_MISSED = 12

Rows = Mapping[Any, Mapping[str, Any]]
"""Id -> a line of `items.jsonl`."""


def read_items(path: Path) -> Rows:
    """Returns what was found in the answers of an arm, by id; none where the file is not there."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = (json.loads(line) for line in lines if line.strip())
    return {row["id"]: row for row in rows}


def examples_section(name: str, suite: Suite, arms: Mapping[str, Rows]) -> Section | None:
    """A browser of a benchmark's examples; None where nothing was answered.

    Args:
        name: of the benchmark.
        suite: has the examples, with their pictures.
        arms: arm -> what was found in its answers, the unedited model first.
    """
    answered = [one for one in suite.examples() if any(one.id in rows for rows in arms.values())]
    if not answered:
        return None
    shown = _evenly(answered, LIMIT)
    pictures = _pictures(shown)
    numbers = {picture: n for n, picture in enumerate(dict.fromkeys(pictures))}
    items = [_item(one, numbers[pictures[n]], arms) for n, one in enumerate(shown)]
    data = {"arms": list(arms), "pictures": list(numbers), "items": items}
    content = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    note = "Keys: j and k or the arrows go from example to example, / searches."
    if len(shown) < len(answered):
        note = f"{len(shown)} of {len(answered)} examples, taken evenly. {note}"
    body = f"<div class=examples><script type=application/json>{content}</script></div>"
    return Section(f"{name}: examples", body, note)


def _item(example: Example, picture: int, arms: Mapping[str, Rows]) -> dict[str, Any]:
    found = {name: rows[example.id] for name, rows in arms.items() if example.id in rows}
    item: dict[str, Any] = {
        "id": str(example.id),
        "picture": picture,
        "answers": {name: _answer(row) for name, row in found.items()},
    }
    if all("hallucinated" not in row for row in found.values()):
        item["question"] = example.prompt
        if "label" in example.meta:
            item["truth"] = f"right answer: {example.meta['label']}"
    return item


def _answer(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the browser shows of an answer."""
    answer: dict[str, Any] = {"text": row.get("answer", "")}
    places = lambda words: [[word["start"], word["end"], word["object"]] for word in words]
    if "hallucinated" in row:
        answer |= {"wrong": places(row["hallucinated"]), "right": places(row["grounded"])}
        if row.get("missed"):
            answer["missed"] = list(row["missed"])[:_MISSED]
    elif "correct" in row:
        answer["ok"] = bool(row["correct"])
    elif "correct" in row.get("counts", {}):
        answer["ok"] = bool(row["counts"]["correct"])
    return answer


def _evenly(everything: Sequence[Example], limit: int) -> list[Example]:
    """At most `limit` of them, taken evenly: of 5, 2 are the first and the third."""
    if len(everything) <= limit:
        return list(everything)
    return [everything[n * len(everything) // limit] for n in range(limit)]


def _pictures(examples: Sequence[Example]) -> list[str]:
    """A data URL an example, "" where there is no picture.

    All together take at most `PICTURE_BYTES`: the edge is halved until they do, and where the
    smallest are still too large the last ones are left out.
    """
    found: list[str] = []
    for edge in _EDGES:
        cache: dict[Any, str] = {}
        found = []
        for one in examples:
            key = one.images[0] if one.images else None
            key = str(key) if isinstance(key, str | Path) else id(key)
            if key not in cache:
                cache[key] = _picture(one.images[0], edge) if one.images else ""
            found.append(cache[key])
        if sum(map(len, set(found))) <= PICTURE_BYTES:
            return found
    room, kept = PICTURE_BYTES, {}
    for data in dict.fromkeys(found):
        room -= len(data)
        kept[data] = data if room >= 0 else ""
    return [kept[data] for data in found]


def _picture(source: Any, edge: int) -> str:
    try:
        image = source if isinstance(source, Image.Image) else _open(Path(source))
        image = image.convert("RGB")
        image.thumbnail((edge, edge))
    except (OSError, TypeError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    held = io.BytesIO()
    image.save(held, "WEBP", quality=85 if max(image.size) <= _SMALL else 60)
    return f"data:image/webp;base64,{base64.b64encode(held.getvalue()).decode()}"


def _open(path: Path) -> Image.Image:
    image = Image.open(path, formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{path} has too many pixels")
    image.draft("RGB", (2 * _EDGES[0], 2 * _EDGES[0]))  # a JPEG is read smaller
    return image
