"""Requests in OpenAI's form, read into what a model is asked; and what is refused of them.

Images are data URLs in the request: nothing is fetched, and no file of the server is read.
"""

import base64
import binascii
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import PIL.Image

from vlm_jax.decoding import DecodeSettings
from vlm_jax.errors import PromptError, UserError
from vlm_jax.processing.images import FORMATS, upright
from vlm_jax.settings import nearest

MAX_IMAGES = 32
_NAME = re.compile(r"[\w+-][\w.+-]*|")
MAX_MESSAGES = 200

_RENAMED = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}
_SETTINGS = (
    *("temperature", "top_p", "top_k", "seed", "stop", "repetition_penalty"),
    *("no_repeat_ngram_size", "min_new_tokens", "max_new_tokens"),
)
# Fields that change nothing, or that must have the value at which they do.
_IGNORED = ("user", "metadata", "store", "stream_options", "service_tier", "safety_identifier")
_NEUTRAL = {
    "n": (1,),
    "logprobs": (False,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "response_format": ({"type": "text"},),
}
_KNOWN = ("model", "messages", "stream", "method", *_RENAMED, *_SETTINGS, *_IGNORED, *_NEUTRAL)


@dataclass(frozen=True)
class ChatRequest:
    """What a request asks.

    Attributes:
        model: the arm.
        images: pictures, in the order of the messages.
        prompt: the user's turn, or turns that begin and end with the user's.
        settings: of decoding.
        stream: whether the answer comes as events.
        method: attention method or strategy to apply first, as `config.method`; None is the arm.
    """

    model: str
    images: tuple[PIL.Image.Image, ...]
    prompt: str | tuple[str, ...]
    settings: DecodeSettings
    stream: bool = False
    method: Any = field(default=None, compare=False)


def read_chat(body: Any, defaults: DecodeSettings) -> ChatRequest:
    """Reads the JSON body of a request.

    Args:
        body: what it holds.
        defaults: of decoding; what the request names is changed.

    Raises:
        UserError: one line that says what is wrong with it.
    """
    if not isinstance(body, Mapping):
        raise PromptError("the body must be a JSON object.")
    for name in body:
        if name not in _KNOWN:
            raise PromptError(f"field {name!r} is unknown{nearest(name, _KNOWN)}.")
    for name, allowed in _NEUTRAL.items():
        if body.get(name) is not None and body[name] not in allowed:
            raise PromptError(f"{name}={body[name]!r} is not supported; leave it out.")
    model, stream = body.get("model"), body.get("stream") or False
    if not isinstance(model, str) or not model:
        raise PromptError("model must name one of /v1/models.")
    if not isinstance(stream, bool):
        raise PromptError(f"stream must be true or false, not {stream!r}.")
    system, turns, images = _read_messages(body.get("messages"))
    asked = {_RENAMED.get(name, name): body[name] for name in (*_RENAMED, *_SETTINGS)
             if body.get(name) is not None}  # fmt: skip
    if not asked.get("temperature", defaults.temperature):
        asked = {name: value for name, value in asked.items() if name not in ("top_p", "top_k")}
    if system:
        asked["system"] = system
    prompt = turns[0] if len(turns) == 1 else tuple(turns)
    return ChatRequest(model, images, prompt, defaults.replace(**asked), stream, body.get("method"))


def _read_messages(messages: Any) -> tuple[str, list[str], tuple[PIL.Image.Image, ...]]:
    """The system message, the turns, and the images of all of them."""
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        raise PromptError(f"messages must be a list of 1 to {MAX_MESSAGES} messages.")
    system, turns, images = "", [], []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, Mapping):
            raise PromptError(f"{where} must be an object with role and content.")
        role, words = message.get("role"), []
        for part in _parts(message.get("content"), where):
            if isinstance(part, str):
                words.append(part)
            elif role == "user":
                images.append(part)
            else:
                raise PromptError(f"{where}: only the user's messages may hold images.")
        text = "\n".join(words)
        if role in ("system", "developer") and number == 0:
            system = text
            continue
        if role != ("user", "assistant")[len(turns) % 2]:
            raise PromptError(
                f"{where} has the role {role!r}: after a system message user and assistant take "
                "turns, the user first and last."
            )
        turns.append(text)
    if len(turns) % 2 == 0:
        raise PromptError("messages must end with the user's.")
    if len(images) > MAX_IMAGES:
        raise PromptError(f"messages hold {len(images)} images; at most {MAX_IMAGES} are read.")
    return system, turns, tuple(images)


def _parts(content: Any, where: str) -> list[str | PIL.Image.Image]:
    """The texts and pictures of a message."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list) or not content:
        raise PromptError(f"{where}.content must be text, or a list of parts.")
    found: list[str | PIL.Image.Image] = []
    for number, part in enumerate(content):
        here = f"{where}.content[{number}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            found.append(part["text"])
        elif kind == "image_url":
            link = part.get("image_url")
            found.append(read_image(link.get("url") if isinstance(link, Mapping) else link, here))
        else:
            raise PromptError(f"{here} must be of type text or image_url.")
    return found


def read_image(url: Any, where: str) -> PIL.Image.Image:
    """The picture of a data URL, opened and upright.

    Raises:
        PromptError: it is another URL, no picture, or one that is too large.
    """
    head, comma, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not (comma and head.startswith("data:image/") and head.endswith(";base64")):
        raise PromptError(
            f"{where}: images are read from data URLs (data:image/png;base64,...) alone; nothing "
            "is fetched."
        )
    try:
        content = base64.b64decode(data, validate=True)
        picture = PIL.Image.open(io.BytesIO(content), formats=FORMATS)
    except PIL.UnidentifiedImageError:
        raise PromptError(f"{where} is no picture; {', '.join(FORMATS)} are read.") from None
    except (binascii.Error, ValueError):
        raise PromptError(f"{where} is not base64 text of a picture.") from None
    except Exception as error:  # PIL's readers raise whatever they meet
        raise PromptError(f"{where} is no picture: {error}.") from None
    return upright(picture, where)


def refuse_files(entry: Mapping[str, Any]) -> None:
    """Refuses settings of a method that could name a file of the server.

    Raises:
        UserError: a text holds more than a name, or is the name of a file.
    """
    for name, value in entry.items():
        if isinstance(value, str) and (not _NAME.fullmatch(value) or os.path.lexists(value)):
            raise UserError(f"{name}={value!r}: a request may name what is published, not files.")
