"""A judge that fails in every way a server can, asked over a real socket."""

import asyncio
import fcntl
import json
import os
import signal
import socket
import threading
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from configs import base
from tests.evals.small import SMALL
from vlm_jax.errors import AnswersError, ConfigError, UserError
from vlm_jax.evals.judge import Judge
from vlm_jax.evals.score import score
from vlm_jax.jobs import judge
from vlm_jax.study.request import Request

WANTED = {"a dog": 1.0, "a cat": 0.3, "": 0.0}


class Server:
    """What it answers is what `script` has next for a question, in the end the right grade.

    Attributes:
        bodies: requests, in the order in which they came.
        keys: what they were sent with.
    """

    def __init__(self):
        self.bodies, self.keys, self.script = [], [], {}

    async def chat(self, request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization"))
        row = body["messages"][0]["content"].splitlines()[-1]
        question, truth, said, _ = (cell.strip() for cell in row.split(" | "))
        assert truth == "a dog <OR> a hound"
        waiting = self.script.get(question, [])
        if waiting:
            return waiting.pop(0)
        return reply(str(WANTED[said]))


def reply(text: Any) -> Response:
    return JSONResponse({"choices": [{"message": {"role": "assistant", "content": text}}]})


@pytest.fixture(scope="module")
def running():
    server = Server()
    app = Starlette(routes=[Route("/v1/chat/completions", server.chat, methods=["POST"])])
    found = socket.create_server(("127.0.0.1", 0))
    served = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=served.run, kwargs={"sockets": [found]})
    thread.start()
    yield server, f"http://127.0.0.1:{found.getsockname()[1]}/v1"
    served.should_exit = True
    thread.join(30)


@pytest.fixture
def asked(running, write, tmp_path, monkeypatch):
    """The server, and a request that asks it."""
    server, url = running
    server.__init__()
    config: Any = base.get_config()
    config.judge.update({"url": url, "model": "strict", "wait_s": 0.01, "retries": 3})
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    one = SMALL["mmvet"]
    answers, truth = write("a.jsonl", one.answers), write("t.jsonl", one.truth)
    return server, Request(config=config, answers=answers, truth=(truth,), workdir=tmp_path / "w")


def test_grades_are_read_back_as_a_published_file(asked, capsys):
    server, request = asked
    judge.run(request)
    grades = request.workdir / "grades.json"
    assert json.loads(grades.read_text())["v1_1"] == {
        "model": ["strict"], "content": ["0.3"], "score": [0.3]}  # fmt: skip
    found = score(request.answers, list(request.truth), rules={"grades": str(grades)}, draws=5)
    assert found.results.metrics["total"].value == pytest.approx(1.3 / 3)
    own = json.loads((request.workdir / "results.json").read_text())
    assert own["metrics"]["total"]["value"] == pytest.approx(1.3 / 3)
    assert own["config"]["judge"].startswith("strict ")
    assert "total" in capsys.readouterr().out
    assert set(server.keys) == {"Bearer secret"}
    assert {body["model"] for body in server.bodies} == {"strict"}


def test_what_passes_is_tried_again(asked):
    server, request = asked
    again = JSONResponse({"error": {"message": "slow down"}}, 429, {"Retry-After": "0"})
    server.script = {"What 0?": [again, Response("<html>", 502), reply("I would say good.")],
                     "What 1?": [Response("no JSON"), reply(None), reply("1.7")]}  # fmt: skip
    judge.run(request)
    assert len(server.bodies) == 3 + 3 + 3


def test_a_judge_that_never_grades_is_one_line_and_the_rest_is_kept(asked):
    server, request = asked
    server.script = {"What 1?": [reply("Hm.")] * 4}
    with pytest.raises(AnswersError, match=r"1 of 3 grades are missing, the first of v1_1: its re"):
        judge.run(request)
    assert len(server.bodies) == 2 + 4
    log = request.workdir / "grades.jsonl"
    log.write_text(log.read_text() + '{"key": "torn')  # as a kill leaves it
    judge.run(request)  # goes on: one question is left
    assert len(server.bodies) == 2 + 4 + 1
    judge.run(request)
    assert len(server.bodies) == 7
    request.config.judge.temperature = 0.5  # another way of asking is another judge
    judge.run(request)
    assert len(server.bodies) == 10


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (JSONResponse({"error": {"message": "no\nkey"}}, 401), "status 401: 'no key'"),
        (JSONResponse({"detail": "x" * 5000}, 404), "status 404"),
        (RedirectResponse("http://127.0.0.1:9/elsewhere", 307), "status 307"),
    ],
)
def test_a_judge_that_refuses_is_asked_no_more(asked, answer, message):
    server, request = asked
    request.config.judge.parallel = 1
    server.script = {f"What {n}?": [answer] for n in range(3)}
    with pytest.raises(ConfigError, match=message) as error:
        judge.run(request)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
    assert len(server.bodies) == 1


