"""The server, asked by OpenAI's client: one model, one server, real sockets."""

import base64
import concurrent.futures
import contextlib
import io
import json
import signal
import socket
import threading
import time
from typing import Any

import openai
import pytest
import uvicorn
from PIL import Image

from tests import tiny
from vlm_jax.decoding import DecodeSettings
from vlm_jax.errors import ConfigError, PromptError
from vlm_jax.jobs import serve
from vlm_jax.serving.app import make_app
from vlm_jax.serving.batcher import Batcher
from vlm_jax.serving.chat import read_chat
from vlm_jax.study.request import Request

KEY = "secret"
TOKENS = 4


def data_url(colour: str = "red") -> str:
    made = io.BytesIO()
    Image.new("RGB", (28, 28), colour).save(made, "PNG")
    return f"data:image/png;base64,{base64.b64encode(made.getvalue()).decode()}"


def asking(text: str = "Is there a dog?", url: str | None = None) -> list:
    image = {"type": "image_url", "image_url": {"url": url or data_url()}}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]


class Slow(Batcher):
    """A batcher that waits to be let go, so that requests surely wait together."""

    def __init__(self, **options):
        self.open = threading.Event()
        self.open.set()
        super().__init__(**options)

    def _take(self):
        taken = super()._take()
        self.open.wait()
        return taken


@contextlib.contextmanager
def started(arms, **options):
    """A server on a free port: its address, its batcher, and uvicorn's server."""
    from configs import base

    config = base.get_config()
    batcher = Slow(rows=64, wait=0.3)
    app = make_app(
        arms,
        batcher,
        DecodeSettings(max_new_tokens=TOKENS, batch_size=64),
        treat=lambda model, method: serve.treat_request(model, method, config),
        api_key=KEY,
        max_bytes=1 << 20,
        **options,
    )
    found = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [found]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{found.getsockname()[1]}/v1", batcher, server
    finally:
        batcher.open.set()
        server.should_exit = True
        thread.join(60)


@pytest.fixture(scope="module")
def arms(llava_vlm):
    every = tuple((layer, head) for layer in range(2) for head in range(2))
    strong = llava_vlm.apply("air", heads=every, visual_gain=4.0, text_gain=0.0, text_threshold=0.0)
    return {"unedited": llava_vlm, "air": strong}


@pytest.fixture(scope="module")
def served(arms):
    with started(arms) as (url, batcher, _):
        yield openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=120), batcher


def test_models_are_the_arms(served):
    client, _ = served
    assert [model.id for model in client.models.list()] == ["unedited", "air"]


def test_answers_are_those_of_the_model(served, arms):
    client, _ = served
    picture = Image.new("RGB", (28, 28), "red")
    for name, model in arms.items():
        made = client.chat.completions.create(model=name, messages=asking())
        (wanted,) = model.ask([[picture]], ["Is there a dog?"], {"max_new_tokens": TOKENS})
        choice = made.choices[0]
        assert choice.message.content == wanted.text
        assert choice.finish_reason == ("stop" if wanted.ended else "length")
        assert made.usage.completion_tokens == len(wanted.tokens)
        (draft,) = model.processor.drafts([[picture]], ["Is there a dog?"], max_length=999)
        assert made.usage.prompt_tokens == len(draft.tokens(model.config.image_token_id)) > 10
        assert made.usage.total_tokens == made.usage.prompt_tokens + len(wanted.tokens)


