"""Folders that appear under their name only when they are complete."""

import contextlib
import hashlib
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator
from typing import TextIO

from vlm_jax.errors import CheckpointError
from vlm_jax.files import (
    MARK,
    clear_leftovers,
    is_ours_alone,
    is_own_folder,
    links_in,
    partial_name,
)
from vlm_jax.foreign import utf8

_MARKS = re.compile(r"vlm_jax \S+\n")


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
    made = False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(target)
        temporary.mkdir()
        made = True
        (temporary / MARK).touch()
        yield temporary
        _complete(temporary, target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        if made:
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
    be read) leave the temporary folder; an error in the input removes it. Whatever has its name and
    was not made here (a link, a folder without our mark) is left as it is, and refused.

    Args:
        target: the folder to make; must not exist.
        source: the folder that it is made from.
        identity: of what the folder is made from, as `identity_of` gives it.
        replaces_others: whether leftovers of another identity are cleared away, rather than
            refused: of use where only a change of the source can have made them.

    Raises:
        CheckpointError: as `new_folder`; or another process is making the same target, or has begun
            another one under its name; or that name is taken.
    """
    target = _absolute(target, source)
    temporary = target.with_name(f".{target.name}.partial")
    claimed = False
    with contextlib.ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                temporary.mkdir()
            _refuse_strange(temporary, target)
            state = stack.enter_context((temporary / MARK).open("a+", encoding="utf-8"))
            _lock(state, target)
            _claim(temporary, state, identity, target, replaces_others)
            claimed = True
            yield temporary
            _complete(temporary, target)
        except _Refused as error:
            raise CheckpointError(str(error)) from None
        except (OSError, CheckpointError) as error:
            of_machine = isinstance(error, OSError) or isinstance(error.__cause__, OSError)
            kept = _kept(temporary, of_machine) if claimed else ""
            if isinstance(error, OSError):
                raise CheckpointError(f"{_unwritable(target, error)}{kept}") from error
            raise type(error)(f"{error}{kept}") from error
        except Exception:
            if claimed:
                _kept(temporary, False)
            raise


def identity_of(files: Iterable[pathlib.Path], *texts: bytes) -> str:
    """A hash of files' names, sizes and times of change, and of some content.

    A file that was fetched again may have the same header as a damaged one: its time tells.

    Raises:
        CheckpointError: there is no such file.
    """
    known = hashlib.sha256()
    for file in files:
        try:
            stat = file.stat()
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror or error}.") from error
        known.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    for text in texts:
        known.update(b"%d\n" % len(text) + text)
    return known.hexdigest()


class _Refused(Exception):
    """The folder is another's, and stays as it is."""


def _refuse_strange(temporary: pathlib.Path, target: pathlib.Path) -> None:
    """Refuses what has the temporary folder's name and was not made by this program."""
    if not is_own_folder(temporary):
        fault = "is not a folder that this program made"
    elif links := links_in(temporary):
        fault = f"holds {links[0].relative_to(temporary)}, which this program did not make"
    else:
        return
    raise _Refused(
        f"cannot write {target}: {temporary}, where it would be made, {fault}; move that away, or "
        "name another target."
    )


def _complete(temporary: pathlib.Path, target: pathlib.Path) -> None:
    """Gives the folder its name."""
    _refuse_existing(target)
    (temporary / MARK).unlink()
    temporary.rename(target)


def _lock(state: TextIO, target: pathlib.Path) -> None:
    """Holds the folder until the file is closed, even by a kill."""
    if not is_ours_alone(state.fileno()):
        raise _Refused(f"another process is making {target}; wait for it, or name another target.")


def _claim(
    temporary: pathlib.Path,
    state: TextIO,
    identity: str,
    target: pathlib.Path,
    replaces_others: bool,
) -> None:
    """Clears away what was made from something else, or refuses it."""
    state.seek(0)
    mark, before = f"vlm_jax {identity}\n", state.read()
    if before == mark:
        return
    others = [left for left in temporary.iterdir() if left.name != MARK]
    if others and not _MARKS.fullmatch(before):
        raise _Refused(
            f"cannot write {target}: {temporary}, where it would be made, holds files, and its "
            f"{MARK} is not one that this program wrote, or is damaged; move it away, or name "
            "another target."
        )
    if others and not replaces_others:
        raise _Refused(
            f"{target} was begun from another source, with other settings or by another version, "
            f"and is half-written in {temporary}: run that to its end, remove the folder, or name "
            "another target."
        )
    for left in others:
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    state.truncate(0)
    os.write(state.fileno(), mark.encode())  # a buffer is written, and fails, when it is closed too
    os.fsync(state.fileno())


def _kept(temporary: pathlib.Path, keep: bool) -> str:
    """Removes the folder unless a later call can resume it; returns a sentence for the user."""
    files = (path for path in temporary.rglob("*") if path.is_file() and path.name != MARK)
    if keep and any(files):
        return f" What was done is kept in {temporary}: the same command goes on from there."
    shutil.rmtree(temporary, ignore_errors=True)
    return ""


def _absolute(
    target: str | os.PathLike[str], source: str | os.PathLike[str] | None
) -> pathlib.Path:
    name = os.fspath(target)
    utf8(name, f"the target's name {name!r}")  # the storage library takes no other names
    if "\0" in name:
        raise CheckpointError(f"the target's name {name!r} has a zero byte; name another.")
    target = pathlib.Path(os.path.abspath(target))
    if source is not None:
        real, origin = pathlib.Path(os.path.realpath(target)), os.path.realpath(source)
        if os.path.exists(target) and str(real) == origin:
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
