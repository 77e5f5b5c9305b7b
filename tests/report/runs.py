"""A run as `evaluate` leaves it on disk, made by hand: no model, no benchmark."""

import base64
import dataclasses
import io
import json
import pathlib

import numpy as np
import PIL.Image

from vlm_jax.evals.base import Metric
from vlm_jax.evals.comparison import Comparison, compare
from vlm_jax.evals.results import Results, write_json
from vlm_jax.evals.tallies import TallyTable
from vlm_jax.files import slug

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
CAPTION = "a dog</script><script>document.title='owned'</script> & a cät 🐈 on a cat"
FIELDS = ("captions", "hallucinated_captions", "gt_objects", "recalled_objects", "words")
METRICS = {
    "C_S": Metric(lambda t: t["hallucinated_captions"] / t["captions"], "low", primary=True),
    "recall": Metric(lambda t: t["recalled_objects"] / t["gt_objects"]),
    "length": Metric(lambda t: t["words"] / t["captions"], "", "words"),
}
QUESTIONS = {"accuracy": Metric(lambda t: t["recalled_objects"] / t["captions"], primary=True)}
ITEMS = 25
MAPS = ["mean of layer 0", "layer 0, head 1"]


def tallies(wrong: int, found: int, items: int = 200) -> TallyTable:
    """Captions of one object each: the first `wrong` hallucinate, the last `found` recall."""
    index = np.arange(items)
    columns = [np.ones(items), index < wrong, np.ones(items), index >= items - found]
    counts = np.stack([*columns, np.full(items, 10)], 1).astype(np.int64)
    return TallyTable(tuple(range(items)), FIELDS, counts)


def comparison(arm: str = HOSTILE) -> Comparison:
    """Of an arm that is better than its control, a random control, and an arm that is worse."""
    tables = {
        "unedited": {"broken": [tallies(120, 180)], "pope": [tallies(0, 100)]},
        arm: {"broken": [tallies(40, 178)], "pope": [tallies(0, 104)]},
        "R1": {
            "broken": [tallies(119, 180), tallies(121, 180)],
            "pope": [tallies(0, 99), tallies(0, 101)],
        },
        "worse": {"broken": [tallies(160, 120)], "pope": [tallies(0, 90)]},
    }
    sweep = {0.0: {"broken": tallies(120, 180)}, 2.0: {"broken": tallies(60, 90)}}
    metrics = {"broken": METRICS, "pope": QUESTIONS}
    return compare(tables, metrics, sweep=sweep, controls=[(arm, "R1", True)], draws=200)


def results(found: Comparison, benchmark: str, arm: str) -> Results:
    """An arm's own results."""
    own = next(one for one in found.arms if one.name == arm)
    return Results(
        benchmark,
        own.levels[benchmark],
        {"captions": 200},
        200,
        differences=own.changes.get(benchmark, {}),
        config={"note": HOSTILE, "source": "models/llava-0"},
        seeds={"run": 0},
        protocol="abc123",
    )


