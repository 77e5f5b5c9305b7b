"""The words of a command, in this process: which job is called, and with what."""

import logging
import os
import pathlib
import subprocess
import sys
import warnings

import absl.logging
import pytest

from tests.children import ENVIRONMENT, ROOT
from vlm_jax import hub
from vlm_jax.cli import listing, logs, main


@pytest.fixture(autouse=True)
def root_logger():
    """The command takes what libraries log; later tests have what was there before."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])


@pytest.fixture
def asked(monkeypatch):
    """The requests that jobs are called with; they do nothing."""
    requests = []
    noted = lambda job: lambda request: requests.append((job, request))
    monkeypatch.setattr(listing.Job, "load", noted)
    return requests


@pytest.mark.parametrize(
    "words",
    [
        ["--job=edit", "--source=llava-0", "--target=t", "--config.edit.k=2"],
        ["--job", "edit", "--source", "llava-0", "--target", "t", "--config.edit.k", "2"],
        ["-job", "edit", "-source=llava-0", "-target", "t", "-config.edit.k=2"],
        ["--config=edit", "--config.edit.k=2", "--target=t", "--source=llava-0", "--job=edit"],
    ],
)
def test_a_blank_is_as_good_as_a_sign(words, asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main([*words, "--num_processes=1"])
    [(job, request)] = asked
    assert job.name == "edit"
    assert request.source == hub.SHIPPED / "llava-0"
    assert request.target == pathlib.Path("t")
    assert request.config.edit.k == 2
    assert "restrength" in request.config


@pytest.mark.parametrize(
    ("job", "config"),
    [("evaluate", "testbed"), ("train", "train_llava"), ("convert", "base"), ("sweep", "sweep")],
)
def test_a_job_has_a_config_of_its_own(job, config):
    assert listing.jobs()[job].config == config


@pytest.mark.parametrize("job", ["evaluate", "sweep", "identify"])
def test_the_testbeds_questions_are_asked_of_other_models_only_if_named(asked, job, tmp_path):
    words = [f"--job={job}", f"--source={tmp_path}", f"--workdir={tmp_path / 'w'}"]
    alone = "--num_processes=1"
    with pytest.raises(SystemExit, match="was not trained on the testbed") as caught:
        main([*words, alone])
    assert "\n" not in str(caught.value)
    for config in listing.jobs()[job].others:
        assert f"--config={config}" in str(caught.value)
        main([*words, alone, f"--config={config}"])
    main([*words, alone, f"--config={listing.jobs()[job].config}"])
    main([f"--job={job}", "--source=llava-0", alone])
    assert len(asked) == len(listing.jobs()[job].others) + 2


def test_several_sources_are_all_found_first(asked):
    main(["--job=evaluate", "--source=llava-0,llava-1", "--num_processes=1"])
    assert asked[0][1].sources == (hub.SHIPPED / "llava-0", hub.SHIPPED / "llava-1")
    main(["evaluate", "llava-0,llava-1", "--num_processes=1"])
    main(["evaluate", "llava-0", "llava-1", "--num_processes=1"])
    assert asked[0][1].sources == asked[1][1].sources == asked.pop()[1].sources
    asked.pop()
    with pytest.raises(SystemExit, match="error: llava-9 is not a folder"):
        main(["--job=evaluate", "--source=llava-0,llava-9", "--num_processes=1"])
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=edit"], "--job is missing: one of "),
        (["--job=evalute"], "There is no job 'evalute' (did you mean 'evaluate'?): one of "),
        (["--job=edit", "--sorce=a"], "There is no flag --sorce (did you mean 'source'?); see "),
        (["--job=edit", "--images=a"], "no flag --images (did you mean --config.images?); see "),
        (["--job=edit", "--strength=1"], "--strength (did you mean --config.edit.strength?); see"),
        (["--job=edit", "--cnfig=a"], "There is no flag --cnfig (did you mean 'config'?); see "),
        (["--job=edit", "--source=llava-0", "b"], "Unexpected word 'b': settings are flags, see "),
        (["edti", "llava-0"], "There is no job 'edti' (did you mean 'edit'?): one of "),
        (["--job=edit", "--target"], "--target has no value; write --target=<value>."),
        (["--job=score", "--workdir="], "--workdir has no value; write --workdir=<value>."),
        (["--job=score", "--workdir=a\0b"], "is no path"),
        (["--job=score", "--workdir=\ud83d"], "is no path"),
        (["--job=edit", "--config.edit.k"], "--config.edit.k has no value; write --config.edit.k="),
        (["--job=edit", "--config=edit", "--config=fold"], "--config is given twice: 'edit' and"),
        (["--job=edit", "--num_processes=x"], "flag --num_processes=x: "),
        (["--job=edit", "--config.k=2"], "no setting 'k' (did you mean 'edit.k'?)"),
        (["--job=edit"], "This job needs --source."),
    ],
)
def test_wrong_words_are_one_line_with_the_nearest(words, message):
    with pytest.raises(SystemExit) as ended:
        main([*words, *["--num_processes=1"] * ("--num_processes=x" not in words)])
    text = str(ended.value.code)
    assert text.startswith("error: ")
    assert message in text
    assert "\n" not in text


def test_folders_are_looked_at_before_any_work(asked, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for words, message in (
        ([f"--workdir={link / 'in'}"], f"cannot be made: {link} is a link that leads nowhere."),
        ([f"--target={tmp_path}"], "exists already; remove it or name another --target."),
        ([f"--workdir={file}"], f"cannot be a folder: {file} is a file."),
        ([f"--workdir={file / 'in' / 'it'}"], f"cannot be a folder: {file} is a file."),
        ([f"--target={file / 'in'}"], f"cannot be a folder: {file} is a file."),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["--job=edit", "--source=llava-0", *words])
        assert message in str(ended.value.code)
    assert not asked


def test_every_list_of_the_help_has_a_line_for_each():
    for found in (listing.config_lines(), listing.methods(), listing.families()):
        assert found
        assert all(found.values()), found
    assert all(job.line for job in listing.jobs().values())
    assert {"convert", "edit", "evaluate", "export", "generate", "score"} <= set(listing.jobs())


def test_help_is_a_word_too_and_a_value_of_that_name_is_none(asked, capsys):
    main(["help"])
    assert "vlm-jax JOB MODEL" in capsys.readouterr().out
    main(["generate", "llava-0", "--config.prompt", "help", "--num_processes=1"])
    assert asked[0][1].config.prompt == "help"


def test_helpfull_shows_the_settings_of_the_config_that_is_named(capsys):
    main(["--helpfull", "--config=edit", "--config.edit.k=7"])
    shown = capsys.readouterr().out
    assert "--config.edit.k=7" in shown
    assert "--config.restrength=None" in shown


def test_what_is_logged_is_a_line_without_a_date(capsys):
    logs.start(-1)
    absl.logging.warning("the model has %d positions", 9)
    logging.getLogger("vlm_jax.api").warning("cut")
    logging.getLogger("vlm_jax.api").info("read")
    assert capsys.readouterr().err == "warning: the model has 9 positions\nwarning: cut\n"


def test_a_reader_that_goes_away_is_no_error():
    command = [sys.executable, "-m", "vlm_jax", "--help"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=hub.SHIPPED
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.readline()
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 141


def test_a_message_is_one_line_of_a_bounded_length():
    with pytest.raises(SystemExit) as ended:
        main(["--job=edit", "--source=" + "a" * 9000 + "\nb\x1b[2J", "--num_processes=1"])
    text = str(ended.value.code)
    assert len(text) < 2500
    assert text.isprintable()


def test_benchmarks_that_are_no_sections_are_refused_by_the_job(asked):
    main(["--job=evaluate", "--source=llava-0", "--config.benchmarks.a=1", "--num_processes=1"])
    assert asked


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("JAX_PLATFORMS", "nonsense", "JAX finds no device with JAX_PLATFORMS='nonsense'"),
        ("JAX_NUM_CPU_DEVICES", "x", "JAX does not start: Invalid value"),
    ],
)
def test_variables_that_jax_cannot_read_are_one_line(variable, value, message, tmp_path):
    command = [sys.executable, "-m", "vlm_jax", "generate", "llava-0"]
    found = {**os.environ, variable: value}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=found)
    assert done.returncode == 1
    assert done.stderr.splitlines()[1].startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 2


INTERRUPTED = """
import os, signal, time
import vlm_jax.__main__ as command
from vlm_jax.cli import listing

