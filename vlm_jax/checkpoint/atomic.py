"""Folders that appear under their name only when they are complete."""

import contextlib
import os
import pathlib
import re
import shutil
import socket
from collections.abc import Iterator

from vlm_jax.errors import CheckpointError


@contextlib.contextmanager
def new_folder(
    target: str | os.PathLike[str], source: str | os.PathLike[str] | None = None
) -> Iterator[pathlib.Path]:
    """Gives a temporary sibling of `target` to fill, and renames it to `target` at the end.

    An exception removes it; a killed process leaves it under its temporary name, and the next call
    for the same target clears it away.

    Args:
        target: the folder to make; must not exist.
        source: a folder that the new one is made from, for a clearer error when both are the same.

    Raises:
        CheckpointError: the target exists, is the source or inside it, or cannot be written.
    """
    target = pathlib.Path(os.path.abspath(target))
    if (
        source is not None
        and target.exists()
        and os.path.realpath(source) == os.path.realpath(target)
    ):
        raise CheckpointError(f"the target {target} is the source itself; name another folder.")
    if source is not None and pathlib.Path(os.path.realpath(target)).is_relative_to(
        os.path.realpath(source)
    ):
        raise CheckpointError(
            f"the target {target} lies inside the source {source}; name a folder beside it."
        )
    _refuse_existing(target)
    temporary = target.with_name(f".{target.name}.partial-{socket.gethostname()}-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(target)
        temporary.mkdir()
        yield temporary
        _refuse_existing(target)
        temporary.rename(target)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {target}: {error.strerror or error}"
            f"{f' ({error.filename})' if error.filename else ''}."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_existing(target: pathlib.Path) -> None:
    if os.path.lexists(target):
        raise CheckpointError(f"{target} exists already; remove it or name another target.")


def _clear_leftovers(target: pathlib.Path) -> None:
    """Removes what killed processes of this machine left behind for the same target."""
    host = re.escape(socket.gethostname())
    pattern = re.compile(rf"\.{re.escape(target.name)}\.partial-{host}-(\d+)")
    for sibling in target.parent.iterdir():
        match = pattern.fullmatch(sibling.name)
        if match and not _alive(int(match[1])):
            shutil.rmtree(sibling, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()
