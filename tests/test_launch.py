"""The command line: what is wrong with it is one line and exit code 1."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.children import ENVIRONMENT, ROOT


def run(
    *words: str, cwd: pathlib.Path = ROOT, python=("launch.py",)
) -> subprocess.CompletedProcess:
    """Runs the command with these words in a process of its own."""
    command = [sys.executable, *python, *words]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)


def test_launch_is_the_command():
    ran = run("--job=evaluate", "--config=configs/testbed.py:huge")
    assert ran.returncode == 1
    assert not ran.stdout
    assert ran.stderr == (
        "evaluate (settings: configs/testbed.py:huge) ...\n"
        "error: --config=configs/testbed.py:huge: configs/testbed.py takes no argument or "
        "'demo', not 'huge'.\n"
    )


def test_an_error_of_a_job_is_one_line_after_what_it_was_about_to_do():
    ran = run("--job=edit", "--source=llava-0,llava-1", "--target=c")
    assert ran.returncode == 1
    assert ran.stderr.splitlines() == [
        "edit llava-0, llava-1 (settings: edit) ...",
        "error: This job reads one model; --source names 2.",
    ]


def test_the_module_is_the_command_from_any_folder(tmp_path):
    ran = run("--version", cwd=tmp_path, python=("-m", "vlm_jax"))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("vlm_jax 0.")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_what_there_is_and_succeeds(flag):
    ran = run(flag)
    assert (ran.returncode, ran.stderr) == (0, "")
    for word in ("evaluate ", "train_llava ", "--workdir", "llava-0", "air ", "qwen2_5_vl", "pope"):
        assert word in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 120


def test_an_interrupt_is_one_line(tmp_path):
    # Stopped while JAX is imported: the first line is out, the job has not begun.
    command = [sys.executable, "launch.py", "--job=convert", "--source=llava-0"]
    command.append(f"--target={tmp_path / 'model'}")
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "convert llava-0 (settings: base) ...\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)
    assert said == ("", "interrupted\n")
    assert process.returncode == 130
