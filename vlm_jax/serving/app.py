"""The HTTP side: /v1/models and /v1/chat/completions, errors in OpenAI's form."""

import asyncio
import contextlib
import dataclasses
import hmac
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from vlm_jax.answering import Answer
from vlm_jax.api import VLM
from vlm_jax.decoding import DecodeSettings
from vlm_jax.errors import UserError
from vlm_jax.foreign import parse_json
from vlm_jax.serving.batcher import Arms, Batcher
from vlm_jax.serving.chat import ChatRequest, read_chat

_METHODS_KEPT = 64  # treated models of requests' own methods
_GONE = 499  # status of answers to clients that disconnected
_LOOK = 0.05  # seconds between two checks whether a client is connected


class _Refused(Exception):
    """A request that is answered by an error."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error"):
        super().__init__(message)
        self.status, self.kind = status, kind


def make_app(
    arms: Arms,
    batcher: Batcher,
    defaults: DecodeSettings,
    *,
    treat: Callable[[VLM, Any], VLM],
    api_key: str = "",
    max_bytes: int = 32 << 20,
    max_waiting: int = 1024,
) -> Starlette:
    """Returns the server as a Starlette application.

    Args:
        arms: model id -> model.
        batcher: answers the requests; closed when the server ends, after all answers are given.
        defaults: settings of decoding that requests do not name.
        treat: applies a request's own method to a model, or raises a `UserError`.
        api_key: that "Authorization: Bearer ..." must hold; "" asks for none.
        max_bytes: of a request's body.
        max_waiting: requests that may wait; further ones get status 429.
    """
    server = _Server(arms, batcher, defaults, treat, api_key, max_bytes, max_waiting)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batcher.close)

    return Starlette(
        routes=[
            Route("/v1/models", server.models),
            Route("/v1/chat/completions", server.chat, methods=["POST"]),
        ],
        exception_handlers={
            _Refused: _refused,
            UserError: _refused,
            ClientDisconnect: _left,
            Exception: _broke,
        },
        lifespan=lifespan,
    )


@dataclasses.dataclass(frozen=True)
class _Server:
    """The two routes; see `make_app` for the attributes.

    Attributes:
        started: seconds since the epoch.
        treated: models with the methods that requests named, the last used last.
    """

    arms: Arms
    batcher: Batcher
    defaults: DecodeSettings
    treat: Callable[[VLM, Any], VLM]
    api_key: str
    max_bytes: int
    max_waiting: int
    started: int = dataclasses.field(default_factory=lambda: int(time.time()))
    treated: OrderedDict[str, VLM] = dataclasses.field(default_factory=OrderedDict)

    async def models(self, request: Request) -> Response:
        """GET /v1/models: lists the arms."""
        _allow(request, self.api_key)
        about = {"object": "model", "created": self.started, "owned_by": "vlm_jax"}
        return JSONResponse({"object": "list", "data": [{"id": one, **about} for one in self.arms]})

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions: answers a chat, as one JSON or as events."""
        _allow(request, self.api_key)
        if self.batcher.waiting >= self.max_waiting:
            busy = f"{self.max_waiting} requests wait; come again."
            raise _Refused(429, busy, "rate_limit_error")
        body = await _json(request, self.max_bytes)
        asked = await asyncio.to_thread(read_chat, body, self.defaults)
        model = await asyncio.to_thread(self._model_of, asked)
        if asked.stream:
            texts: asyncio.Queue[str] = asyncio.Queue()
            loop = asyncio.get_running_loop()

            def told(text: str) -> None:
                loop.call_soon_threadsafe(texts.put_nowait, text)

            future = asyncio.wrap_future(self.batcher.ask(asked, model, told))
            return StreamingResponse(_events(asked, future, texts), media_type="text/event-stream")
        future = asyncio.wrap_future(self.batcher.ask(asked, model))
        while not future.done():
            await asyncio.wait([future], timeout=_LOOK)
            if not future.done() and await request.is_disconnected():
                future.cancel()
                return Response(status_code=_GONE)
        return JSONResponse(_completion(asked, future.result()))

    def _model_of(self, chat: ChatRequest) -> VLM:
        """Returns the arm that a request names, with the request's own method applied."""
        if chat.model not in self.arms:
            listed = ", ".join(self.arms)
            raise _Refused(404, f"model {chat.model!r} is none of {listed}.", "not_found_error")
        if chat.method is None:
            return self.arms[chat.model]
        key = f"{chat.model} {json.dumps(chat.method, sort_keys=True)}"
        if key not in self.treated:
            self.treated[key] = self.treat(self.arms[chat.model], chat.method)
        self.treated.move_to_end(key)
        while len(self.treated) > _METHODS_KEPT:
            self.treated.popitem(last=False)
        return self.treated[key]


