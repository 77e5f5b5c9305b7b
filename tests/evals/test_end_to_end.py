"""From files with pictures inside to scores of a model; and a benchmark of another package."""

import base64
import io
import json
import sys

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from vlm_jax.decoding import DecodeSettings
from vlm_jax.errors import AnswersError, ConfigError
from vlm_jax.evals.runner import run
from vlm_jax.evals.score import score
from vlm_jax.evals.suites import SUITES, benchmarks, read_benchmark

COLOURS = ("red", "green", "blue")


def png(colour: str) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (32, 24), colour).save(made, "PNG")
    return made.getvalue()


def tsv(path):
    lines = ["index\timage\tquestion\tanswer\tcategory\tA\tB"]
    for n, colour in enumerate(COLOURS):
        picture = base64.b64encode(png(colour)).decode()
        lines.append(f"{n}\t{picture}\tWhich colour?\tA\tcolours\t{colour}\tblack")
    path.write_text("\n".join(lines) + "\n")


def parquet(path):
    rows = [
        {"index": n, "image": {"bytes": png(colour), "path": None}, "question": "Which colour?",
         "answer": "A", "category": "colours", "A": colour, "B": "black"}
        for n, colour in enumerate(COLOURS)
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("write", [tsv, parquet])
def test_a_model_answers_about_pictures_inside_a_file(llava_vlm, tmp_path, write):
    truth = tmp_path / f"mmstar.{write.__name__}"
    write(truth)
    section = {"kind": "mmstar", "truth": str(truth), "images": "embedded"}
    suite = read_benchmark("mmstar", section)
    pictures = [example.images[0].convert("RGB").getpixel((0, 0)) for example in suite.examples()]
    assert pictures == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    path = tmp_path / "answers.jsonl"
    settings = DecodeSettings(max_new_tokens=2, batch_size=4)
    found = run(llava_vlm, suite, path, identity={}, settings=settings)
    assert [judged.counts["questions"] for judged in found.judged.values()] == [1, 1, 1]
    assert found.table().totals()["truncated"] == 3  # no answer ends within two tokens
    assert all(json.loads(line)["cut_off"] for line in path.read_text().splitlines())
    scored = score(path, truth, "mmstar", max_unparsable=1, draws=5)
    assert scored.judged.keys() == {0, 1, 2}


def test_a_cell_that_is_no_picture_names_its_row(tmp_path):
    truth = tmp_path / "mmstar.tsv"
    tsv(truth)
    truth.write_text(truth.read_text().replace(base64.b64encode(png("green")).decode(), "A" * 80))
    section = {"kind": "mmstar", "truth": str(truth), "images": "embedded"}
    with pytest.raises((AnswersError, ConfigError), match="line 3: image is no picture"):
        read_benchmark("mmstar", section)


SUITE = '''
"""Whether a number is even."""
from vlm_jax.evals.base import Judged, Metric
from vlm_jax.evals.questions import QuestionSuite
from vlm_jax.evals.base import Example
from vlm_jax.evals.tallies import ratio

class Parity(QuestionSuite):
    name = "parity"

    def example(self, row):
        return Example(row.fields["id"], (), row.fields["question"], {"label": row.fields["label"]})

    def judge(self, example, answer):
        right = int(answer.strip() == example.meta["label"])
        return Judged(example, {"questions": 1, "correct": right}, {"correct": right})

    def metrics(self, totals):
        return {"accuracy": Metric(lambda t: ratio(t["correct"], t["questions"]), primary=True)}
'''


def test_a_benchmark_of_another_package(tmp_path, monkeypatch, write):
    """An installed package adds one by an entry point; nothing of this one names it."""
    about = tmp_path / "site" / "elsewhere-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Name: elsewhere\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[vlm_jax.benchmarks]\nparity = elsewhere:Parity\n")
    (tmp_path / "site" / "elsewhere.py").write_text(SUITE)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    try:
        assert benchmarks()["parity"] == "from elsewhere"
        assert SUITES.find("parity").name == "parity"
        truth = write("t.jsonl", [{"id": n, "question": f"{n}?", "label": "even" if n % 2 == 0
                                   else "odd"} for n in range(4)])  # fmt: skip
        answers = write("a.jsonl", [{"id": n, "text": "even"} for n in range(4)])
        results = score(answers, truth, "parity", draws=5).results
        assert results.metrics["accuracy"].value == 0.5
        with pytest.raises(ConfigError, match="did you mean 'parity'"):
            SUITES.find("parrity")
    finally:
        sys.modules.pop("elsewhere", None)
