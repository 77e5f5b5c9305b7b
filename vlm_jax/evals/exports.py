"""Answers in the layouts of other harnesses, so that their scorers and ours read the same file.

    samples_pope.jsonl    lmms-eval: a line a question, "doc", "target", "filtered_resps"
    model_POPE.xlsx       VLMEvalKit: a row a question, "index", "question", "answer", "prediction"

`Suite.document` says under which names a harness's data has what an example asks. `score` reads
both back to the same score.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_jax.errors import AnswersError
from vlm_jax.evals.base import Example, Suite
from vlm_jax.files import replace_file
from vlm_jax.settings import listed, one_of

_MAX_CELL = 32_767  # characters of an Excel cell
# What Excel's XML cannot hold or reads as something else: control characters, lone carriage
# returns, escapes.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\ufffe\uffff]|_x[0-9A-Fa-f]{4}_")

Answered = Sequence[tuple[Example, str]]
"""Examples with their answers, in order."""


def layouts(name: str, value: Any) -> tuple[str, ...]:
    """Returns the layouts of a setting that names one or lists some.

    Raises:
        ConfigError: one is unknown.
    """
    return listed(name, value, each=one_of, known=tuple(LAYOUTS), alone=True)


def export(
    folder: str | Path,
    suite: Suite,
    texts: Mapping[Any, str],
    metrics: Mapping[str, float],
    chosen: Sequence[str],
    model: str = "model",
) -> list[Path]:
    """Writes answers in some layouts, each in a folder of its name.

    Args:
        folder: where to.
        suite: the benchmark.
        texts: id of an example -> its answer; examples without one are left out.
        metrics: our values by name.
        chosen: layouts, keys of `LAYOUTS`.
        model: what the model is called.

    Returns:
        The files.
    """
    answered = [(one, texts[one.id]) for one in suite.examples() if one.id in texts]
    made: list[Path] = []
    for layout in chosen:
        made += LAYOUTS[layout](Path(folder) / layout, suite, answered, metrics, model)
    return made


def write_lmms_eval(
    folder: Path, suite: Suite, answered: Answered, metrics: Mapping[str, float], model: str
) -> list[Path]:
    """Writes lmms-eval's samples, and its `results.json` with our values.

    A metric has lmms-eval's name only where `Suite.lmms_metrics` says that they mean the same.
    """
    task = suite.harness_names["lmms_eval"]
    places = {one.id: place for place, one in enumerate(suite.examples())}
    lines = []
    for example, answer in answered:
        document = suite.document(example)
        line = {
            "doc_id": places[example.id],
            "doc": document,
            "target": str(document.get("answer", document.get("gt_answer", ""))),
            "input": example.prompt,
            "resps": [[answer]],
            "filtered_resps": [answer],
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    names = suite.lmms_metrics()
    values = {f"{names.get(name, name)},none": value for name, value in metrics.items()}
    document = {
        "results": {task: {"alias": task, **values}},
        "configs": {task: {"task": task, "rules": suite.rules()}},
        "model_name": model,
        "n-samples": {task: {"original": len(places), "effective": len(answered)}},
    }
    samples, results = folder / f"samples_{task}.jsonl", folder / "results.json"
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(samples, "".join(lines))
    replace_file(results, json.dumps(document, indent=2) + "\n")
    return [samples, results]


def write_vlmevalkit(
    folder: Path, suite: Suite, answered: Answered, metrics: Mapping[str, float], model: str
) -> list[Path]:
    """Writes VLMEvalKit's sheet of predictions.

    It is a TSV, which VLMEvalKit writes by PRED_FORMAT=tsv, where an answer is longer than a cell
    of Excel's or holds what its XML cannot.

    Raises:
        AnswersError: openpyxl is not installed.
    """
    rows = []
    for number, (example, answer) in enumerate(answered):
        cells = {name: _cell(value) for name, value in suite.document(example).items()}
        renamed = {suite.sheet_names.get(name, name): cell for name, cell in cells.items()}
        rows.append({"index": number, **renamed, "prediction": answer})
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "prediction"))
    columns.append("prediction")
    table = [columns, *([row.get(name, "") for name in columns] for row in rows)]
    name = f"{model}_{suite.harness_names['vlmevalkit']}"
    texts = (cell for row in table for cell in row if isinstance(cell, str))
    folder.mkdir(parents=True, exist_ok=True)
    if any(len(text) > _MAX_CELL or _UNSAFE.search(text) for text in texts):
        path, content = folder / f"{name}.tsv", _tsv(table)
    else:
        path, content = folder / f"{name}.xlsx", _xlsx(table)
    replace_file(path, content)
    return [path]


def _cell(value: Any) -> Any:
    """A value that a cell holds: a number or text; lists as JSON."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return value if isinstance(value, int | float) else str(value)


def _tsv(table: Sequence[Sequence[Any]]) -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC).writerows(
        table
    )
    return out.getvalue().encode()


def _xlsx(table: Sequence[Sequence[Any]]) -> bytes:
    try:
        import openpyxl
    except ImportError:
        raise AnswersError(
            "VLMEvalKit's layout is an xlsx file: install openpyxl to write it "
            "(pip install 'vlm_jax[data]')."
        ) from None
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for number, row in enumerate(table, 1):
        for place, value in enumerate(row, 1):
            cell = sheet.cell(number, place, value if value != "" else None)
            if isinstance(value, str) and value:
                cell.data_type = "s"  # "=1+1" is what a model said, no formula
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


LAYOUTS: dict[str, Callable[..., list[Path]]] = {
    "lmms_eval": write_lmms_eval,
    "vlmevalkit": write_vlmevalkit,
}
"""Layout -> what writes it."""
