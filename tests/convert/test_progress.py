"""The progress line: amounts, rate and time left, on terminals and in files."""

import io
import sys
import time

import pytest

from vlm_jax.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_terminal_rewrites_one_line_a_second(clock):
    out = Terminal()
    with Progress(3_000_000_000, "B", "importing", stream=out) as meter:
        for _ in range(10):
            clock[0] += 0.25
            meter.advance(100_000_000)
    shown = out.getvalue().split("\r")
    assert shown[1] == "importing: 400 MB of 3 GB, 13%, 400 MB/s, 6.5 s left"
    assert len(shown) == 4  # at one second, at two, and at the end
    assert shown[-1].rstrip(" ").startswith("importing: 1 GB in 2.5 s (400 MB/s)")
    assert shown[-1].endswith("\n")


def test_what_is_printed_takes_a_line_of_its_own(clock, monkeypatch):
    both = Terminal()
    monkeypatch.setattr("sys.stdout", both)
    with Progress(4, "answers", stream=both) as meter:
        meter.advance()
        clock[0] += 2
        meter.advance()
        print("[a] a cup")
        print("[b] a fork")
    line = "2 of 4 answers, 50%, 0.5 answers/s, 4.0 s left"
    blank = " " * len(line)
    assert both.getvalue().startswith(f"\r{line}\r{blank}\r[a] a cup\n[b] a fork\n\r2 answers in")
    assert sys.stdout is both


def test_files_get_plain_lines_every_ten_seconds(clock):
    out = io.StringIO()
    with Progress(100, "images", stream=out) as meter:
        for _ in range(50):
            clock[0] += 0.5
            meter.advance()
    assert out.getvalue().splitlines() == [
        "20 of 100 images, 20%, 2 images/s, 40 s left",
        "40 of 100 images, 40%, 2 images/s, 30 s left",
        "50 images in 25 s (2 images/s)",
    ]


def test_unknown_total_and_long_times(clock):
    out = Terminal()
    with Progress(None, "tokens", stream=out) as meter:
        meter.advance(0)
        clock[0] += 90
        meter.advance(9)
    assert "9 tokens, 0.1 tokens/s" in out.getvalue()
    assert "9 tokens in 1 min 30 s" in out.getvalue()
    with Progress(10_000, "steps", stream=out) as meter:
        meter.advance(0)
        clock[0] += 3600
        meter.advance(5_000)
    assert "1 h 00 min left" in out.getvalue()


def test_a_first_step_that_compiles_says_nothing_of_the_rest(clock):
    out = Terminal()
    with Progress(6000, "answers", stream=out) as meter:
        for seconds in (16, 1, 1):
            clock[0] += seconds
            meter.advance(2000)
    assert out.getvalue().replace(" ", "").split("\r")[1:] == [
        "2000of6000answers,33%",
        "4000of6000answers,67%,2000answers/s,1.0sleft",
        "6000of6000answers,100%,2000answers/s,0.0sleft",
        "6000answersin18s(333answers/s)\n",
    ]


def test_what_failed_is_not_counted_as_done(clock):
    out = io.StringIO()
    with Progress(5, "answers", stream=out) as meter:
        clock[0] += 4
        meter.advance(5, failed=3)
    assert out.getvalue() == "2 answers in 4.0 s (0.5 answers/s), 3 failed\n"


def test_silent_and_failed(clock):
    out = Terminal()
    with Progress(5, "steps", enabled=False, stream=out) as meter:
        clock[0] += 5
        meter.advance(5)
    assert meter.done == 5
    assert out.getvalue() == ""
    meter = Progress(5, "steps", stream=out)
    clock[0] += 5
    meter.advance(1)
    meter.close(failed=True)
    assert " in " not in out.getvalue()
    assert out.getvalue().endswith("\n")


def test_what_is_brief_is_not_worth_a_line(clock):
    out = io.StringIO()
    for seconds in (0.5, 2.0):
        with Progress(1, "tensors", "qk", stream=out, brief=True) as meter:
            clock[0] += seconds
            meter.advance()
    assert out.getvalue() == "qk: 1 tensor in 2.0 s (0.5 tensors/s)\n"
