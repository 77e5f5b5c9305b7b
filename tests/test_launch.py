"""The command line: what is wrong with it is one line and exit code 1."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--job=evaluate", "--config=configs/testbed.py:huge"],
            "error: --config=configs/testbed.py:huge: configs/testbed.py takes no argument or "
            "'demo', not 'huge'.",
        ),
        (["--job=evaluate", "--config=configs/none.py"], "No such file or directory"),
        (["--job=evaluate", "--config.sed=1"], "error: the config has no setting 'sed'; configs/"),
        (["--job=edit", "--source=a,b", "--target=c"], "reads one model; --source names 2."),
        (["--job=edit"], "error: This job needs --source."),
    ],
)
def test_a_wrong_command_line_is_one_line(flags, message):
    command = [sys.executable, "launch.py", *flags]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 1
    assert message in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert not ran.stdout
