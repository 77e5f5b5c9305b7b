"""Atomic writes of files, and checks that what is written over or removed is our own.

A name that a run writes to may be taken: by a link, a pipe, or a folder of somebody's files. What
this program did not make is neither written through nor removed.
"""

import contextlib
import fcntl
import itertools
import os
import pathlib
import re
import shutil
import socket
import stat
from collections.abc import Iterator

from vlm_jax.errors import UserError

MARK = ".made_from"
"""A file in each folder that is half-made: by it a later run knows the folder as this program's."""

_count = itertools.count()
_being_written: set[pathlib.Path] = set()


def cache_folder() -> pathlib.Path | None:
    """Returns the user's folder for what can be made again, which may not exist yet.

    None is a user without a home: one that a container runs as by number.
    """
    places = (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache"))
    return next((pathlib.Path(one, "vlm_jax") for one in places if os.path.isabs(one)), None)


def expanded(path: str | os.PathLike[str]) -> str:
    """Returns a path with "~/" at its start as the user's home: shells leave `--workdir=~/x`."""
    text = os.fspath(path)
    return os.path.expanduser(text) if text == "~" or text.startswith("~/") else text


def slug(name: str) -> str:
    """Returns a file or folder name for an arm, a benchmark or a title: "a/b c" -> "a_b_c"."""
    return "".join(c if c.isalnum() or c in "-_.=+" else "_" for c in name)


def replace_file(path: str | os.PathLike, content: str | bytes, kept: str = "") -> None:
    """Writes a file under a temporary sibling name, puts it on disk, and renames it.

    Args:
        path: the file; its folder is made.
        content: text is written as UTF-8, whatever the locale.
        kept: what an error says of the work so far.

    Raises:
        UserError: it cannot be written, or its name is taken by a link, a pipe or a folder; what
            has that name is as it was.
    """
    path = pathlib.Path(path)
    refuse_other_kinds(path)
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


def refuse_other_kinds(path: pathlib.Path) -> None:
    """Refuses a name to write to that is taken by anything but a regular file.

    Raises:
        UserError: by a link, which would be written through, a pipe, which would be waited for, a
            device or a folder.
    """
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError):  # there is none, or writing says why not
        return
    if not stat.S_ISREG(mode):
        kind = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "no file"
        raise UserError(f"cannot write {path}: it is {kind}; remove it or choose another place.")


def open_to_append(path: pathlib.Path) -> int:
    """Opens a regular file for writing, made where there is none; what it holds stays.

    Returns:
        The descriptor.

    Raises:
        UserError: the name is taken by a link, a pipe, a device or a folder.
        OSError: it cannot be opened.
    """
    refuse_other_kinds(path)
    # Without O_NONBLOCK, opening a pipe that came between waits for somebody to read from it.
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    return os.open(path, flags, 0o644)


def lock(descriptor: int, path: pathlib.Path) -> None:
    """Refuses a second run that writes the same file; the lock goes with the process.

    Raises:
        UserError: another process holds it.
    """
    if not is_ours_alone(descriptor):
        raise UserError(f"another run is writing {path}; wait for it, or choose another --workdir.")


def is_ours_alone(descriptor: int) -> bool:
    """Locks an open file till it is closed, even by a kill; whether no other process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # file systems without locks
    return True


@contextlib.contextmanager
def alone_in(folder: pathlib.Path) -> Iterator[None]:
    """Makes a folder where there is none, and refuses other runs that write in it meanwhile.

    Raises:
        UserError: it cannot be made, or another process is in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes) -> None:
    """Writes bytes to an open file; the system may take them in parts."""
    while content:
        content = content[os.write(descriptor, content) :]


def read_own(path: pathlib.Path) -> bytes:
    """Returns the content of a file that an earlier run wrote.

    Raises:
        UserError: the name is taken by a link, a pipe, a device or a folder.
        OSError: it cannot be read, or there is none.
    """
    refuse_other_kinds(path)
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        return file.read()


def cannot_write(path: pathlib.Path, error: OSError, kept: str = "") -> UserError:
    """The error for a file that cannot be written; `kept` says what became of the work so far."""
    reason = f"cannot write {path}: {error.strerror or error}"
    return UserError(f"{reason}; {kept}." if kept else f"{reason}.")


def partial_name(path: pathlib.Path) -> str:
    """The name of a file or folder while this process writes it; `clear_leftovers` knows it."""
    return f".{path.name}.partial-{socket.gethostname()}-{os.getpid()}"


def clear_leftovers(path: pathlib.Path) -> None:
    """Removes what killed processes of this machine left behind of the same file or folder.

    Links stay, and folders without the mark of this program.
    """
    host = re.escape(socket.gethostname())
    pattern = re.compile(rf"\.{re.escape(path.name)}\.partial-{host}-(\d+)(-\d+)?")
    for sibling in path.parent.iterdir():
        match = pattern.fullmatch(sibling.name)
        if not match or _alive(int(match[1])) or sibling in _being_written:
            continue
        with contextlib.suppress(FileNotFoundError):  # another process cleared or renamed it
            if is_own_folder(sibling):
                shutil.rmtree(sibling, ignore_errors=True)
            elif stat.S_ISREG(sibling.lstat().st_mode):
                sibling.unlink()


def is_own_folder(path: pathlib.Path) -> bool:
    """Whether a path is a folder that this program began to make: no link, the user's, marked.

    A run that was killed before it set the mark left an empty one.
    """
    try:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return False
        content = list(path.iterdir())
        return not content or stat.S_ISREG((path / MARK).lstat().st_mode)
    except OSError:
        return False


def links_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns what lies in a folder, at any depth, and is neither a regular file nor a folder."""
    return [path for path in folder.rglob("*") if not _is_plain(path.lstat().st_mode)]


def _is_plain(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _alive(pid: int) -> bool:
    """True if a process with this PID runs and is not us.

    PIDs are reused, in containers at once: ours may be that of the process that was killed.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()
