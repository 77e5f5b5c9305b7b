"""Readers of ground truth: which objects are in which image, and which answers questions want.

Objects come from an object table (TSV), COCO annotation JSON (instances and captions, several
files merged), rows of captions and instances or rows of `objects`; questions from POPE files.
`read_truth` tells them apart by content.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from vlm_jax.errors import AnswersError
from vlm_jax.evals import sheets
from vlm_jax.evals.base import row_id
from vlm_jax.evals.records import (
    ImageId,
    Record,
    decode,
    image_id,
    is_table,
    read_content,
    read_rows,
    row_image_id,
    row_text,
    take_rows,
    text_rows,
)
from vlm_jax.evals.vocabulary import Vocabulary, coco_vocabulary
from vlm_jax.foreign import convert, parse_json

_TABLE_HEADER = "# categories:"
_SPLITS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class ObjectTruth:
    """The objects of every image: image id -> node words.

    Attributes:
        objects: image id -> node words; an image without objects has an empty set.
        categories: the node words there are, in the order of the source.
        sources: what named the objects: "captions", "instances" (also an object table), or both.
    """

    objects: Mapping[ImageId, frozenset[str]]
    categories: tuple[str, ...]
    sources: frozenset[str] = frozenset({"instances"})


@dataclass(frozen=True)
class Question:
    """One yes/no question about an image; `label` is "yes" or "no".

    Where a file holds several splits, `split` says which and `id` begins with it ("random/7").
    """

    id: int | str
    image: str
    text: str
    label: str
    split: str = ""


def read_truth(
    paths: str | Path | Sequence[str | Path],
    vocabulary: Vocabulary | None = None,
    malformed: dict[str, str] | None = None,
) -> ObjectTruth | tuple[Question, ...]:
    """Reads ground truth of either kind from one file or several files of one kind.

    Args:
        paths: object tables, COCO annotation JSON, caption-and-instance rows, or POPE question
            files.
        vocabulary: finds objects in reference captions and names categories; the default is our
            own table.
        malformed: takes the rows of a file of questions that cannot be read, "<file> line <n>" ->
            what is wrong with it, instead of an error.

    Raises:
        AnswersError: a file is of no known kind, of another kind than the first, or has a
            malformed row.
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    if not paths:
        raise AnswersError("no truth file given; name an object table, COCO JSON or question file")
    vocabulary = vocabulary or coco_vocabulary()
    builder = _ObjectBuilder(vocabulary)
    questions: dict[int | str, Question] = {}
    for path in map(Path, paths):
        _read_one(path, builder, questions, malformed)
    if questions and builder.objects:
        raise AnswersError(
            f"truth files {', '.join(map(str, paths))} mix questions and objects; give one kind"
        )
    return tuple(questions.values()) if questions else builder.build()


def read_object_truth(
    paths: str | Path | Sequence[str | Path], vocabulary: Vocabulary | None = None
) -> ObjectTruth:
    """Returns what `read_truth` reads of objects.

    Raises:
        AnswersError: the files hold questions, or cannot be read.
    """
    truth = read_truth(paths, vocabulary)
    if not isinstance(truth, ObjectTruth):
        raise AnswersError(
            f"{paths} holds yes/no questions; captions need the objects of each image"
        )
    return truth


def read_questions(
    paths: str | Path | Sequence[str | Path], malformed: dict[str, str] | None = None
) -> tuple[Question, ...]:
    """Returns what `read_truth` reads of yes/no questions.

    Raises:
        AnswersError: the files hold objects of images, or cannot be read.
    """
    truth = read_truth(paths, malformed=malformed)
    if isinstance(truth, ObjectTruth):
        raise AnswersError(
            f"{paths} holds objects of images; a file of labelled questions is needed"
        )
    return truth


DESCRIBED = {"captions", "instances", "objects"}
"""Fields of a row that describes an image."""