def test_an_answer_in_events_is_the_same(served):
    client, _ = served
    whole = client.chat.completions.create(model="unedited", messages=asking())
    events = list(client.chat.completions.create(model="unedited", messages=asking(), stream=True))
    pieces = [event.choices[0].delta.content or "" for event in events]
    assert "".join(pieces) == whole.choices[0].message.content
    assert events[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_words_come_while_others_are_still_decoded(served, arms, monkeypatch):
    """Decoding waits until the first words have come; the text is that of a whole answer."""
    client, _ = served
    generator = arms["unedited"].generator
    ask = {"model": "unedited", "messages": asking(), "max_tokens": 24}
    whole = client.chat.completions.create(**ask)
    came, decode_part = threading.Event(), generator.programs.decode_part

    def waiting(params, state, inputs, until):
        assert until <= 8 or came.wait(60)
        return decode_part(params, state, inputs, until)

    monkeypatch.setattr(generator.programs, "decode_part", waiting)
    pieces = []
    for event in client.chat.completions.create(**ask, stream=True):
        pieces.append(event.choices[0].delta.content or "")
        if pieces[-1]:
            came.set()
    assert "".join(pieces) == whole.choices[0].message.content
    assert whole.usage.completion_tokens > 16
    assert len([piece for piece in pieces if piece]) > 1
    for stop in ("zzzz", whole.choices[0].message.content[9:12]):
        texts: list[str] = []
        (answer,) = arms["unedited"].answer(
            [[Image.new("RGB", (28, 28), "red")]],
            ["Is there a dog?"],
            max_new_tokens=24,
            stop=(stop,),
            told=lambda _, text, texts=texts: texts.append(text),
        )
        assert texts
        assert all(answer.text.startswith(text) for text in texts)


def test_64_requests_at_once_are_batched_over_arms(served, arms):
    """Rows of both arms in a batch, each answered as it is alone."""
    client, batcher = served
    questions = [f"Is there {n % 7}?" for n in range(64)]
    names = ["unedited" if n % 2 else "air" for n in range(64)]
    batcher.open.clear()
    before = len(batcher.batches)
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        futures = [
            pool.submit(client.chat.completions.create, model=name, messages=asking(question))
            for name, question in zip(names, questions)
        ]
        time.sleep(0.5)
        batcher.open.set()
        texts = [future.result().choices[0].message.content for future in futures]
    assert sum(batcher.batches[before:]) == 64
    assert len(batcher.batches) - before <= 4
    alone = {}
    for name, model in arms.items():
        pictures = [[Image.new("RGB", (28, 28), "red")]] * 7
        asked = [f"Is there {n}?" for n in range(7)]
        found = model.ask(pictures, asked, {"max_new_tokens": TOKENS, "batch_size": 64})
        alone |= {(name, question): one.text for question, one in zip(asked, found)}
    assert any(alone["air", q] != alone["unedited", q] for q in questions)  # rows do differ
    assert texts == [alone[name, question] for name, question in zip(names, questions)]


def test_a_request_may_name_a_method(served):
    client, _ = served
    ask = lambda model, **extra: client.chat.completions.create(
        model=model, messages=asking(), extra_body=extra
    ).choices[0].message.content  # fmt: skip
    heads = [[layer, head] for layer in range(2) for head in range(2)]
    method = {"method": "air", "heads": heads, "visual_gain": 4.0, "text_gain": 0.0,
              "text_threshold": 0.0}  # fmt: skip
    assert ask("unedited", method=method) == ask("air")
    with pytest.raises(openai.BadRequestError, match="edits weights"):
        ask("unedited", method={"method": "qk"})
    for path in ("/etc/passwd", "../heads.json", "pyproject.toml"):
        with pytest.raises(openai.BadRequestError, match="not files"):
            ask("unedited", method={"method": "air", "heads": path})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"messages": asking(url="https://example.org/a.png")}, "data URLs"),
        ({"messages": asking(url="file:///etc/passwd")}, "data URLs"),
        ({"messages": asking(url="data:image/png;base64,@@@")}, "not base64"),
        ({"messages": asking(url="data:image/png;base64,AAAA")}, "is no picture; JPEG"),
        ({"messages": []}, "1 to 200 messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "user and assistant take turns"),
        ({"n": 2}, "n=2 is not supported"),
        ({"max_tokens": 0}, "max_new_tokens must be"),
        ({"temperature": -1}, "temperature must be"),
        ({"extra_body": {"top_q": 3}}, "'top_q' is unknown .did you mean 'top_p'"),
        ({"extra_body": {"method": 7}}, "method must be a name"),
        ({"extra_body": {"method": "airs"}}, "air"),
        ({"extra_body": {"method": ["air"] * 17}}, "17 methods; 16 can act together"),
    ],
)
def test_malformed_requests_are_one_line(served, changes, message):
    client, _ = served
    wanted = {"model": "unedited", "messages": asking(), **changes}
    with pytest.raises(openai.BadRequestError, match=message) as error:
        client.chat.completions.create(**wanted)
    body: Any = error.value.body
    assert "\n" not in body["message"]


