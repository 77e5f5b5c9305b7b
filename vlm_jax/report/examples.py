"""Examples to look at: each picture with the answers of every arm, words marked, mistakes told.

A run keeps the pictures of its examples in a gallery beside its answers, so that a report can be
made again without the benchmark: at most `LIMIT` examples of a benchmark and `PICTURE_BYTES` of
pictures. Where there are more, examples are taken evenly and the report says so.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image, ImageOps

from vlm_jax.evals.base import Example, Suite
from vlm_jax.evals.pictures import FORMATS, MAX_PIXELS
from vlm_jax.foreign import has_many_scans
from vlm_jax.report.stored import Rows
from vlm_jax.report.web import island, render

LIMIT = 300
PICTURE_BYTES = 1_000_000  # a benchmark; two of them and the charts' script stay below 5 MB
_EDGES = (256, 192, 128, 96, 64)
_SMALL = 96  # pictures of fewer pixels are enlarged, and kept sharper
_MISSED = 12

Gallery = Mapping[str, Any]
"""`total` examples that there were, `pictures` as data URLs, and `examples`: id, number of the
picture, what was asked, and the right answer where there is one."""


def gallery_of(suite: Suite, answered: Sequence[Any]) -> Gallery | None:
    """What a report shows of a benchmark's examples; None where nothing was answered.

    Args:
        suite: has the examples, with their pictures.
        answered: ids of the examples that some arm answered.
    """
    known = set(answered)
    asked = [one for one in suite.examples() if one.id in known]
    if not asked:
        return None
    shown = _evenly(asked, LIMIT)
    pictures = _pictures(shown)
    numbers = {picture: n for n, picture in enumerate(dict.fromkeys(pictures))}
    examples = [_asked(one, numbers[pictures[n]]) for n, one in enumerate(shown)]
    return {"total": len(asked), "pictures": list(numbers), "examples": examples}


def shown_of(gallery: Gallery) -> str:
    """How many of the examples are shown; "" where all are."""
    shown, total = len(gallery["examples"]), gallery["total"]
    return "" if shown == total else f"{shown} of {total} examples, taken evenly."


def _asked(example: Example, picture: int) -> dict[str, Any]:
    label = example.meta.get("label")
    truth = {} if label is None else {"truth": str(label)}
    return {"id": example.id, "picture": picture, "prompt": example.prompt, **truth}


@dataclass(frozen=True)
class Browser:
    """The examples of some benchmarks with every arm's answers; in a page, a browser of them.

    Attributes:
        data: what the page's script reads: `arms` and `benchmarks`.
    """

    data: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        found: Mapping[str, tuple[Gallery, Mapping[str, Rows], Mapping[str, Any] | None]],
        styles: Mapping[str, tuple[str, str, bool]],
    ) -> "Browser":
        """A browser.

        Args:
            found: benchmark -> its gallery; arm -> what was found in its answers, the unedited
                model first; where the model looked, if that was read.
            styles: arm -> colour, shape and whether hollow.
        """
        arms = [
            {"name": name, "colour": colour, "hollow": hollow}
            for name, (colour, _, hollow) in styles.items()
        ]
        benchmarks = [
            {
                "name": name,
                "pictures": gallery["pictures"],
                "items": [_item(one, rows, looked or {}) for one in gallery["examples"]],
                "maps": (looked or {}).get("maps", []),
            }
            for name, (gallery, rows, looked) in found.items()
        ]
        return cls({"arms": arms, "benchmarks": benchmarks})

    @property
    def content(self) -> Markup:
        """The data as JSON that no element can be ended by."""
        return island(self.data)

    def __html__(self) -> str:
        return render("examples.html.jinja", browser=self)


def _item(
    asked: Mapping[str, Any], arms: Mapping[str, Rows], looked: Mapping[str, Any]
) -> dict[str, Any]:
    identifier = asked["id"]
    found = {name: rows[identifier] for name, rows in arms.items() if identifier in rows}
    item: dict[str, Any] = {
        "id": str(identifier),
        "picture": asked["picture"],
        "answers": {name: _answer(row) for name, row in found.items()},
    }
    if all("hallucinated" not in row for row in found.values()):
        item["question"] = asked["prompt"]
        if "truth" in asked:
            item["truth"] = asked["truth"]
    seen = looked.get("images", {}).get(str(identifier))
    if seen is not None:
        item["seen"] = seen
        for name, words in looked["arms"].items():
            if name in item["answers"] and str(identifier) in words:
                item["answers"][name]["looked"] = words[str(identifier)]
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
    if image.width * image.height > MAX_PIXELS or has_many_scans(image):
        raise ValueError(f"{path} has too many pixels, or passes over them")
    image.draft("RGB", (2 * _EDGES[0], 2 * _EDGES[0]))  # a JPEG is read smaller
    return ImageOps.exif_transpose(image)  # as models see it