class _ObjectBuilder:
    """Objects of images gathered over several files."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.objects: dict[ImageId, set[str]] = {}
        self.categories: dict[str, None] = {}
        self.sources: set[str] = set()

    def add(self, image: ImageId, nodes: Iterable[str], source: str) -> None:
        """Adds objects of an image that `source` ("captions", "instances"; "" for none) names."""
        self.sources |= {source} - {""}
        self.objects.setdefault(image, set()).update(nodes)

    def node(self, category: str) -> str:
        """The node word of a category name; a name outside the vocabulary stands for itself."""
        return self.vocabulary.node(category) or category

    def build(self) -> ObjectTruth:
        categories = tuple(self.categories) or self.vocabulary.categories
        return ObjectTruth(
            {key: frozenset(nodes) for key, nodes in self.objects.items()},
            categories,
            frozenset(self.sources),
        )


def _read_one(
    path: Path,
    builder: _ObjectBuilder,
    questions: dict[int | str, Question],
    malformed: dict[str, str] | None,
) -> None:
    def take(row: Record) -> None:
        if _is_question(row):
            _add_question(row, questions)
        elif row.fields.keys() & DESCRIBED:
            _add_described_image(row, builder)
        else:
            have = ", ".join(repr(key) for key in row.fields) or "nothing"
            raise row.error(
                "is not ground truth: expected 'label' (a question), 'objects', or 'captions' and "
                f"'instances' (an image), or COCO's 'annotations'; has {have}"
            )

    content = read_content(path)
    if is_table(content):
        for row in read_rows(path):
            take(row)
        return
    text = decode(path, content)
    start = text.lstrip()[: len(_TABLE_HEADER)]
    if start == _TABLE_HEADER:
        return _read_table(path, text, builder)
    if not start:
        raise AnswersError(f"{path} is empty; expected ground truth")
    if start[0] not in "{[":
        if sheets.separator(path, text) is not None:
            for row in text_rows(path, text):
                take(row)
            return
        raise AnswersError(
            f'{path} is neither JSON nor an object table (first line "{_TABLE_HEADER} a|b|c"); '
            f"it starts with {start!r}"
        )
    document = _coco_document(path, text)
    if document is not None:
        return _read_coco(path, document, builder)

    return take_rows(path, text, take, malformed)


def _read_table(path: Path, text: str, builder: _ObjectBuilder) -> None:
    header, *lines = text.strip("\n").split("\n")
    categories = tuple(name.strip() for name in header[len(_TABLE_HEADER) :].split("|"))
    if not all(categories) or len(set(categories)) < len(categories):
        raise AnswersError(f"{path} line 1: category names must be distinct and not empty")
    builder.categories.update(dict.fromkeys(categories))
    nodes = tuple(builder.node(name) for name in categories)
    cells = {str(number): node for number, node in enumerate(nodes)}
    seen: dict[ImageId, int] = {}
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        image, _, indices = line.rstrip("\r").partition("\t")
        try:
            key = image_id(image)
            found = [cells[cell.strip()] for cell in indices.split(",")] if indices.strip() else []
        except KeyError as error:
            raise AnswersError(
                f"{path} line {number}: category index {error.args[0]!r} is not a number from 0 to "
                f"{len(categories) - 1}"
            ) from error
        except ValueError as error:
            raise AnswersError(f"{path} line {number}: {error}") from error
        if key in seen:
            raise AnswersError(
                f"{path} line {number}: second row of image {key} (the first is on line "
                f"{seen[key]})"
            )
        seen[key] = number
        builder.add(key, found, "instances")
    if not seen:
        raise AnswersError(f"{path} names categories but no image")


class _Category(msgspec.Struct):
    id: int | str
    name: str


class _Image(msgspec.Struct):
    id: Any


class _Annotation(msgspec.Struct):
    image_id: Any
    category_id: int | str | None = None
    caption: str | None = None


class _Coco(msgspec.Struct):
    """What is read of COCO's annotations."""

    annotations: list[_Annotation]
    categories: list[_Category] | None = None
    images: list[_Image] | None = None


