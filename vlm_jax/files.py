"""Files that are seen whole or not at all."""

import contextlib
import itertools
import os
import pathlib
import re
import shutil
import socket

from vlm_jax.errors import UserError

_count = itertools.count()
_being_written: set[pathlib.Path] = set()


def replace_file(path: str | os.PathLike, content: str | bytes, kept: str = "") -> None:
    """Writes a file under a temporary sibling name, puts it on disk, and renames it.

    Args:
        path: the file; its folder is made.
        content: text is written as UTF-8, whatever the locale.
        kept: what an error says of the work so far.

    Raises:
        UserError: it cannot be written; an earlier file of that name is as it was.
    """
    path = pathlib.Path(path)
    # What is no text (half of a surrogate pair, of a path or a prompt) is written as its number.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    temporary = path.with_name(f"{partial_name(path)}-{next(_count)}")
    _being_written.add(temporary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise cannot_write(path, error, kept) from error
    finally:
        _being_written.discard(temporary)


def cannot_write(path: pathlib.Path, error: OSError, kept: str = "") -> UserError:
    """The error for a file that cannot be written; `kept` says what became of the work so far."""
    reason = f"cannot write {path}: {error.strerror or error}"
    return UserError(f"{reason}; {kept}." if kept else f"{reason}.")


def partial_name(path: pathlib.Path) -> str:
    """The name of a file or folder while this process writes it; `clear_leftovers` knows it."""
    return f".{path.name}.partial-{socket.gethostname()}-{os.getpid()}"


def clear_leftovers(path: pathlib.Path) -> None:
    """Removes what killed processes of this machine left behind of the same file or folder."""
    host = re.escape(socket.gethostname())
    pattern = re.compile(rf"\.{re.escape(path.name)}\.partial-{host}-(\d+)(-\d+)?")
    for sibling in path.parent.iterdir():
        match = pattern.fullmatch(sibling.name)
        if match and not _alive(int(match[1])) and sibling not in _being_written:
            if sibling.is_dir():
                shutil.rmtree(sibling, ignore_errors=True)
            else:
                sibling.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    """Whether another process of this number runs; numbers come back, in containers at once."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()
