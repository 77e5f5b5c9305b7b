"""lmms-eval's own POPE code on a small local task: our model in it, by its plug-in and by URL.

Runs where lmms-eval is installed, which is no dependency of the tests.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
from typing import Any

import pytest

from vlm_jax import hub
from vlm_jax.evals.score import score
from vlm_jax.evals.suites.pope import Pope
from vlm_jax.jobs import evaluate
from vlm_jax.study.request import Request
from vlm_jax.testbed.suites.testbed_pope import TestbedPope

needs_lmms = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed"
)
ROOT = pathlib.Path(__file__).parents[2]
SCENES = 6
ARM = {"method": "air", "heads": "identified", "visual_gain": 6.0, "text_gain": 0.0}

MORE = "," + ",".join(f"{name}={value}" for name, value in ARM.items())


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> pathlib.Path:
    """A folder with a POPE task of lmms-eval on drawn scenes, and the same as POPE's own files."""
    import datasets  # pyright: ignore[reportMissingImports]
    import lmms_eval  # pyright: ignore[reportMissingImports]

    folder = tmp_path_factory.mktemp("task")
    asked = list(TestbedPope("adversarial", "broken", "test", SCENES, pairs=2).examples())
    rows, truth = [], []
    (folder / "images").mkdir()
    for number, example in enumerate(asked):
        name, label = f"{example.meta['image']}.png", example.meta["label"]
        example.images[0].save(folder / "images" / name)
        question = example.meta["question"]
        rows.append({"question_id": str(number), "question": question, "answer": label,
                     "image": example.images[0], "image_source": name})  # fmt: skip
        truth.append({"question_id": number, "image": name, "text": question, "label": label})
    (folder / "truth.jsonl").write_text("".join(json.dumps(row) + "\n" for row in truth))
    pictures = datasets.Features({**{n: datasets.Value("string") for n in rows[0]},
                                  "image": datasets.Image()})  # fmt: skip
    datasets.Dataset.from_list(rows, pictures).to_parquet(folder / "test.parquet")
    own = pathlib.Path(lmms_eval.__file__).parent / "tasks" / "pope"
    shutil.copy(own / "utils.py", folder / "utils.py")
    text = (own / "pope_adv.yaml").read_text()
    for old, new in (
        ("dataset_path: lmms-lab-encoder/POPE\ndataset_name: Full\n", "dataset_path: parquet\n"),
        ("  token: True\n", f"  data_files: {{test: {folder / 'test.parquet'}}}\n"),
        ('task: "pope_adv"', 'task: "pope_drawn"'),
        ("test_split: adversarial", "test_split: test"),
        ('"\\nAnswer the question using a single word or phrase."', '""'),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "pope_drawn.yaml").write_text(text)
    return folder


def run_lmms(task: pathlib.Path, out: pathlib.Path, model: str, arguments: str) -> dict[str, Any]:
    """What lmms-eval's command found: its results, and the path of its samples."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    about = out / "of_tests-0.dist-info"  # an installation of this very tree names the model
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: of_tests\nVersion: 0\n")
    listed = "\n".join(f"{n} = {v}" for n, v in points["lmms_eval.models"].items())
    (about / "entry_points.txt").write_text(f"[lmms_eval.models]\n{listed}\n")
    words = ["--model", model, "--model_args", arguments, "--tasks", "pope_drawn", "--log_samples",
             "--include_path", str(task), "--output_path", str(out / "out")]  # fmt: skip
    paths = os.pathsep.join((str(out), str(ROOT)))
    home = str(out / "home")
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HOME": home, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "lmms_eval", *words],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (out / "out").is_dir(), done.stderr[-3000:]  # its code is 0 even so
    (results,) = (out / "out").rglob("*_results.json")
    (samples,) = (out / "out").rglob("*_samples_*.jsonl")
    found = json.loads(results.read_text())["results"]["pope_drawn"]
    return {"samples": samples, **{name.partition(",")[0]: v for name, v in found.items()}}


@pytest.fixture(scope="module")
def ours(task) -> pathlib.Path:
    """The folder of our own job on the same questions, with an arm."""
    from configs import base

    config: Any = base.get_config()
    config.max_new_tokens, config.arms = 128, {"air": ARM}
    config.benchmarks = {"pope": {"kind": "pope", "images": str(task / "images"), "suffix": "",
                                  "questions": str(task / "truth.jsonl")}}  # fmt: skip
    workdir = task / "ours"
    evaluate.run(Request(config=config, source=hub.resolve("llava-0"), workdir=workdir))
    return workdir / "pope"


def texts(path: pathlib.Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def same_score(found, task: pathlib.Path) -> None:
    """lmms-eval's own figures are ours of its file of samples."""
    suite = Pope(None, task / "truth.jsonl")
    read = score(found["samples"], task / "truth.jsonl", rules={"parser": "lmms"}).results
    assert read.n == len(list(suite.examples()))
    for theirs, name in (("accuracy", "accuracy"), ("precision", "precision"),
                         ("recall", "recall"), ("f1_score", "F1")):  # fmt: skip
        assert read.metrics[name].value == pytest.approx(found[f"pope_{theirs}"])


@needs_lmms
@pytest.mark.parametrize(("arm", "more"), [("unedited", ""), ("air", MORE)])
def test_the_plug_in_answers_as_our_job(task, ours, tmp_path, arm, more):
    found = run_lmms(task, tmp_path, "vlm_jax", f"pretrained=llava-0{more}")
    rows = [json.loads(line) for line in found["samples"].read_text().splitlines()]
    rows.sort(key=lambda row: row["doc_id"])
    assert [row["filtered_resps"] for row in rows] == texts(ours / arm / "answers.jsonl")
    same_score(found, task)


@needs_lmms
@pytest.mark.parametrize("arm", ["unedited", "air"])
def test_the_server_answers_as_our_job(served, task, ours, tmp_path, arm):
    """By lmms-eval's own client of OpenAI's API, which sends pictures as PNG."""
    where = f"base_url={served},api_key=none,timeout=300,num_concurrent=8"
    found = run_lmms(task, tmp_path, "openai", f"model_version={arm},{where}")
    rows = [json.loads(line) for line in found["samples"].read_text().splitlines()]
    rows.sort(key=lambda row: row["doc_id"])
    assert [row["filtered_resps"] for row in rows] == texts(ours / arm / "answers.jsonl")
    same_score(found, task)


@pytest.fixture(scope="module")
def served():
    """The address of our server of the same model and arm."""
    import uvicorn

    from configs import base
    from vlm_jax.decoding import DecodeSettings
    from vlm_jax.jobs import serve
    from vlm_jax.serving.app import make_app
    from vlm_jax.serving.batcher import Batcher

    config: Any = base.get_config()
    config.arms = {"air": ARM}
    arms = serve.read_arms(Request(config=config, source=hub.resolve("llava-0")))
    app = make_app(arms, Batcher(), DecodeSettings(), treat=lambda model, method: model)
    found = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [found]})
    thread.start()
    yield f"http://127.0.0.1:{found.getsockname()[1]}/v1"
    server.should_exit = True
    thread.join(60)