def _coco_document(path: Path, text: str) -> _Coco | None:
    """The COCO annotation document a text is, None where it is something else, or no JSON."""
    if not text.lstrip().startswith("{") or '"annotations"' not in text:
        return None
    try:
        values = parse_json(text, dict[str, Any], str(path), AnswersError)
    except AnswersError:
        return None
    if not isinstance(values.get("annotations"), list):
        return None
    return convert(values, _Coco, str(path), AnswersError)


def _read_coco(path: Path, document: _Coco, builder: _ObjectBuilder) -> None:
    names = {category.id: builder.node(category.name) for category in document.categories or ()}
    builder.categories.update(dict.fromkeys(names.values()))
    for place, image in enumerate(document.images or ()):
        builder.add(_coco_image(path, f"images[{place}]", image.id), (), "")
    for place, annotation in enumerate(document.annotations):
        where = f"annotations[{place}]"
        image = _coco_image(path, where, annotation.image_id)
        if annotation.caption is not None:
            builder.add(image, builder.vocabulary.objects([annotation.caption]), "captions")
        elif annotation.category_id in names:
            builder.add(image, [names[annotation.category_id]], "instances")
        else:
            raise AnswersError(
                f"{path}: {where} needs a 'caption' or a 'category_id' that 'categories' defines, "
                f"has category_id {annotation.category_id!r}"
            )


def _coco_image(path: Path, where: str, value: object) -> ImageId:
    try:
        return image_id(value)
    except ValueError as error:
        raise AnswersError(f"{path}: {where}: {error}") from error


def _add_described_image(row: Record, builder: _ObjectBuilder) -> None:
    image = row_image_id(row, ("image_id", "id", "image"))
    if image in builder.objects:
        raise row.error(f"second row of image {image}; keep one")
    captions, instances = row.fields.get("captions", []), row.fields.get("instances", [])
    objects = row.fields.get("objects", [])
    if not isinstance(objects, list) or not all(isinstance(one, str) for one in objects):
        raise row.error("objects must be a list of names")
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise row.error("captions must be a list of texts")
    if not isinstance(instances, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("category"), str) for entry in instances
    ):
        raise row.error("instances must be a list of objects with a 'category'")
    builder.add(image, builder.vocabulary.objects(captions), "captions" if captions else "")
    named = map(builder.node, [*(entry["category"] for entry in instances), *objects])
    # An empty list says that none of the categories is there; no list says nothing.
    listed = "instances" in row.fields or "objects" in row.fields
    builder.add(image, named, "instances" if listed else "")


def _is_question(row: Record) -> bool:
    """Whether a row is a labelled question; harnesses call the label "answer"."""
    if "label" in row.fields:
        return True
    answer = row.fields.get("answer")
    return "question" in row.fields and isinstance(answer, str) and _label(answer) != ""


def _label(value: Any) -> str:
    found = value.strip().lower() if isinstance(value, str) else ""
    return found if found in ("yes", "no") else ""


def _add_question(row: Record, questions: dict[int | str, Question]) -> None:
    key = row_id(row)
    value = row.fields.get("label", row.fields.get("answer"))
    label = _label(value)
    if not label:
        raise row.error(f"label must be 'yes' or 'no', found {value!r}")
    image = row_text(row, ("image_source", "image_path", "image"))
    row_image_id(row, ("image_source", "image_path", "image"))
    text = row_text(row, ("text", "question"))
    listed = [name.strip() for name in str(row.fields.get("category", "")).split(",")]
    splits = listed if set(listed) <= set(_SPLITS) else [""]
    for split in splits:
        name = f"{split}/{key}" if split else key
        if name in questions:
            raise row.error(f"second question {key}; its first is in the same file")
        questions[name] = Question(name, image, text, label, split)
