"""Two processes on one machine convert, edit and evaluate, with the results of one.

They share the examples, or share one replica of the model.
"""

import json
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from convert import import_hf
from tests.children import ENVIRONMENT, ROOT
from vlm_jax import checkpoint
from vlm_jax.checkpoint import CERTIFICATE
from vlm_jax.jobs import edit, evaluate
from vlm_jax.study.request import Request

# Six starts of Python and jax: seconds on a quiet machine, minutes on a crowded one.
pytestmark = pytest.mark.timeout(900)
WORK, SHARED = "work", "shared_replica"
CONFIG = """
from configs import base


def get_config():
    config = base.get_config()
    config.compile_cache, config.bootstrap_draws = "off", 20
    config.max_new_tokens, config.batch_size = 6, 4
    config.edit.band, config.edit.k = (1, 1), 2
    scenes = {"set": "broken", "split": "test"}
    config.benchmarks.chair = {"kind": "testbed_chair", "n": 12, **scenes}
    gains = {"method": "functional_heads", "reasoning_to": 0.1, "perception_from": 0.5}
    config.arms = {"edited": {}, "gains": gains}
    return config
"""

ONE_AFTER_ANOTHER = """
import json
import sys
from vlm_jax.cli import main
from vlm_jax.parallel import processes

*flags, jobs = sys.argv[1:]
for words in json.loads(jobs):
    main([*flags, *words])
    processes.start = lambda *_: None  # these have met
"""
"""Jobs in processes that meet once: a start takes longer than what small models take."""


def both(
    *flags: str, timeout: int = 400, program: tuple[str, ...] = ("launch.py",)
) -> list[subprocess.CompletedProcess]:
    """Runs the command in two processes."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    common = [f"--coordinator=localhost:{port}", "--num_processes=2"]
    started = [
        subprocess.Popen(
            [sys.executable, *program, *common, f"--process_id={n}", *flags],
            cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for n in range(2)
    ]  # fmt: skip
    ended = []
    try:
        for process in started:
            out, err = process.communicate(timeout=timeout)
            ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    finally:
        for process in started:
            process.kill()
    return ended


def worked(*flags: str, **options) -> list[subprocess.CompletedProcess]:
    """Runs a job in two processes, which has to end well in both."""
    ended = both(*flags, **options)
    assert [process.returncode for process in ended] == [0, 0], [p.stderr for p in ended]
    return ended


@pytest.fixture(scope="module")
def made(tiny_llava, tmp_path_factory):
    """A folder that two processes have filled, and one that one process has."""
    two, one = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("one")
    (two / "small.py").write_text(CONFIG)
    settings = f"--config={two / 'small.py'}"
    jobs = [
        ("convert", tiny_llava, f"--target={two / 'converted'}"),
        ("edit", two / "converted", f"--target={two / 'edited'}"),
        ("evaluate", two / "converted", f"--workdir={two / WORK}"),
    ]
    words = [[f"--job={job}", settings, f"--source={of}", where] for job, of, where in jobs]
    said = worked(json.dumps(words), program=("-c", ONE_AFTER_ANOTHER))
    space: dict = {}
    exec(CONFIG, space)
    config = space["get_config"]()
    import_hf(tiny_llava, one / "converted", progress=False)
    edit.run(Request(config=config, source=one / "converted", target=one / "edited"))
    evaluate.run(Request(config=config, source=two / "converted", workdir=one / WORK))
    return two, one, said


@pytest.mark.parametrize("name", ["converted", "edited"])
def test_folders_are_those_that_one_process_makes(made, name):
    two, one, _ = made
    ours, theirs = (checkpoint.open_folder(folder / name) for folder in (two, one))
    expected = dict(theirs.stream())
    found = dict(ours.stream())
    assert found.keys() == expected.keys()
    for path, array in found.items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)
    assert not [path for path in two.iterdir() if "partial" in path.name]
    assert (two / "edited" / CERTIFICATE).exists()


@pytest.mark.parametrize("name", [WORK, pytest.param(SHARED, marks=pytest.mark.slow)])
def test_answers_and_results_are_those_of_one_process(made, name):
    two, one, _ = made
    if name == SHARED:
        worked(
            "--job=evaluate", f"--config={two / 'small.py'}", f"--source={two / 'converted'}",
            f"--workdir={two / SHARED}", "--config.mesh.model=2",
        )  # fmt: skip
    work, expected = two / name, one / WORK
    relative = lambda folder: sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))
    assert relative(work) == relative(expected)
    for name in relative(expected):
        path = pathlib.PurePath(name)
        if path.suffix in (".jsonl", ".md") or path.name == "answers.run.json":
            assert (work / name).read_bytes() == (expected / name).read_bytes(), name
    lines = (work / "answers.jsonl").read_text().splitlines()
    assert len({json.loads(line)["caption"] for line in lines}) > 3
    tables = [json.loads((f / "results.json").read_text()) for f in (work, expected)]
    assert tables[0]["device"] == "2 x CPU"
    for table in tables:
        assert set(table.pop("made")) == {"date", "command", "commit"}
        for arm in (table, *table["all"]["chair"].values()):
            arm.pop("device")
            arm["config"].pop("mesh")
    assert tables[0] == tables[1]


def test_both_processes_answer_and_the_first_speaks(made):
    first, second = made[2]
    assert "Results: " in first.stdout
    assert second.stdout == ""
    assert "unedited: 6 answers" in first.stderr
    assert "1 edit: 1 layer " in first.stderr
    assert not {"answers", "layer"} & set(second.stderr.split())


def test_what_fails_in_one_process_is_said_once_by_each(tmp_path):
    missing = tmp_path / "missing"
    missing.mkdir()  # a folder, and no model
    first, second = both("--job=convert", f"--source={missing}", f"--target={tmp_path / 'new'}")
    assert (first.returncode, second.returncode) == (1, 1)
    assert first.stderr.splitlines()[-1].startswith(f"error: {missing} is no Hugging Face folder")
    assert second.stderr.splitlines()[-1].startswith(f"error: process 0 failed: {missing} is no")


def test_a_fault_of_ours_in_one_process_ends_them_all(tiny_llava, tmp_path):
    program = """
import sys
import convert.jobs
from vlm_jax.cli import main

def fails(*_, **__):
    raise RuntimeError("a fault")

convert.jobs.import_hf = convert.import_hf = fails
main()
"""
    first, second = both(
        "--job=convert", f"--source={tiny_llava}", f"--target={tmp_path / 'new'}",
        timeout=60, program=("-c", program),
    )  # fmt: skip
    assert first.returncode == second.returncode == 1
    assert "RuntimeError: a fault" in first.stderr
    assert "process 0 is gone" in second.stderr
    assert "Traceback" not in second.stderr
