"""Answers of several models, or of several settings of a method, to the same questions.

Columns are models or settings, rows are questions:

    both = vlm_jax.compare({"plain": vlm, "air": steered}, ["a.jpg", "b.jpg"], "Describe.")
    both.answers["air"][0]      # what the second model says of the first image
    both                        # a table; in a notebook with the images, and changed words marked
"""

import base64
import dataclasses
import difflib
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import PIL.Image

from vlm_jax.errors import UserError
from vlm_jax.listing import html_table
from vlm_jax.processing import ImageSource
from vlm_jax.processing.images import load_image
from vlm_jax.terminal import written

_THUMBNAIL = 160  # pixels of the longer side


@dataclasses.dataclass(frozen=True)
class SideBySide:
    """A row a question, a column a model.

    Attributes:
        answers: name of a model, or of a setting -> its answers, in the order of the questions.
        prompts: the questions.
        images: a list of images a question; None where none has any.
        settings: name -> settings, where the columns are settings of one method.
    """

    answers: Mapping[str, Sequence[str]]
    prompts: Sequence[str]
    images: Sequence[Sequence[ImageSource]] | None = None
    settings: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def __getitem__(self, name: str) -> Sequence[str]:
        return self.answers[name]

    def changed(self, name: str) -> list[int]:
        """Returns the questions that a column answers otherwise than the first column."""
        first = next(iter(self.answers.values()))
        return [n for n, text in enumerate(self.answers[name]) if text != first[n]]

    def table(self) -> str:
        """Returns the answers as aligned text, a question after the other."""
        blocks = []
        for index, prompt in enumerate(self.prompts):
            rows = [[name, texts[index]] for name, texts in self.answers.items()]
            blocks.append(f"[{index}] {prompt}\n{written(['', 'answer'], rows, 76)}")
        return "\n\n".join(blocks)

    def to_pandas(self) -> Any:
        """Returns a pandas `DataFrame`: a row a question and column.

        Raises:
            UserError: pandas is not installed.
        """
        rows = [
            {"question": index, "prompt": prompt, "model": name, **self.settings.get(name, {}),
             "answer": texts[index]}
            for index, prompt in enumerate(self.prompts)
            for name, texts in self.answers.items()
        ]  # fmt: skip
        return data_frame(rows)

    def __repr__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        shows = self.images is not None and any(self.images)
        headers = [*(["image"] if shows else []), "prompt", *self.answers]
        rows = []
        for index, prompt in enumerate(self.prompts):
            texts = [texts[index] for texts in self.answers.values()]
            cells = [_Markup(_marked(texts[0], text)) for text in texts]
            pictures = [_Markup(_pictures(self.images[index]))] if shows and self.images else []
            rows.append([*pictures, prompt, *cells])
        return html_table(headers, rows)


def data_frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Returns a pandas `DataFrame` of rows.

    Raises:
        UserError: pandas is not installed.
    """
    try:
        import pandas  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            "to_pandas needs pandas, which is not installed: pip install pandas."
        ) from None
    return pandas.DataFrame(list(rows))


@dataclasses.dataclass(frozen=True)
class _Markup:
    """HTML of our own making."""

    text: str

    def _repr_html_(self) -> str:
        return self.text


def _marked(first: str, text: str) -> str:
    """Escaped HTML of a text whose words that another text lacks are marked."""
    ours, theirs = text.split(), first.split()
    matcher = difflib.SequenceMatcher(None, theirs, ours, autojunk=False)
    pieces = []
    for kind, _, _, start, end in matcher.get_opcodes():
        words = html.escape(" ".join(ours[start:end]))
        if words:
            pieces.append(words if kind == "equal" else f"<mark>{words}</mark>")
    return " ".join(pieces)


def _pictures(images: Sequence[ImageSource]) -> str:
    """HTML of small copies of images."""
    shown = []
    for image in images:
        small = load_image(image, "images").convert("RGB")
        small.thumbnail((_THUMBNAIL, _THUMBNAIL), PIL.Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        shown.append(f'<img alt="" src="data:image/png;base64,{data}">')
    return "".join(shown)
