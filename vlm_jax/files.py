"""Files that are seen whole or not at all."""

import os
import pathlib
import tempfile

from vlm_jax.errors import UserError


def replace_file(path: str | os.PathLike, content: str | bytes, kept: str = "") -> None:
    """Writes a file under a temporary sibling name, puts it on disk, and renames it.

    Args:
        path: the file; its folder is made.
        content: text is written as UTF-8.
        kept: what an error says of the work so far.

    Raises:
        UserError: it cannot be written; an earlier file of that name is as it was.
    """
    path = pathlib.Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            pathlib.Path(temporary).unlink(missing_ok=True)
        raise cannot_write(path, error, kept) from error


def cannot_write(path: pathlib.Path, error: OSError, kept: str = "") -> UserError:
    """The error for a file that cannot be written; `kept` says what became of the work so far."""
    reason = f"cannot write {path}: {error.strerror or error}"
    return UserError(f"{reason}; {kept}." if kept else f"{reason}.")