def write_run(folder: pathlib.Path, arm: str = HOSTILE) -> Comparison:
    """Writes a run's folder: results, items, galleries, attention, heads, spectra."""
    found = comparison(arm)
    document = found.document()
    document["arms"][arm] |= {"edit": {"k": 4, "heads": HOSTILE}, "matched_quantities": [SIZES]}
    document["arms"]["R1"] |= {"seeds": [7, 8]}
    document["failures"] = {"broken": {"9": HOSTILE}}
    top = results(found, "broken", "unedited").document()
    made = {"date": "2026-01-02T03:04:05+00:00", "command": f"vlm-jax {HOSTILE}", "commit": "c0"}
    write_json(folder / "results.json", {**top, "comparison": document, "made": made})
    for benchmark in found.items:
        for one in found.arms:
            place = folder / slug(benchmark) / slug(one.name)
            results(found, benchmark, one.name).write(place / "results.json")
            place = place / "seed_7" if one.draws > 1 else place
            rows = [_row(benchmark, n, one.name == arm) for n in range(ITEMS)]
            place.mkdir(parents=True, exist_ok=True)
            (place / "items.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
        (folder / slug(benchmark) / "gallery.json").write_text(json.dumps(_gallery(benchmark)))
    (folder / "broken" / "attention.json").write_text(json.dumps(_attention(arm)))
    (folder / "heads.json").write_text(json.dumps(HEADS))
    before, after = [2.0, 1.0, 0.5], [1.0, 0.8, 0.5]
    spectra = [{"layer": 3, "before": before, "after": after} for _ in range(2)]
    (folder / "edits.json").write_text(json.dumps({arm: spectra}))
    return found


SIZES = {"layers": [3], "heads": 2, "edit": {"rank": 4.0, "energy_touched": 0.5, "dw_norm": 3.5}}
SIZES["edit"] |= {"energy_removed": 0.38, "dw_relative": 0.1, "dm_norm": 1.0, "dm_relative": 0.2}
HEADS = {
    "sets": {"count": 1, "sensitive": [[0, 1], [1, 1]], "insensitive": [[1, 0]]},
    "scopes": {
        "row": {"effect_size_ln": [[0.1, 0.4], [-0.2, 0.0]], "contrast_ln": [[0, 1], [0, 0]]}
    },
    "masses": {"image": [[0.5, 0.4], [0.3, 0.2]], "text": [[0.5, 0.6], [0.7, 0.8]]},
}


def caption_row(number, answer, wrong=(), right=(), missed=()):
    """A line of `items.jsonl` of captions."""
    place = lambda word: {
        "word": word, "object": word, "start": answer.index(word),
        "end": answer.index(word) + len(word),
    }  # fmt: skip
    return {
        "id": number, "answer": answer, "missed": list(missed),
        "hallucinated": list(map(place, wrong)), "grounded": list(map(place, right)),
    }  # fmt: skip


def _row(benchmark: str, number: int, changed: bool) -> dict:
    if benchmark == "pope":
        return {"id": number, "answer": "Yes", "correct": changed or number % 2 == 0}
    if number == 3 and not changed:
        return caption_row(3, CAPTION, ["🐈"], ["dog"], ["car"])
    if not changed:
        return caption_row(number, "a dog and a cat", ["cat"], ["dog"])
    if number < 12:
        return caption_row(number, "a dog", [], ["dog"])
    return caption_row(number, "a cat", ["cat"], [])


def _gallery(benchmark: str) -> dict:
    held = io.BytesIO()
    PIL.Image.fromarray(np.full((64, 64, 3), 128, np.uint8)).save(held, "WEBP")
    url = f"data:image/webp;base64,{base64.b64encode(held.getvalue()).decode()}"
    truth = {"truth": "yes"} if benchmark == "pope" else {}
    examples = [{"id": n, "picture": 0, "prompt": HOSTILE, **truth} for n in range(ITEMS)]
    return {"total": ITEMS + 5, "pictures": [url], "examples": examples}


def _attention(arm: str) -> dict:
    cells = np.tile(np.array([0, 255, 0, 0, 0, 0], np.uint8), len(MAPS))
    word = {
        "start": 2, "end": 5, "maps": base64.b64encode(cells.tobytes()).decode(),
        "peak": [0.25, 0.5], "mass": [[0.6, 0.3, 0.1], [0.9, 0.1, 0.0]],
    }  # fmt: skip
    return {
        "maps": MAPS,
        "images": {"0": {"grid": [2, 3], "box": [0, 0, 1, 1]}},
        "arms": {"unedited": {"0": [word]}, arm: {"0": [word]}},
    }


def told_apart(found: Comparison) -> Comparison:
    """The same where the control's rank is small, as 19 draws make it."""
    contrast = found.contrasts[0]
    ranks = {name: dataclasses.replace(rank, p=0.05) for name, rank in contrast.ranks.items()}
    return dataclasses.replace(found, contrasts=(dataclasses.replace(contrast, ranks=ranks),))