async def _refused(request: Request, error: Exception) -> Response:
    known = error if isinstance(error, _Refused) else _Refused(400, str(error))
    return JSONResponse(_error(known), status_code=known.status)


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=_GONE)  # the client is gone: nobody reads it


async def _broke(request: Request, error: Exception) -> Response:
    found = _Refused(500, f"{type(error).__name__}: {error}", "server_error")
    return JSONResponse(_error(found), status_code=500)


def _allow(request: Request, api_key: str) -> None:
    """Refuses a request without the key, where there is one."""
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if api_key and not hmac.compare_digest(given.encode(), api_key.encode()):
        raise _Refused(401, "the API key is missing or wrong.", "authentication_error")


async def _json(request: Request, max_bytes: int) -> Any:
    """The body of a request, bounded, as JSON."""
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise _Refused(415, "the body must be application/json.")
    too_long = _Refused(413, f"the body has more than {max_bytes} bytes.")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise too_long
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > max_bytes:
            raise too_long
    return parse_json(bytes(content), Any, "the body", UserError)


def _error(error: _Refused) -> dict[str, Any]:
    return {"error": {"message": str(error), "type": error.kind, "code": error.status}}


def _head(asked: ChatRequest, kind: str) -> dict[str, Any]:
    name = f"chatcmpl-{secrets.token_hex(12)}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": asked.model}


def _completion(asked: ChatRequest, answer: Answer) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text}
    reason = "stop" if answer.ended else "length"
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    read, made = answer.prompt_tokens, len(answer.tokens)
    usage = {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
    return {**_head(asked, "chat.completion"), "choices": [choice], "usage": usage}


async def _events(
    asked: ChatRequest, future: "asyncio.Future[Answer]", texts: "asyncio.Queue[str]"
) -> AsyncIterator[str]:
    """The answer as events: what is decoded, as it comes, and the rest once it is done.

    A client that goes away cancels what still waits.
    """
    sent = ""
    head = _head(asked, "chat.completion.chunk")

    def event(delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"

    try:
        yield event({"role": "assistant", "content": ""})
        while not future.done():
            more = asyncio.ensure_future(texts.get())
            await asyncio.wait((more, future), return_when=asyncio.FIRST_COMPLETED)
            if not more.done():
                more.cancel()
                continue
            text = more.result().rstrip().rstrip("\ufffd")  # half a letter, whose bytes go on
            if text.startswith(sent) and text != sent:
                yield event({"content": text[len(sent) :]})
                sent = text
        try:
            answer = await future
        except Exception as error:
            found = error if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            yield f"data: {json.dumps(_error(_Refused(400, str(found))))}\n\n"
            return
        for word in _words(answer.text[len(sent) :]):
            yield event({"content": word})
        yield event({}, "stop" if answer.ended else "length")
        yield "data: [DONE]\n\n"
    finally:
        future.cancel()


def _words(text: str) -> list[str]:
    """A text in pieces that end before a blank: "A dog runs" -> ["A", " dog", " runs"]."""
    pieces = text.split(" ")
    return [pieces[0], *(f" {piece}" for piece in pieces[1:])] if text else []