class Quiet:  # its end is where Python ignores errors, as in jax's collection of garbage
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

def work(request):
    Quiet()
    time.sleep(20)  # ends with the interrupt that is sent again

listing.Job.load = lambda job: work
command.main(["revert", "llava-0", "--target=t", "--num_processes=1"])
"""


@pytest.mark.slow
def test_an_interrupt_that_python_ignores_is_sent_again(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], cwd=tmp_path, capture_output=True, timeout=60
    )
    assert done.returncode == 130
    assert done.stderr.decode().splitlines()[1:] == ["interrupted"]


@pytest.mark.parametrize("place", ["import", "end"])
def test_an_interrupt_before_and_behind_the_job_is_one_line(place, tmp_path):
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    call = "command.main(['--version'])" if place == "end" else "pass"
    code = f"import vlm_jax.__main__ as command; {call}; {kill}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (130, b"interrupted\n")


def test_a_home_that_the_shell_left_in_a_word_is_the_users(asked, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    truth = "--truth=~/a.json,~/b.json"
    words = ["generate", "llava-0", "--workdir=~/out", "--config.images=~/a.jpg,b.jpg"]
    main([*words, "--answers=~/x.jsonl", truth, "--config.requests=~/r.jsonl"])
    [(_, request)] = asked
    assert request.workdir == tmp_path / "out"
    assert request.answers == tmp_path / "x.jsonl"
    assert request.truth == (tmp_path / "a.json", tmp_path / "b.json")
    assert request.config.images == (f"{tmp_path}/a.jpg", "b.jpg")
    assert request.config.requests == f"{tmp_path}/r.jsonl"


def test_a_closed_stream_is_not_the_next_file(tmp_path):
    script = (
        "from vlm_jax.cli import listing, main\n"
        "def job(self):\n"
        "    import os, pathlib\n"
        "    def run(request):\n"
        "        with open(request.workdir, 'w') as file:\n"
        "            os.write(2, b'of a library')\n"
        "            file.write('an answer')\n"
        "    return run\n"
        "listing.Job.load = job\n"
        f"main(['score', '--answers=a', '--truth=b', '--workdir={tmp_path / 'log'}'])\n"
    )
    command = f'"{sys.executable}" -c "$1" 2>&-'
    done = subprocess.run(
        ["sh", "-c", command, "sh", script], cwd=ROOT, env=ENVIRONMENT, capture_output=True
    )
    assert done.returncode == 0
    assert done.stdout == b""
    assert (tmp_path / "log").read_text() == "an answer"


def test_a_warning_of_python_is_a_line(capsys):
    logs.start(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.start(-1)
        warnings.warn("a cache\nis full", stacklevel=1)
    assert capsys.readouterr().err == "warning: a cache is full\n"
