"""The folder's chat template: a user's turn and its images become one templated string."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import msgspec

from vlm_jax.errors import CheckpointError, PromptError
from vlm_jax.foreign import read_bytes, read_json, utf8
from vlm_jax.processing.templates import TemplateError, renderer

_MAX_TEMPLATE_BYTES = 1 << 20
_PROBE = "probe of the template"

Turns = str | Sequence[str]
"""What a sample asks: the user's words, or several turns that begin and end with the user's."""


class _Template(msgspec.Struct):
    """What a file of settings says of the template; other kinds than text are for others."""

    chat_template: Any = None


def read_template(folder: pathlib.Path, tokenizer) -> str | None:
    """Returns the template that transformers' processor would use, or None where there is none.

    In its order: `processor_config.json`, `chat_template.json` (older folders),
    `chat_template.jinja`, then whatever the tokenizer brought along.

    Raises:
        CheckpointError: the template is no UTF-8 text.
    """
    for name in ("processor_config.json", "chat_template.json"):
        path = folder / name
        if os.path.lexists(path):
            template = read_json(path, _Template).chat_template
            if isinstance(template, str):
                return template
    path = folder / "chat_template.jinja"
    if os.path.lexists(path):
        try:
            return read_bytes(path, _MAX_TEMPLATE_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path} is not UTF-8 text (byte {error.start}).") from None
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(
            f"The chat_template of {folder / 'tokenizer_config.json'} must be text, not "
            f"{type(template).__name__}."
        )
    return template


class Chat:
    """Puts user turns through a chat template.

    Templates take a turn's content as a list of images and texts, or (older ones) as a string
    only; which of them this one is, is found out by rendering a probe. A string-only template gets
    the images in the family's conventional form before the text.

    Args:
        tokenizer: the folder's tokenizer.
        template: Jinja source, or None: then `render` raises.
        image_token: the placeholder's text.
        image_text: what one image looks like in a string-only turn.
    """

    def __init__(self, tokenizer, template: str | None, image_token: str, image_text: str):
        self._tokenizer, self._template = tokenizer, template
        self._image_token, self._image_text = image_token, image_text
        self._takes_lists: bool | None = None

    def render(
        self, prompt: Turns, images: int, where: str = "The prompt", system: str = ""
    ) -> str:
        """Returns the templated text of a user's turn, ready for the assistant's answer.

        A prompt that holds as many placeholders as there are images says where they go; otherwise
        the images come before the text of the first turn.

        Args:
            prompt: the user's words; or several turns, in which user and assistant take turns and
                the user has the first and the last.
            images: how many images it has.
            where: what errors call the prompt.
            system: a system message before the first turn; the template's own where it is empty.

        Raises:
            PromptError: the prompt is empty, its placeholders are not as many as its images, or
                the template refuses it.
            CheckpointError: the folder has no chat template.
        """
        turns = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(turns, list | tuple) or not all(isinstance(one, str) for one in turns):
            raise PromptError(f"{where} must be a string, not {type(prompt).__name__}.")
        if len(turns) % 2 == 0:
            raise PromptError(
                f"{where} has {len(turns)} turns; user and assistant take turns, and the user has "
                "the first and the last."
            )
        if not all(one.strip() for one in turns):
            raise PromptError(f"{where} is empty; a prompt needs at least one word.")
        for words in (*turns, system):
            utf8(words, where, PromptError)
        placed = sum(one.count(self._image_token) for one in turns)
        if placed and placed != images:
            raise PromptError(
                f"{where} has {placed} {self._image_token} placeholder(s) but {images} image(s); "
                "give one image per placeholder, or leave the placeholders out."
            )
        leading = 0 if placed else images
        messages = [{"role": "system", "content": self._content(system, 0)}] if system else []
        for place, words in enumerate(turns):
            role = "assistant" if place % 2 else "user"
            content = self._content(words, 0 if place else leading)
            messages.append({"role": role, "content": content})
        try:
            return self._apply(messages)
        except TemplateError as error:
            raise PromptError(f"{where} was refused by the chat template: {error}.") from None

    @property
    def takes_lists(self) -> bool:
        """Whether the template places images and texts of a content list itself.

        Raises:
            CheckpointError: the folder has no template.
        """
        if self._template is None:
            raise CheckpointError(
                "The model folder has no chat template; add its chat_template.jinja, or pass "
                "already templated texts."
            )
        if self._takes_lists is None:
            try:
                content = [{"type": "image"}, {"type": "text", "text": _PROBE}]
                probe = self._apply([{"role": "user", "content": content}])
            except TemplateError:  # a string-only template fails on a list in ways of its own
                probe = ""
            # A template that prints the list as Python prints it shows its keys.
            self._takes_lists = (
                probe.count(self._image_token) == 1 and _PROBE in probe and "'type'" not in probe
            )
        return self._takes_lists

    def _content(self, words: str, images: int) -> str | list[dict[str, str]]:
        """Returns a turn's content as the template takes it, its images first."""
        if self.takes_lists:
            return [{"type": "image"}] * images + [{"type": "text", "text": words}]
        return self._image_text * images + words

    def _apply(self, messages: list[dict[str, Any]]) -> str:
        assert self._template is not None
        values = {
            **self._tokenizer.special_tokens_map,
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        return renderer.render(self._template, values)