def test_nobody_there_a_large_reply_and_settings(asked):
    server, request = asked
    server.script = {"What 0?": [Response(b"{" * (2 << 20))] * 4}
    with pytest.raises(AnswersError, match="ValueError: 'a reply of more than 1048576 bytes'"):
        judge.run(request)
    request.config.judge.url = "http://127.0.0.1:9/v1"
    request.config.judge.retries = 0
    request.config.judge.temperature = 1.0
    with pytest.raises(AnswersError, match="3 of 3 grades are missing"):
        judge.run(request)
    request.config.judge.url = "file:///etc/passwd"
    with pytest.raises(ConfigError, match=r"Set config\.judge\.url to the judge's API"):
        judge.run(request)


def test_an_answer_is_shown_in_bounds_and_without_its_thinking(asked, write):
    server, request = asked
    rows = SMALL["mmvet"].answers
    rows = [rows[0] | {"text": "<think>a cat | or\nso</think>\n" + "a dog"}, *rows[1:]]
    write("a.jsonl", rows)
    request.config.judge.runs = 2
    judge.run(request)
    assert len(server.bodies) == 6
    assert json.loads((request.workdir / "grades.json").read_text())["v1_0"]["score"] == [1, 1]


def test_a_key_that_no_header_takes_is_refused_unsaid(asked, monkeypatch):
    server, request = asked
    monkeypatch.setenv("OPENAI_API_KEY", "secret\nof two lines")
    with pytest.raises(ConfigError, match="variable OPENAI_API_KEY holds a character") as error:
        judge.run(request)
    assert "secret" not in str(error.value)
    monkeypatch.setenv("OPENAI_API_KEY", "secret\n")  # as a file's content is set
    judge.run(request)
    assert set(server.keys) == {"Bearer secret"}


@pytest.mark.parametrize("url", ["http://", "http://[::1", "http://a:99999", "http://a b/v1"])
def test_what_is_no_address_is_refused_before_anything_is_asked(asked, url):
    _, request = asked
    request.config.judge.url = url
    with pytest.raises(ConfigError, match=r"Set config\.judge\.url"):
        judge.run(request)


def test_a_wait_that_is_no_number_is_not_waited_for(asked):
    server, request = asked
    server.script = {"What 0?": [Response(b"", 503, {"Retry-After": "\u00b2"})]}
    judge.run(request)
    assert len(server.bodies) == 4


def test_a_reply_that_comes_byte_by_byte_ends_in_time(asked):
    server, request = asked
    request.config.judge.update({"timeout_s": 0.5, "retries": 0})

    async def slowly():
        for _ in range(100):
            yield b" "
            await asyncio.sleep(0.05)

    server.script = {"What 0?": [StreamingResponse(slowly())]}
    with pytest.raises(AnswersError, match="1 of 3 grades are missing, the first of v1_0: Timeout"):
        judge.run(request)


@pytest.fixture
def interruptible():
    """Processes that run tests side by side ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_asks_no_more_and_keeps_what_was_asked(asked, monkeypatch):
    server, request = asked
    request.config.judge.parallel = 1
    ask = Judge._ask

    def interrupted(self, body):
        """The main thread is interrupted before this one has what the judge says."""
        found = ask(self, body)
        if len(server.bodies) == 2:
            for _ in range(30):  # one that comes as the main thread goes to wait does not wake it
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                if self._ended.wait(1):
                    break
            assert self._ended.is_set()
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Judge, "_ask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            judge.run(request)
    kept = (request.workdir / "grades.jsonl").read_text().splitlines()
    assert len(kept) == len(server.bodies) == 2
    judge.run(request)
    assert len(server.bodies) == 3


def test_the_log_is_a_file_of_one_run(asked, tmp_path):
    _, request = asked
    log = request.workdir / "grades.jsonl"
    log.parent.mkdir()
    log.symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match=r"grades\.jsonl: it is a link"):
        judge.run(request)
    assert not (tmp_path / "other").exists()
    log.unlink()
    os.mkfifo(log)
    with pytest.raises(UserError, match=r"grades\.jsonl: it is no file"):
        judge.run(request)
    log.unlink()
    with log.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another run is writing"):
            judge.run(request)
