"""Reads files that somebody else made: regular files only, bounded, typed and ranged.

Whatever such a file holds, the caller gets values of the types asked for or one `CheckpointError`
(or the error class given) that names the file and the place in it. Never a hang, never a traceback.

    class Rope(msgspec.Struct):
        theta: Annotated[float, msgspec.Meta(gt=0, le=1e12)] = 1e4

    read_json(path, Rope)      # config.json: `$.theta` must be > 0
"""

import json
import math
import os
import pathlib
import stat
from collections import Counter
from typing import Any, BinaryIO

import msgspec

from vlm_jax.errors import CheckpointError, UserError

MAX_SCANS = 256
"""Of a JPEG; those that programs write have some ten."""

MAX_JSON_BYTES = 256 << 20  # an index of 100,000 tensors takes 10 MB, a tokenizer 20 MB


def read_bytes(
    path: pathlib.Path, limit: int = MAX_JSON_BYTES, error: type[UserError] = CheckpointError
) -> bytes:
    """Returns what a regular file holds.

    Args:
        path: of the file. Pipes, devices and folders are refused, not waited for.
        limit: bytes that it may hold.
        error: raised where it cannot be read.

    Raises:
        UserError: of class `error`, naming the file.
    """
    with open_regular(path, error) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise error(f"{path} has {size} bytes; at most {limit} are read.")
        try:
            return file.read(limit + 1)[:limit]
        except OSError as failure:
            raise error(f"{path} cannot be read: {_reason(failure)}.") from failure


def open_regular(
    path: str | os.PathLike[str], error: type[UserError] = CheckpointError, buffering: int = -1
) -> BinaryIO:
    """Opens a regular file for reading; links are followed, as a hub's cache needs.

    Args:
        path: of the file.
        error: raised where it cannot be opened.
        buffering: as for `open`.

    Raises:
        UserError: of class `error`: there is none, or it is a pipe, a device or a folder, which
            are refused, not waited for.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for somebody to write to it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as failure:
        raise error(f"{path} cannot be read: {_reason(failure)}.") from failure
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(f"{path} is not a regular file.")
    return os.fdopen(descriptor, "rb", buffering)


def has_many_scans(image: Any) -> bool:
    """Whether an opened picture that is not decoded yet is a JPEG of more than `MAX_SCANS` scans.

    Each is a pass over the whole picture: half a megabyte can ask for thousands of 64 megapixels.

    Args:
        image: of Pillow's `open`. JPEGs inside of TIFF files are looked at too.
    """
    file = getattr(image, "fp", None)
    jpeg = image.format in ("JPEG", "MPO") or image.info.get("compression") == "jpeg"
    if file is None or file.closed or not jpeg:
        return False
    place, count, before = file.tell(), 0, b""
    file.seek(0)
    while count <= MAX_SCANS and (part := file.read(1 << 20)):
        count += (before + part).count(b"\xff\xda")  # in what was compressed, 0 follows on 255
        before = part[-1:] if part.endswith(b"\xff") else b""
    file.seek(place)
    return count > MAX_SCANS


def read_json(
    path: pathlib.Path,
    kind: Any = Any,
    limit: int = MAX_JSON_BYTES,
    error: type[UserError] = CheckpointError,
) -> Any:
    """Returns a JSON file's values as the types asked for.

    Args:
        path: of the file.
        kind: what `msgspec.convert` makes of it: a Struct, `dict[str, int]`, an annotated type.
        limit: bytes that it may hold.
        error: raised where it cannot be read or holds something else.

    Raises:
        UserError: of class `error`, naming the file and the place in it.
    """
    return parse_json(read_bytes(path, limit, error), kind, str(path), error)


def parse_json(
    content: bytes | str,
    kind: Any,
    where: str,
    error: type[UserError] = CheckpointError,
    unique: bool = False,
) -> Any:
    """Returns JSON text as the types asked for; see `read_json`.

    Args:
        content: the text; a byte order mark at its start is skipped.
        kind: as for `read_json`.
        where: what messages call it.
        error: raised where it is not that.
        unique: refuse an object that names a key twice, of which JSON readers keep the last.
    """

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(found)
        if len(values) < len(found):
            counts = Counter(key for key, _ in found)
            raise error(f"{where} names {counts.most_common(1)[0][0]!r} twice.")
        return values

    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        values = json.loads(text, object_pairs_hook=pairs if unique else None)
    except UnicodeDecodeError as failure:
        raise error(f"{where} is not UTF-8 text (byte {failure.start}).") from None
    except json.JSONDecodeError as failure:
        place = f"line {failure.lineno}, column {failure.colno}"
        raise error(f"{where} is not valid JSON: {failure.msg} ({place}).") from None
    except RecursionError:
        raise error(f"{where} is not usable JSON: it is nested too deeply.") from None
    except UserError:
        raise
    except ValueError:  # a number of thousands of digits
        raise error(f"{where} is not usable JSON: a number in it is too long.") from None
    return convert(values, kind, where, error)


def convert(values: Any, kind: Any, where: str, error: type[UserError] = CheckpointError) -> Any:
    """Returns plain JSON values as the types asked for; see `read_json`.

    Numbers that are not finite are refused wherever `kind` looks at them.
    """
    try:
        found = msgspec.convert(values, kind)
    except msgspec.ValidationError as failure:
        raise error(f"{where}: {failure}.") from None
    except (RecursionError, OverflowError):
        raise error(f"{where}: a value in it is nested too deeply or too large.") from None
    except UnicodeEncodeError:
        raise error(f"{where}: a string in it has half of a surrogate pair: no text.") from None
    if kind is not Any:
        _refuse_infinite(found, where, error)
    return found


def _refuse_infinite(found: Any, where: str, error: type[UserError]) -> None:
    """Refuses NaN and infinities in structs, lists and mappings."""
    stack = [found]
    while stack:
        value = stack.pop()
        if isinstance(value, float) and not math.isfinite(value):
            raise error(f"{where} holds {value}, where a finite number is needed.")
        if isinstance(value, msgspec.Struct):
            stack += [getattr(value, field) for field in value.__struct_fields__]
        elif isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, list | tuple):
            stack += value


def utf8(text: str, where: str, error: type[UserError] = CheckpointError) -> bytes:
    """Returns a string's bytes in UTF-8.

    JSON and file names may hold "\\ud83d" alone, half of the pair that stands for one character.

    Raises:
        UserError: of class `error`, naming `where`: the string has half of a surrogate pair.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as failure:
        raise error(
            f"{where} holds {text[failure.start]!r} (character {failure.start}), half of a "
            "surrogate pair, which is no text."
        ) from None


def plain_name(
    name: Any, where: str, suffix: str = "", error: type[UserError] = CheckpointError
) -> str:
    """Returns a file name that is read from a file: a plain name inside the folder, nothing else.

    Args:
        name: what the file says.
        where: which file says it.
        suffix: what the name must end in, such as ".safetensors".
        error: raised where it is no such name.

    Raises:
        UserError: it has a folder in it, is hidden, empty, too long or ends otherwise.
    """
    bad = not isinstance(name, str) or not name or len(name) > 255 or name.startswith(".")
    if bad or any(c in name for c in "/\\\0") or not name.isprintable():
        raise error(f"{where} names the file {name!r}; a plain file name is needed.")
    if not name.endswith(suffix):
        raise error(f"{where} names the file {name!r}; it must end in {suffix}.")
    return name


def _reason(failure: Exception) -> str:
    text = getattr(failure, "strerror", None) or str(failure)
    return text[:1].lower() + text[1:]