def test_refusals_have_their_status(served):
    client, _ = served
    with pytest.raises(openai.NotFoundError, match="'gpt' is none of unedited, air"):
        client.chat.completions.create(model="gpt", messages=asking())
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.APIStatusError) as error:
        client.chat.completions.create(model="unedited", messages=asking("x" * (2 << 20)))
    assert error.value.status_code == 413
    assert client.chat.completions.create(model="unedited", messages=asking()).choices


def test_a_body_is_refused_by_its_length_and_one_that_ends_early_forgotten(served, caplog):
    client, _ = served
    where = client.base_url
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    for length in (10**11, 100):
        with socket.create_connection((where.host, where.port), timeout=10) as one:
            one.sendall(f"{head}Content-Type: application/json\r\n".encode())
            one.sendall(f"Content-Length: {length}\r\n\r\n{{".encode())
            if length > 100:
                assert one.recv(100).startswith(b"HTTP/1.1 413 ")
    assert client.chat.completions.create(model="unedited", messages=asking()).choices
    assert not [record for record in caplog.records if record.exc_info]


def test_a_client_that_leaves_is_not_answered(served):
    client, batcher = served
    batcher.open.clear()
    before = sum(batcher.batches)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.6).chat.completions.create(
            model="unedited", messages=asking("Gone?")
        )
    time.sleep(0.4)
    batcher.open.set()
    client.chat.completions.create(model="unedited", messages=asking("Here?"))
    assert sum(batcher.batches) == before + 1


def test_sigterm_lets_what_was_asked_be_answered(arms):
    with started(arms) as (url, batcher, server):
        client = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=60)
        batcher.open.clear()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            future = pool.submit(
                client.chat.completions.create, model="unedited", messages=asking()
            )
            time.sleep(0.8)
            server.handle_exit(signal.SIGTERM, None)  # what uvicorn does when it comes
            time.sleep(0.3)
            assert not future.done()
            batcher.open.set()
            assert future.result().choices[0].message.content is not None
        with pytest.raises(openai.APIConnectionError):
            client.models.list()


def test_turns_and_a_system_message():
    body = {"model": "m", "messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "A?"},
        {"role": "assistant", "content": "B."}, {"role": "user", "content": "C?"},
    ], "stop": "x", "max_completion_tokens": 3}  # fmt: skip
    chat = read_chat(json.loads(json.dumps(body)), DecodeSettings())
    assert chat.prompt == ("A?", "B.", "C?")
    assert (chat.settings.system, chat.settings.stop) == ("Be brief.", ("x",))
    assert chat.settings.max_new_tokens == 3
    with pytest.raises(PromptError, match="must be a JSON object"):
        read_chat([], DecodeSettings())


def test_an_address_open_to_others_needs_a_key(tmp_path, monkeypatch):
    from configs import base

    monkeypatch.delenv("VLM_JAX_API_KEY", raising=False)
    config: Any = base.get_config()
    config.serve.host = "0.0.0.0"
    with pytest.raises(ConfigError, match="is open to others: set the environment variable"):
        serve.run(Request(config=config, source=tiny.llava(tmp_path / "m")))


def test_the_job_ends_by_sigterm_and_says_so(tiny_llava, monkeypatch, capsys):
    """The signal comes to this very process, as soon as the server listens."""
    from configs import base

    config: Any = base.get_config()
    config.serve.port = 0
    startup = uvicorn.Server.startup

    async def started_then_ended(self, sockets=None):
        await startup(self, sockets=sockets)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(uvicorn.Server, "startup", started_then_ended)
    before = signal.getsignal(signal.SIGTERM)
    serve.run(Request(config=config, source=tiny_llava))
    assert signal.getsignal(signal.SIGTERM) is before
    assert "Serving unedited at" in (printed := capsys.readouterr().out)
    assert printed.endswith("Ended; 0 requests in 0 batches.\n")
