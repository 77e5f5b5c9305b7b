"""Folders that appear under their name only when they are complete."""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from typing import TextIO

from vlm_jax.errors import CheckpointError
from vlm_jax.files import clear_leftovers, partial_name

_STATE = ".made_from"


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
    target = _absolute(target, source)
    temporary = target.with_name(partial_name(target))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(target)
        temporary.mkdir()
        yield temporary
        _refuse_existing(target)
        temporary.rename(target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def resumable_folder(
    target: str | os.PathLike[str],
    source: str | os.PathLike[str],
    identity: str,
    *,
    replaces_others: bool = True,
) -> Iterator[pathlib.Path]:
    """As `new_folder`, but what an interrupted call left in it is still there in the next one.

    A killed process, an interruption and an error of the machine (a full disk, a file that cannot
    be read) leave the temporary folder; an error in the input removes it.

    Args:
        target: the folder to make; must not exist.
        source: the folder that it is made from.
        identity: of what the folder is made from, as `identity_of` gives it.
        replaces_others: whether leftovers of another identity are cleared away, rather than
            refused: of use where only a change of the source can have made them.

    Raises:
        CheckpointError: as `new_folder`; or another process is making the same target, or has begun
            another one under its name.
    """
    target = _absolute(target, source)
    temporary = target.with_name(f".{target.name}.partial")
    with contextlib.ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir(exist_ok=True)
            state = stack.enter_context((temporary / _STATE).open("a+", encoding="utf-8"))
            _lock(state, target)
            _claim(temporary, state, identity, target, replaces_others)
            yield temporary
            _refuse_existing(target)
            (temporary / _STATE).unlink()
            temporary.rename(target)
        except _Refused as error:
            raise CheckpointError(str(error)) from None
        except (OSError, CheckpointError) as error:
            of_machine = isinstance(error, OSError) or isinstance(error.__cause__, OSError)
            kept = _kept(temporary, of_machine)
            if isinstance(error, OSError):
                raise CheckpointError(f"{_unwritable(target, error)}{kept}") from error
            raise type(error)(f"{error}{kept}") from error
        except Exception:
            _kept(temporary, False)
            raise


def identity_of(files: Iterable[pathlib.Path], *texts: bytes) -> str:
    """A hash of files' names, sizes and times of change, and of some content.

    A file that was fetched again may have the same header as a damaged one: its time tells.
    """
    known = hashlib.sha256()
    for file in files:
        stat = file.stat()
        known.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    for text in texts:
        known.update(b"%d\n" % len(text) + text)
    return known.hexdigest()


class _Refused(Exception):
    """The folder is another's, and stays as it is."""


def _lock(state: TextIO, target: pathlib.Path) -> None:
    """Holds the folder until the file is closed, even by a kill."""
    try:
        fcntl.flock(state, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _Refused(
            f"another process is making {target}; wait for it, or name another target."
        ) from None
    except OSError:
        return  # a file system without locks


def _claim(
    temporary: pathlib.Path,
    state: TextIO,
    identity: str,
    target: pathlib.Path,
    replaces_others: bool,
) -> None:
    """Clears away what was made from something else, or refuses it."""
    state.seek(0)
    if state.read() == identity:
        return
    others = [left for left in temporary.iterdir() if left.name != _STATE]
    if others and not replaces_others:
        raise _Refused(
            f"{target} was begun from another source, with other settings or by another version, "
            f"and is half-written in {temporary}: run that to its end, remove the folder, or name "
            "another target."
        )
    for left in others:
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    state.truncate(0)
    state.write(identity)
    state.flush()


def _kept(temporary: pathlib.Path, keep: bool) -> str:
    """Removes the folder unless it is worth keeping; what to tell the user of it."""
    files = (path for path in temporary.rglob("*") if path.is_file() and path.name != _STATE)
    if keep and any(files):
        return f" What was done is kept in {temporary}: the same command goes on from there."
    shutil.rmtree(temporary, ignore_errors=True)
    return ""


def _absolute(
    target: str | os.PathLike[str], source: str | os.PathLike[str] | None
) -> pathlib.Path:
    target = pathlib.Path(os.path.abspath(target))
    if source is not None:
        real, origin = pathlib.Path(os.path.realpath(target)), os.path.realpath(source)
        if target.exists() and str(real) == origin:
            raise CheckpointError(f"the target {target} is the source itself; name another folder.")
        if real.is_relative_to(origin):
            raise CheckpointError(
                f"the target {target} lies inside the source {source}; name a folder beside it."
            )
    _refuse_existing(target)
    return target


def _unwritable(target: pathlib.Path, error: OSError) -> CheckpointError:
    where = f" ({error.filename})" if error.filename else ""
    return CheckpointError(f"cannot write {target}: {error.strerror or error}{where}.")


def _refuse_existing(target: pathlib.Path) -> None:
    if os.path.lexists(target):
        raise CheckpointError(f"{target} exists already; remove it or name another target.")
